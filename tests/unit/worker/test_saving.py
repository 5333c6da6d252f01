"""Standing still: the order of pause, save and resume, and a hypervisor that lies about it."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.flows import Counters
from teuthis.protocol import Ended, Pause, Resume, Save, Status, StatusKind
from teuthis.worker import link
from teuthis.worker.ending import EndVM
from teuthis.worker.saving import Collector, Saving


@given(st.lists(st.tuples(st.binary(max_size=64), st.integers(-3, 200)), max_size=8))
def test_any_pieces_are_put_together_or_refused(pieces: list[tuple[bytes, int]]) -> None:
    collector, given_ = Collector(), b""
    left = sum(len(piece) for piece, _ in pieces)
    for piece, lie in pieces:
        given_ += piece
        left -= len(piece)
        try:
            whole = collector.add(piece, lie if 0 <= lie < 100 else left)
        except ValueError:
            return
        assert whole in (None, given_)
        if whole is not None:
            return


class Scene:
    """The root side and the hypervisor around it, as lists."""

    def __init__(self) -> None:
        self.sent: list[link.Outgoing] = []
        self.statuses: list[Status] = []
        self.resumed = 0
        self.counters = Counters()
        self.saving = Saving(
            self.sent.append, self.statuses.append, self.state, self.count, self.counters
        )

    def state(self) -> bytes:
        return b"of the worker"

    def count(self) -> None:
        self.resumed += 1

    def pause(self) -> None:
        self.saving.handle(Pause(1), [])
        self.saving.paused()
        assert self.statuses.pop() == Status(StatusKind.DONE, 1)

    def save(self, *pieces: tuple[bytes, int]) -> tuple[bytes, bytes]:
        """What arrives in the two sinks."""
        pipes = [os.pipe() for _ in range(2)]
        self.saving.handle(Save(2), [write for _, write in pipes])
        for piece, left in pieces:
            self.saving.piece(piece, left)
        contents = []
        for read, _ in pipes:
            with os.fdopen(read, "rb") as source:
                contents.append(source.read())
        return contents[0], contents[1]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_guest_is_paused_saved_and_resumed(scene: Scene) -> None:
    scene.pause()
    assert scene.saving.standing
    assert scene.save((b"ab", 2), (b"cd", 0)) == (b"abcd", b"of the worker")
    assert scene.statuses == [Status(StatusKind.DONE, 2, 17)]
    scene.saving.handle(Resume(3), [])
    assert not scene.saving.standing
    assert scene.resumed == 1
    assert scene.sent == [link.PAUSE, link.SAVE, link.RESUME]


def test_a_restored_guest_goes_on_when_the_hypervisor_has_its_state() -> None:
    done: list[str] = []
    sent: list[link.Outgoing] = []
    saving = Saving(
        sent.append,
        lambda status: None,
        lambda: b"",
        lambda: done.append("resumed"),
        Counters(),
        lambda: done.append("restored"),
    )
    saving.paused()
    assert (done, sent, saving.standing) == (["restored", "resumed"], [link.RESUME], False)
    with pytest.raises(EndVM):
        saving.paused()


def test_requests_out_of_order_fail(scene: Scene) -> None:
    read, write = os.pipe()
    scene.saving.handle(Resume(1), [])
    scene.saving.handle(Save(2), [write])
    with os.fdopen(read, "rb") as source:
        assert source.read() == b""  # its other end is closed
    scene.saving.handle(Pause(3), [])
    scene.saving.handle(Pause(4), [])
    scene.saving.paused()
    scene.saving.handle(Pause(5), [])
    busy = [Status(StatusKind.FAILED, number, errno.EBUSY) for number in (1, 2, 4)]
    done = [Status(StatusKind.DONE, 3), Status(StatusKind.FAILED, 5, errno.EBUSY)]
    assert scene.statuses == [*busy, *done]


def test_what_cannot_be_saved_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.pause()
    assert scene.save((b"", 0)) == (b"", b"")  # the processor cannot
    assert scene.statuses == [Status(StatusKind.FAILED, 2, errno.ENOTSUP)]

    def refuse() -> bytes:
        raise NotImplementedError("a device")

    monkeypatch.setattr(scene.saving, "_state", refuse)
    assert scene.save() == (b"", b"")
    assert scene.statuses == [Status(StatusKind.FAILED, 2, errno.ENOTSUP)] * 2


def test_a_root_side_that_does_not_read(scene: Scene) -> None:
    scene.pause()
    pipes = [os.pipe() for _ in range(2)]
    for read, _ in pipes:
        os.close(read)
    scene.saving.handle(Save(2), [write for _, write in pipes])
    scene.saving.piece(b"x", 0)
    assert scene.statuses == [Status(StatusKind.FAILED, 2, errno.EPIPE)]


def test_the_state_is_put_together_from_its_pieces() -> None:
    collector = Collector()
    assert collector.add(b"ab", 5) is None
    assert collector.add(b"cde", 2) is None
    assert collector.add(b"fg", 0) == b"abcdefg"


@pytest.mark.parametrize(
    "pieces",
    [
        [(b"a", 1 << 21)],
        [(b"a", 5), (b"b", 5)],
        [(b"a", 5), (b"bc", 4)],
        [(b"a", 5), (b"bcdefg", 0)],
        [(b"", 5)],
        [(b"a", 5), (b"", 5)],
    ],
)
def test_pieces_that_lie_end_the_vm(scene: Scene, pieces: list[tuple[bytes, int]]) -> None:
    scene.pause()
    sinks = [os.pipe() for _ in range(2)]
    scene.saving.handle(Save(2), [write for _, write in sinks])

    def all_pieces() -> None:
        for piece, left in pieces:
            scene.saving.piece(piece, left)

    with pytest.raises(EndVM) as caught:
        all_pieces()
    assert caught.value.reason is Ended.LINK_VIOLATION
    assert scene.counters.snapshot()["link.state"].rejected == 1
    for pair in sinks:
        for descriptor in pair:
            os.close(descriptor)


@given(st.lists(st.tuples(st.binary(max_size=256), st.integers(0, 1000))))
def test_any_pieces_are_taken_or_refused(pieces: list[tuple[bytes, int]]) -> None:
    collector = Collector()
    taken = b""
    for piece, left in pieces:
        try:
            whole = collector.add(piece, left)
        except ValueError:
            return
        taken += piece
        assert whole == (taken if left == 0 else None)
        if whole is not None:
            return


def test_what_was_not_asked_for_ends_the_vm(scene: Scene) -> None:
    with pytest.raises(EndVM):
        scene.saving.paused()
    with pytest.raises(EndVM):
        scene.saving.piece(b"x", 0)
    scene.pause()
    with pytest.raises(EndVM):
        scene.saving.paused()
    with pytest.raises(EndVM):
        scene.saving.piece(b"x", 0)
    counts = scene.counters.snapshot()
    assert (counts["link.paused"].rejected, counts["link.state"].rejected) == (2, 2)
