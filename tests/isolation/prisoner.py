"""An attacker inside the worker's jail. Run by `prison.py`; never part of a package.

The same program as `hypervisor/examples/prisoner.rs`, whose head explains options and input, with
the worker's walls, limits and list of system calls.
"""

import ctypes
import os
import select
import socket
import sys
from collections.abc import Callable

from teuthis.errors import MissingWall
from teuthis.jail import walls, worker
from teuthis.protocol import WorkerConfig

GUEST_MEMORY = 256 << 20

_alive: list[object] = []

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def main(options: list[str]) -> None:
    uid = None
    without = set()
    for option, value in zip(options[::2], options[1::2], strict=True):
        match option:
            case "--as":
                os.setgroups([])
                os.setresgid(int(value), int(value), int(value))
                os.setresuid(int(value), int(value), int(value))
            case "--uid":
                uid = int(value)
            case "--without":
                without.add(value)
            case _:
                raise ValueError(option)
    with os.fdopen(0, closefd=False) as attacks:
        while line := attacks.readline():
            print(attempt(line.rstrip("\n"), uid, without), flush=True)


def attempt(line: str, uid: int | None, without: set[str]) -> str:
    answers, answer = os.pipe()
    calls = [parse(call) for call in line.split(" ; ")] if line != "wait" else []
    child = os.fork()
    if child == 0:
        os.close(answers)
        text = attack(line, calls, answer, uid, without)
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


def attack(
    line: str, calls: list[Callable[[list[int]], int]], answer: int, uid: int | None, out: set[str]
) -> str:
    pid = os.getpid()
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
        uid=uid,
    )
    try:
        # As in `teuthis.worker.main`.
        walls.enter(worker.worker(config, {}), kept(walls.FIRST, out))
        epoll = select.epoll()
        allowed = worker.system_calls(epoll.fileno(), config.link, config.control)
        walls.enter(worker.worker(config, allowed), kept(walls.REST, out))
    except MissingWall as missing:
        return str(missing)
    if line == "wait":
        os.write(answer, f"locked {pid}\n".encode())
        while os.read(0, 1):
            pass
        os._exit(0)
    _alive.extend((*link, *control, epoll))  # taking Python's objects down is not on the list
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
