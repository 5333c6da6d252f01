"""The owner's side against a worker that is played here: what it may say, and what it may not."""

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from teuthis import errors
from teuthis.flows import Counters
from teuthis.protocol import Ended, Exec, Facts, ReadFile, Status, StatusKind, decode_request
from teuthis.root import caller, integration
from teuthis.root import machine as module
from teuthis.root.console import Console
from teuthis.root.descriptors import Descriptors
from teuthis.root.launch import Processes
from teuthis.root.machine import Machine
from teuthis.root.reserved import Reserved
from teuthis.root.saved import Memory
from teuthis.root.spawn import Child


@dataclass
class Played:
    """Two processes that only sleep, and the worker's end of the control socket."""

    machine: Machine = field(init=False)
    control: socket.socket = field(init=False)
    console: int = field(init=False)
    children: list[Child] = field(default_factory=list)

    def launch(self, *_: object, **options: object) -> Processes:
        held = Descriptors()
        near, self.control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        held.enter_context(near)
        read, self.console = os.pipe()
        worker, hypervisor = (Child.start(["/bin/sleep", "1000"], []) for _ in range(2))
        self.children = [worker, hypervisor]
        for child in self.children:
            held.callback(child.end)
        console = Console(read, None)
        return Processes(worker, hypervisor, near, (Counters(),), (), Memory(0, -1), console, held)

    def say(self, kind: StatusKind, number: int = 0, value: int = 0, detail: int = 0) -> None:
        self.control.send(Status(kind, number, value, detail).encode())

    def died(self) -> errors.TeuthisError:
        """Why the machine ended; both processes are gone by then."""
        error = self.machine.ready.exception(100) or self.submit_error()
        assert isinstance(error, errors.TeuthisError)
        assert all(child.fate != "still there" for child in self.children)
        return error

    def submit_error(self) -> BaseException | None:
        try:
            answer = self.machine.submit(lambda number: ReadFile(number, "/x"), [self.console])
        except errors.TeuthisError as error:
            return error
        return answer.finished.exception(100)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    played = Played()
    monkeypatch.setattr(module, "launch", played.launch)
    monkeypatch.setattr(module, "_PATIENCE", 0.5)  # they do not end by themselves
    with Reserved(0) as reserved:
        played.machine = Machine(reserved, lambda *_: None, None)  # type: ignore[arg-type]
    yield played
    os.close(played.console)
    played.control.close()
    played.machine.close()


def test_a_request_and_its_answer(worker: Played) -> None:
    worker.say(StatusKind.READY)
    worker.machine.ready.result(100)
    read, write = os.pipe()
    answer = worker.machine.submit(
        lambda number: Exec(number, ["echo"], {"A": "1"}, "/"), [read, write, write]
    )
    packet, descriptors, _, _ = socket.recv_fds(worker.control, 1 << 17, 3)
    assert decode_request(packet, len(descriptors)) == Exec(answer.id, ["echo"], {"A": "1"}, "/")
    for descriptor in (read, write, *descriptors):
        os.close(descriptor)
    worker.say(StatusKind.STARTED, answer.id, 9)
    worker.say(StatusKind.EXITED, answer.id, 0, 15)
    assert answer.finished.result(100).detail == 15


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        bytes(31),
        bytes(32),
        bytes(33),
        bytes(100_000),
        Status(StatusKind.EXITED, 77, 0).encode(),
        Status(StatusKind.READY).encode()[:-1] + b"\1",
    ],
)
def test_a_worker_that_breaks_the_rules_ends_its_vm(worker: Played, packet: bytes) -> None:
    worker.control.send(packet)
    assert "broke the rules" in str(worker.died())
    assert worker.machine.flows()["control.status"].rejected == 1


def test_the_worker_gives_the_reason(worker: Played) -> None:
    worker.say(StatusKind.READY)
    worker.say(StatusKind.ENDED, value=Ended.POWER_OFF)
    assert isinstance(worker.died(), errors.GuestPowerOff)


def test_last_words_come_from_the_console(worker: Played) -> None:
    os.write(worker.console, b"\x1b[31mKernel panic - not syncing: why\n")
    worker.say(StatusKind.ENDED, value=Ended.GUEST_CRASH)
    error = worker.died()
    assert isinstance(error, errors.GuestPanic)
    assert error.last_words == "Kernel panic - not syncing: why"


def test_a_closed_control_socket(worker: Played) -> None:
    worker.control.shutdown(socket.SHUT_RDWR)
    assert "worker process died" in str(worker.died())


@pytest.mark.parametrize(("victim", "name"), [(0, "worker"), (1, "hypervisor")])
def test_a_process_that_dies(worker: Played, victim: int, name: str) -> None:
    os.kill(worker.children[victim].pid, 9)
    assert f"{name} process died, or was killed (SIGKILL)" in str(worker.died())


def test_a_worker_that_reads_nothing(worker: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "_SEND_TIMEOUT", 0.1)

    def flood() -> None:
        for _ in range(1000):
            worker.machine.submit(lambda number: ReadFile(number, "/" + "x" * 60_000), [2])

    with pytest.raises(errors.VMError, match="takes no requests"):
        flood()


def test_closing_while_others_ask(worker: Played) -> None:
    seen: list[BaseException | None] = []
    threads = [
        threading.Thread(target=lambda: seen.append(worker.submit_error())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    worker.control.recv(1000)
    worker.machine.close()
    for thread in threads:
        thread.join(100)
    assert [type(error) for error in seen] == [errors.VMClosed] * 4


def test_facts_that_cannot_be_read_are_refused_and_counted(worker: Played) -> None:
    worker.say(StatusKind.READY)
    worker.machine.ready.result(100)
    with ThreadPoolExecutor() as pool:
        facts = pool.submit(integration.facts, worker.machine)
        packet, descriptors, _, _ = socket.recv_fds(worker.control, 1 << 17, 3)
        request = decode_request(packet, len(descriptors))
        assert isinstance(request, Facts)
        os.write(descriptors[0], b"\xff\xff")
        os.close(descriptors[0])
        worker.say(StatusKind.DONE, request.id, 2)
        with pytest.raises(errors.NoFacts):
            facts.result(100)
    assert worker.machine.flows()["client.facts"].rejected == 1
