"""Turns of a worker whose machine is recorded, with a played hypervisor."""

import os
import struct
import threading
from collections.abc import Iterator

import pytest

from teuthis.protocol import Ended, Status, StatusKind, Stop, encode_request
from teuthis.worker import link
from teuthis.worker.control import LifelineCut
from teuthis.worker.ending import EndVM
from teuthis.worker.lockstep import pack
from teuthis.worker.memory import PAGE_SIZE, GuestMemory, PageRange

from .process import MESSAGE
from .test_machine import Parts

START, STOP, DELIVER, WROTE, OVER = 16, 17, 18, 24, 25
INITIATE_CONTACT = struct.pack("<IIIIQQQ", 14, 0, 0x50003, 0, 2, 0, 0)


class Played:
    """A worker's machine in a thread, and its hypervisor in this one."""

    def __init__(self) -> None:
        self.parts = Parts(lockstep=True)
        self.parts.link.settimeout(100)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.receive()[0] == START

    def _run(self) -> None:
        try:
            self.parts.machine.run()
        except LifelineCut as error:
            self.error = error

    def receive(self) -> tuple[int, int, bytes]:
        _, kind, length, value, payload = MESSAGE.unpack(self.parts.link.recv(300))
        return kind, value, payload[:length]

    def turn(self, wait: int = 0) -> list[tuple[int, int, bytes]]:
        """What the worker sends in its turn, TURN_OVER the last."""
        self.parts.link.send(MESSAGE.pack(1, 7, 0, wait, b""))
        sent = [self.receive()]
        while sent[-1][0] != OVER:
            sent.append(self.receive())
        return sent

    def end(self) -> None:
        self.parts.control.close()
        self.thread.join(100)
        assert not self.thread.is_alive()
        self.parts.close()


@pytest.fixture
def played() -> Iterator[Played]:
    played = Played()
    yield played
    played.end()


def test_turns_are_for_recorded_machines_only() -> None:
    parts = Parts()
    with pytest.raises(EndVM) as caught:
        parts.machine.handle(link.Turn(0))
    assert caught.value.reason is Ended.LINK_VIOLATION
    assert parts.counters.snapshot()["link.turn"].rejected == 1
    parts.close()


def test_what_the_guest_gave_is_answered_in_the_turn(played: Played) -> None:
    assert played.turn() == [(OVER, 0, b"")]
    payload = INITIATE_CONTACT
    played.parts.link.send(MESSAGE.pack(1, 1, len(payload), 4 | 1 << 32, payload))
    (kind, value, answer), over = played.turn()
    assert (kind, value) == (DELIVER, 2 | 1 << 32)
    assert answer[:4] == struct.pack("<I", 15)  # version response
    assert over == (OVER, 0, b"")


def test_a_turn_lasts_as_long_as_the_guest_sleeps_or_until_something_comes(played: Played) -> None:
    assert played.turn(3_000_000) == [(OVER, 3_000_000, b"")]
    timer = threading.Timer(0.2, played.parts.control.send, [encode_request(Stop())])
    timer.start()
    while len(sent := played.turn(900_000_000)) == 1:
        pass  # the timer is late
    stop, over = sent
    assert stop[0] == STOP
    # Sooner than it had to be, and not before it was asked: by our clock, not exactly.
    assert 0 < over[1] <= 900_000_000
    timer.join()


def test_nothing_is_done_between_turns(played: Played) -> None:
    played.parts.control.send(encode_request(Stop()))
    payload = INITIATE_CONTACT
    played.parts.link.send(MESSAGE.pack(1, 1, len(payload), 4 | 1 << 32, payload))
    played.parts.link.settimeout(0.2)
    with pytest.raises(TimeoutError):
        played.receive()
    played.parts.link.settimeout(100)
    assert {kind for kind, _, _ in played.turn()} == {STOP, DELIVER, OVER}


def test_the_machine_ends_with_the_guest(played: Played) -> None:
    played.parts.link.send(MESSAGE.pack(1, 3, 0, 1, b""))
    played.thread.join(100)
    assert Status.decode(played.parts.control.recv(64)).kind is StatusKind.ENDED


def test_written_ranges_are_merged_and_cut_into_messages() -> None:
    assert pack([]) == []
    merged = pack([(8, 4), (0, 4), (4, 4), (16, 8), (2, 4)])
    assert merged == [struct.pack("<4Q", 0, 12, 16, 8)]
    many = pack([(at * 16, 8) for at in range(33)])
    assert [len(each) // 16 for each in many] == [16, 16, 1]


def test_every_way_to_write_guest_memory_is_noted() -> None:
    memory = GuestMemory(-1, 16 * PAGE_SIZE)
    memory.journal = []
    pages = PageRange(memory, [3, 7, 8])
    before = bytes(memory.bytes)
    pages.write(PAGE_SIZE - 2, b"abcd")
    source = os.memfd_create("disk")
    os.write(source, b"x" * 5000)
    os.preadv(source, pages.targets(PAGE_SIZE, 5000), 0)
    os.close(source)
    pages.views(0, 100)
    pages.read(0, 100)
    noted = bytearray(len(before))
    for offset, length in memory.journal:
        noted[offset : offset + length] = b"\1" * length
    after = bytes(memory.bytes)
    changed = [at for at in range(len(after)) if after[at] != before[at]]
    assert len(changed) == 5002
    assert all(noted[at] for at in changed)
    assert sum(noted) == 5002
