"""The machine's own defects: they end the VM with a reason and one line, never a traceback."""

import os
import socket
from collections.abc import Iterator

import pytest

from teuthis.flows import Counters
from teuthis.protocol import Ended, Status, StatusKind
from teuthis.worker.agent.agent import Agent
from teuthis.worker.console import Console
from teuthis.worker.control import Control, LifelineCut
from teuthis.worker.doorbells import PAGE_BYTES, Doorbells
from teuthis.worker.ending import EndVM
from teuthis.worker.link import Link
from teuthis.worker.loop import Loop
from teuthis.worker.machine import Machine
from teuthis.worker.memory import GuestMemory


class Parts:
    """A machine in this process, and the other ends of its descriptors."""

    def __init__(self, *, lockstep: bool = False) -> None:
        self.counters, self.loop = Counters(), Loop()
        counters = self.counters
        self.link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.console, console = os.pipe()
        page = os.memfd_create("doorbells")
        os.ftruncate(page, PAGE_BYTES)
        events = os.eventfd(0), os.eventfd(0)
        doorbells = Doorbells(page, *events, counters)
        self.descriptors = [self.console, console, page, *events]
        self.sockets = [self.link, link, self.control, control]
        self.memory = GuestMemory(-1, 1 << 20)
        self.machine = Machine(
            self.memory,
            Link(link, counters, doorbells.attend),
            doorbells,
            Control(control, counters),
            Console(self.loop, console, counters),
            self.loop,
            counters,
            agent=True,
            lockstep=lockstep,
        )

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        for endpoint in self.sockets:
            endpoint.close()


@pytest.fixture
def parts() -> Iterator[Parts]:
    parts = Parts()
    yield parts
    parts.close()


def test_defect_ends_the_vm_with_its_reason(parts: Parts) -> None:
    secret = "guest bytes"

    def broken() -> None:
        raise KeyError(secret)

    parts.loop.soon(broken)
    parts.machine.run()
    status = Status.decode(parts.control.recv(64))
    assert status == Status(StatusKind.ENDED, value=Ended.INTERNAL_ERROR)
    text = os.read(parts.console, 4096)
    assert text.startswith(b"[teuthis] internal error in the worker: KeyError at ")
    assert secret.encode() not in text
    assert text.count(b"\n") == 1


def test_defect_at_the_end_does_not_hide_why_the_vm_ended(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise KeyError

    def stopped() -> None:
        raise EndVM(Ended.STOPPED)

    monkeypatch.setattr(Agent, "abandon", lambda _: broken())
    parts.loop.soon(stopped)
    parts.machine.run()
    status = Status.decode(parts.control.recv(64))
    assert status == Status(StatusKind.ENDED, value=Ended.STOPPED)
    assert b"internal error in the worker: KeyError at " in os.read(parts.console, 4096)


def test_defect_while_the_root_is_gone_is_silent(parts: Parts) -> None:
    parts.control.close()

    def broken() -> None:
        raise KeyError

    parts.loop.soon(broken)
    with pytest.raises(LifelineCut):
        parts.machine.run()
