"""An attacker inside the jail of a worker or a switch. Run by `prison.py`; never part of a package.

The same program as `hypervisor/examples/prisoner.rs`, whose head explains options and input, with
their walls, limits and lists of system calls.
"""

import ctypes
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import NamedTuple

from teuthis.errors import MissingWall
from teuthis.jail import switch, walls, worker
from teuthis.jail.walls import Jail
from teuthis.protocol import Birth, WorkerConfig
from teuthis.switch.protocol import SwitchConfig

GUEST_MEMORY = 256 << 20

_alive: list[object] = []

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def main(options: list[str]) -> None:
    uid = None
    process = "worker"
    without = set()
    for option, value in zip(options[::2], options[1::2], strict=True):
        match option:
            case "--as":
                os.setgroups([])
                os.setresgid(int(value), int(value), int(value))
                os.setresuid(int(value), int(value), int(value))
            case "--uid":
                uid = int(value)
            case "--process":
                process = value
            case "--without":
                without.add(value)
            case _:
                raise ValueError(option)
    with os.fdopen(0, closefd=False) as attacks:
        while line := attacks.readline():
            print(attempt(line.rstrip("\n"), process, uid, without), flush=True)


def attempt(line: str, process: str, uid: int | None, without: set[str]) -> str:
    answers, answer = os.pipe()
    calls = [parse(call) for call in line.split(" ; ")] if line != "wait" else []
    child = os.fork()
    if child == 0:
        os.close(answers)
        text = attack(line, calls, answer, JAILS[process](uid, answer), without)
        os.write(answer, text.encode())
        os._exit(0)
    os.close(answer)
    said = b""
    while piece := os.read(answers, 4096):
        if line == "wait" and not said:
            os.write(1, piece)
            piece = b""
        said += piece
    os.close(answers)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"killed {-status}" if status < 0 else said.decode()


class Cell(NamedTuple):
    """A jail as its process's own code makes it."""

    before: Jail
    after: Callable[[int], Jail]
    """From the descriptor of its epoll."""


def of_worker(uid: int | None, answer: int) -> Cell:
    """As in `teuthis.worker.main`."""
    link, control = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    config = WorkerConfig(
        memory=0,
        memory_size=GUEST_MEMORY,
        link=link[0].fileno(),
        doorbells=0,
        to_worker=0,
        to_hypervisor=0,
        counters=0,
        control=control[0].fileno(),
        console=answer,
    )
    birth = Birth(uid)
    _alive.extend((*link, *control))

    def after(epoll: int) -> Jail:
        calls = worker.system_calls([epoll], config.link, config.control)
        return worker.worker(config, birth, calls)

    return Cell(worker.worker(config, birth, {}), after)


def of_switch(uid: int | None, answer: int) -> Cell:
    """As in `teuthis.switch.main`, for a named network; this one has a parent, though."""
    requests = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    _alive.append(requests)
    config = SwitchConfig(requests=requests.fileno(), uid=uid)
    descriptors = [*config.descriptors(), answer]

    def after(epoll: int) -> Jail:
        calls = switch.system_calls(epoll, config.requests)
        return switch.switch(config, calls)._replace(descriptors=descriptors)

    return Cell(switch.switch(config, {})._replace(descriptors=descriptors), after)


JAILS = {"worker": of_worker, "switch": of_switch}


def attack(
    line: str,
    calls: list[Callable[[list[int]], int]],
    answer: int,
    cell: Cell,
    out: set[str],
) -> str:
    pid = os.getpid()
    try:
        walls.enter(cell.before, kept(walls.FIRST, out))
        epoll = select.epoll()
        walls.enter(cell.after(epoll.fileno()), kept(walls.REST, out))
    except MissingWall as missing:
        return str(missing)
    if line == "wait":
        os.write(answer, f"locked {pid}\n".encode())
        while os.read(0, 1):
            pass
        os._exit(0)
    _alive.append(epoll)  # taking Python's objects down is not on the list
    results: list[int] = []
    for call in calls:
        result = call(results)
        if result == -1:
            return f"errno {ctypes.get_errno()}"
        results.append(result)
    return f"done {results[-1]}"


def kept(built: tuple[walls.Wall, ...], out: set[str]) -> tuple[walls.Wall, ...]:
    return tuple(wall for wall in built if wall.name not in out)


def parse(text: str) -> Callable[[list[int]], int]:
    number, *words = text.split(" ")
    arguments = [argument(word) for word in words]

    def call(results: list[int]) -> int:
        # Six arguments always: whatever is in the registers is no attack that can be repeated.
        passed = [make(results) for make in arguments] + [ctypes.c_long(0)] * (6 - len(arguments))
        answer: int = _libc.syscall(ctypes.c_long(int(number)), *passed)
        return answer

    return call


Passed = ctypes.Array[ctypes.c_char] | ctypes.c_long


def argument(word: str) -> Callable[[list[int]], Passed]:
    passed: Passed
    if word.startswith("s:"):
        passed = ctypes.create_string_buffer(word[2:].encode())
    elif word.startswith("x:"):
        passed = ctypes.create_string_buffer(bytes.fromhex(word[2:]))
    elif word == "buffer":
        passed = ctypes.create_string_buffer(4096)
    elif word == "parent":
        passed = ctypes.c_long(os.getppid())
    elif word.startswith("r"):
        return lambda results: ctypes.c_long(results[int(word[1:])])
    else:
        passed = ctypes.c_long(int(word))
    return lambda results: passed


if __name__ == "__main__":
    main(sys.argv[1:])
