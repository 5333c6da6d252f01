"""The file of a recording: what was written is read, and nothing else."""

import hashlib
import os
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.errors import RecordingError
from teuthis.flows import Counters
from teuthis.root import recording
from teuthis.root.loader import BootState
from teuthis.root.recording import VERSION, Start, Writer, memory_digest, read

SIZE = 1 << 20
BOOT = BootState(0x100_0000, 0x2000, 0xF000, 0x4000, 0x3000, 31)
START = Start(SIZE, BOOT, 100, 1_800_000_000, 7)
HEAD = 16 + 88


def memory(content: dict[int, bytes]) -> int:
    file = os.memfd_create("ram")
    os.ftruncate(file, SIZE)
    for offset, data in content.items():
        os.pwrite(file, data, offset)
    return file


def write(path: Path, stream: bytes = b"entries" * 1000, limit: int = recording.LIMIT) -> Writer:
    ram = memory({0x5000: b"kernel"})
    writer = Writer(path, START, limit)
    writer.load(ram)
    source, sink = os.pipe()
    writer.take(source, Counters())
    with os.fdopen(sink, "wb") as pipe:
        pipe.write(stream)
    writer.finish(ram)
    writer.close()
    os.close(ram)
    return writer


def flood(sink: int) -> None:
    while True:
        os.write(sink, os.urandom(10_000))


def rewritten(content: bytes) -> bytes:
    """With a checksum that fits."""
    body = content[:-32]
    return body + hashlib.sha256(body).digest()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    assert write(path).error is None
    assert path.stat().st_mode & 0o777 == 0o600
    counters = Counters()
    with read(path, counters) as found:
        assert found.start == START
        entries = b"".join(found.entries())
        assert b"".join(found.entries()) == entries
        ram = memory({0x5000: b"kernel"})
        assert found.memory == memory_digest(ram, SIZE)
        os.close(ram)
    kind, length, offset = struct.unpack_from("<BIQ", entries)
    assert (kind, offset) == (1, 0x5000)
    assert entries[13:19] == b"kernel"
    assert entries[5 + length :] == b"entries" * 1000
    assert counters.snapshot()["recording.file"].count == 1


def test_the_memory_at_the_end_is_its_pages_and_where_they_are() -> None:
    files = [
        memory({}),
        memory({0x5000: b"a"}),
        memory({0x6000: b"a"}),
        memory({0x5000: b"a", 0x8000: bytes(4096)}),
    ]
    empty, one, elsewhere, zeros = (memory_digest(file, SIZE) for file in files)
    assert len({empty, one, elsewhere}) == 3
    assert zeros == one
    for file in files:
        os.close(file)


def test_a_recording_has_a_limit(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.rec", START, 100_000)
    source, sink = os.pipe()
    counters = Counters()
    writer.take(source, counters)
    with pytest.raises(BrokenPipeError):
        flood(sink)
    os.close(sink)
    writer.finish(None)
    writer.close()
    assert writer.error is not None
    assert "limit" in writer.error
    assert counters.snapshot()["recording.stream"].rejected == 1
    with read(tmp_path / "run.rec") as found:  # what there is can be replayed
        assert found.memory is None


def test_a_recording_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("missing/run.rec", "link"):
        with pytest.raises(RecordingError):
            Writer(tmp_path / name, START)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    write(path)
    good = path.read_bytes()

    def refused(content: bytes) -> str:
        path.write_bytes(content)
        counters = Counters()
        with pytest.raises(RecordingError) as caught:
            read(path, counters)
        assert counters.snapshot()["recording.file"].rejected == 1
        return str(caught.value)

    assert "no recording" in refused(b"")
    assert "no recording" in refused(b"#!/bin/sh\n")
    for length in (8, 20, HEAD - 1, HEAD, len(good) - 1):
        assert "cut off" in refused(good[:length])
    for at in (12, 16, HEAD - 1, HEAD + 5, len(good) - 40, len(good) - 1):
        changed = bytearray(good)
        changed[at] ^= 1
        assert "damaged" in refused(bytes(changed)) or at == HEAD - 1, at
    assert "damaged" in refused(good + b"x")
    for version, what in ((VERSION - 1, "that made it"), (VERSION + 1, "newer")):
        other = bytearray(good)
        other[8] = version
        message = refused(rewritten(bytes(other)))
        assert f"version {version}" in message
        assert what in message
    for at, value in ((16, 0), (16, 4097), (16, 1 << 41), (16 + 48, 1 << 16), (16 + 56, 0)):
        odd = bytearray(good)
        struct.pack_into("<Q", odd, at, value)
        assert "damaged" in refused(rewritten(bytes(odd)))


def test_entries_that_do_not_unpack_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    write(path)
    content = bytearray(path.read_bytes())
    content[HEAD : HEAD + 16] = b"not compressed  "
    path.write_bytes(rewritten(bytes(content)))
    with read(path) as found, pytest.raises(RecordingError, match="unpack"):
        list(found.entries())


@given(st.binary(max_size=4096), st.booleans())
def test_any_file_is_read_or_refused(content: bytes, framed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.rec"
        if framed:
            head = struct.pack("<8sII10QQ", b"TEUTHREC", VERSION, 0, SIZE, *[1] * 9, len(content))
            content = rewritten(head + content + bytes(64))
        path.write_bytes(content)
        try:
            with read(path) as found:
                size = sum(map(len, found.entries()))
                assert size <= 1 << 32
        except RecordingError:
            pass
