"""Agent frames: accepted ones, and each kind of bad one."""

import struct
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.flows import FLOWS, Counters
from teuthis.worker.agent import frames
from teuthis.worker.agent.frames import (
    Done,
    Error,
    Exit,
    FrameDecoder,
    FrameError,
    Hello,
    Output,
    Started,
    Window,
)

from ..recorded import recorded
from .agent_guest import frame, parse_exec, u32

GOOD: list[tuple[bytes, frames.Frame]] = [
    (frame(0x80, u32(1)), Hello(1)),
    (frame(0x81, u32(120)), Started(120)),
    (frame(0x82, b"o"), Output(1, b"o")),
    (frame(0x82, b"out"), Output(1, b"out")),
    (frame(0x83, bytes(16384)), Output(2, bytes(16384))),
    (frame(0x84, u32(0, 255)), Exit(False, 255)),
    (frame(0x84, u32(1, 9)), Exit(True, 9)),
    (frame(0x85, u32(2) + "nicht da: ä".encode()), Error(2, "nicht da: ä")),
    (frame(0x86, u32(4096)), Window(4096)),
    (frame(0x87, struct.pack("<Q", 1 << 40)), Done(1 << 40)),
]
BAD = [
    frame(0x00),
    frame(0x01, b"x"),
    frame(0x7F),
    frame(0x88),
    frame(0xFF),
    frame(0x82, b""),
    frame(0x83, b""),
    b"\x82\x01\x00\x00\x00\x00\x00\x00",
    b"\x82\x00\x00\x80\x00\x00\x00\x00",
    struct.pack("<B3xI", 0x82, 16385),
    struct.pack("<B3xI", 0x82, 2**32 - 1),
    struct.pack("<B3xI", 0x80, 3),
    struct.pack("<B3xI", 0x80, 5),
    frame(0x81, u32(0)),
    frame(0x81, u32(2**31)),
    frame(0x84, u32(2, 0)),
    frame(0x84, u32(0, 256)),
    frame(0x84, u32(1, 0)),
    frame(0x84, u32(1, 65)),
    struct.pack("<B3xI", 0x84, 4),
    frame(0x85, u32(0)),
    frame(0x85, u32(4096)),
    frame(0x85, u32(2) + b"\xff"),
    struct.pack("<B3xI", 0x85, 261),
    frame(0x87, b"\xff" * 8),
    struct.pack("<B3xI", 0x87, 9),
    struct.pack("<B3xI", 0x81, 3),
    struct.pack("<B3xI", 0x86, 5),
]


@pytest.mark.parametrize(("raw", "expected"), GOOD)
def test_frame_is_decoded(raw: bytes, expected: frames.Frame) -> None:
    assert list(FrameDecoder(Counters()).feed(raw)) == [expected]


@pytest.mark.parametrize("raw", BAD)
def test_bad_frame_is_refused_after_good_ones(raw: bytes) -> None:
    decoder = FrameDecoder(Counters())
    stream = decoder.feed(GOOD[1][0] + raw)
    assert next(stream) == Started(120)
    with pytest.raises(FrameError) as caught:
        next(stream)
    assert caught.value.flow in FLOWS


@given(st.lists(st.sampled_from(GOOD), max_size=12), st.data())
def test_frames_may_be_split_anywhere(
    chosen: list[tuple[bytes, frames.Frame]], data: st.DataObject
) -> None:
    stream = b"".join(raw for raw, _ in chosen)
    decoder = FrameDecoder(Counters())
    found: list[frames.Frame] = []
    while stream:
        size = data.draw(st.integers(1, min(len(stream), 5000)))
        found += decoder.feed(stream[:size])
        stream = stream[size:]
    assert found == [expected for _, expected in chosen]


SENT = recorded("agent.hello", "agent.started", "agent.stdout", "agent.stderr", "agent.exit",
                "agent.error", "agent.window", "agent.done")  # fmt: skip


@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from([raw for raw, _ in GOOD]), SENT),
        max_size=8,
    )
)
def test_any_stream_is_decoded_or_refused(pieces: list[bytes]) -> None:
    counters = Counters()
    decoder = FrameDecoder(counters)
    with suppress(FrameError):
        for piece in pieces:
            assert all(isinstance(found, msgspec.Struct) for found in decoder.feed(piece))
            assert len(decoder._buffer) < 8 + 16384


def test_exec_is_encoded_as_the_agent_reads_it() -> None:
    raw = frames.encode_exec([b"a", b""], [b"K=V"], b"/", b"app:1000")
    assert raw[0] == 1
    assert parse_exec(raw[8:]) == ([b"a", b""], [b"K=V"], b"/", b"app:1000")
    frames.encode_exec([b"a"], [], b"/", b"x" * 256)


def test_frames_that_are_too_large_are_not_sent() -> None:
    with pytest.raises(ValueError, match="limit"):
        frames.encode_exec([b"x" * 65536], [], b"/", b"root")
    with pytest.raises(ValueError, match="limit"):
        frames.encode_exec([b"x"], [], b"/", b"x" * 257)
    with pytest.raises(ValueError, match="limit"):
        frames.encode_write_file(0, b"x" * 4097)
