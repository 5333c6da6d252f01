"""SCSI disks: each command as Linux sends it, and each kind of command that must be refused."""

import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.worker.devices.storage.backend import SECTOR, Backend, Source, Target
from teuthis.worker.devices.storage.scsi import COMMANDS, CheckCondition, Mismatch
from teuthis.worker.devices.storage.vstor import Direction

from ...recorded import recorded
from ..conftest import World
from .conftest import SIZE, Bench, make_file, memory_disk

IN, OUT, NONE = Direction.IN, Direction.OUT, Direction.NONE
SECTORS = SIZE // SECTOR


def read(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIxHx", 0x28, flags, sector, count)


def write(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIxHx", 0x2A, flags, sector, count)


def unmap(length: int, flags: int = 0) -> bytes:
    return struct.pack(">BB5xHx", 0x42, flags, length)


def extents(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack(">QI4x", *each) for each in ranges)
    return struct.pack(">HH4x", len(body) + 6, len(body)) + body


def write_same(sector: int, count: int, flags: int = 8) -> bytes:
    return struct.pack(">BBQIBB", 0x93, flags, sector, count, 0, 0)


def sector(number: int) -> bytes:
    return bytes([number % 251]) * SECTOR


def test_inquiry(bench: Bench) -> None:
    data = bench.execute(bytes((0x12, 0, 0, 0, 36, 0)), IN, 36)
    assert data[:5] == bytes((0, 0, 5, 2, 31))
    assert data[8:16] == b"Msft    "
    assert len(data) == 36
    assert bench.execute(bytes((0x12, 0, 0, 0, 5, 0)), IN, 36) == data[:5]
    assert bench.execute(bytes((0x12, 0, 0, 1, 0, 0)), IN, 100) == data


@pytest.mark.parametrize("page", [0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
def test_vital_product_data(bench: Bench, page: int) -> None:
    data = bench.execute(bytes((0x12, 1, page, 1, 0, 0)), IN, 256)
    kind, code, length = struct.unpack_from(">BBH", data)
    assert (kind, code, length) == (0, page, len(data) - 4)
    if page == 0x00:
        assert page in data[4:]
    if page == 0xB0:
        assert len(data) == 64
        assert struct.unpack_from(">I", data, 8) == (2048,)


def test_disks_differ_in_number_only(world: World, bench: Bench) -> None:
    other = Bench(world, bench.backend)
    assert bench.execute(bytes((0x12, 1, 0x83, 1, 0, 0)), IN, 256)[8:16] == (
        0x3 << 60 | int.from_bytes(b"squid") << 16 | 3
    ).to_bytes(8)
    assert other.execute(bytes((0x12, 1, 0x80, 1, 0, 0)), IN, 256)[4:] == b"teuthis-003"


def test_capacity(bench: Bench) -> None:
    data = bench.execute(bytes((0x25, *bytes(9))), IN, 8)
    assert struct.unpack(">II", data) == (SECTORS - 1, SECTOR)
    data = bench.execute(struct.pack(">BB8xI2x", 0x9E, 0x10, 32), IN, 32)
    assert struct.unpack_from(">QI", data) == (SECTORS - 1, SECTOR)
    assert data[14] == 0xC0, "thin, and reads zeros where nothing is"
    bench.backend.size = 3 << 41
    data = bench.execute(bytes((0x25, *bytes(9))), IN, 8)
    assert struct.unpack(">II", data) == (0xFFFF_FFFF, SECTOR)


def test_mode_sense(bench: Bench, world: World, tmp_path: Path) -> None:
    data = bench.execute(bytes((0x1A, 0, 0x3F, 0, 255, 0)), IN, 255)
    assert data[:4] == bytes((len(data) - 1, 0, 0, 0))
    assert data[4:7] == bytes((8, 18, 4)), "it has a write cache: Linux must flush"
    assert bench.execute(bytes((0x1A, 8, 0x48, 0, 255, 0)), IN, 255)[6] == 0, "not to be changed"
    assert len(bench.execute(bytes((0x1A, 0, 0x0A, 0, 4, 0)), IN, 255)) == 4
    locked = Bench(world, make_file(tmp_path / "locked", writable=False))
    assert locked.execute(bytes((0x1A, 0, 0x3F, 0, 4, 0)), IN, 4)[2] == 0x80


def test_reads_and_writes_of_each_size(bench: Bench) -> None:
    forms: dict[int, Callable[[int, int, int], bytes]] = {
        6: lambda code, at, n: bytes((code, *at.to_bytes(3), n, 0)),
        10: lambda code, at, n: struct.pack(">BxIxHx", code, at, n),
        12: lambda code, at, n: struct.pack(">BxII2x", code, at, n),
        16: lambda code, at, n: struct.pack(">BxQI2x", code, at, n),
    }
    codes = {6: (0x08, 0x0A), 10: (0x28, 0x2A), 12: (0xA8, 0xAA), 16: (0x88, 0x8A)}
    for size, make in forms.items():
        reading, writing = codes[size]
        assert bench.execute(make(reading, 700, 3), IN, 3 * SECTOR) == b"".join(
            map(sector, (700, 701, 702))
        )
        data = os.urandom(5 * SECTOR)
        bench.execute(make(writing, size * 100, 5), OUT, data)
        assert bench.execute(make(reading, size * 100, 5), IN, 5 * SECTOR) == data
    assert bench.execute(forms[6](0x08, 10, 0), IN, 256 * SECTOR)[:SECTOR] == sector(10)
    assert bench.execute(read(0, 0)) == b""
    assert bench.execute(read(SECTORS, 0)) == b""
    bench.execute(write(SECTORS - 1, 1), OUT, b"z" * SECTOR)
    assert bench.execute(read(SECTORS - 1, 1), IN, SECTOR) == b"z" * SECTOR
    counts = bench.world.counters.snapshot()
    assert counts["scsi.write"].bytes == 21 * SECTOR
    assert not counts["scsi.write"].rejected


@pytest.mark.parametrize(
    ("cdb", "direction", "size"),
    [
        (read(SECTORS, 1), IN, SECTOR),
        (read(SECTORS - 1, 2), IN, 2 * SECTOR),
        (read(2**32 - 1, 0xFFFF), IN, SECTOR),
        (struct.pack(">BxQI2x", 0x88, 2**64 - 1, 1), IN, SECTOR),
        (struct.pack(">BxQI2x", 0x88, 0, 2**32 - 1), IN, SECTOR),
        (write(SECTORS, 1), OUT, SECTOR),
        (struct.pack(">BxQI2x", 0x8A, 2**64 - 1, 1), OUT, SECTOR),
        (write_same(SECTORS - 1, 2), OUT, SECTOR),
        (write_same(2**64 - 1, 1), OUT, SECTOR),
    ],
)
def test_sectors_beyond_the_disk(bench: Bench, cdb: bytes, direction: Direction, size: int) -> None:
    assert bench.refused(cdb, direction, bytes(size)) == (5, 0x21, 0)
    content = extents((0, 8), (SECTORS - 1, 2))
    assert bench.refused(unmap(len(content)), OUT, content) == (5, 0x21, 0)
    assert bench.execute(read(0, 1), IN, SECTOR) == sector(0), "nothing was done"


@pytest.mark.parametrize("count", [0, 1, 7, 9])
def test_lengths_that_do_not_match(bench: Bench, count: int) -> None:
    assert bench.refused(read(0, count), IN, 8 * SECTOR) is None
    assert bench.refused(write(0, count), OUT, 8 * SECTOR) is None
    assert bench.refused(read(0, 8)) is None
    assert bench.refused(write(0, 8)) is None
    assert bench.execute(read(0, 1), IN, SECTOR) == sector(0)
    assert bench.world.rejected("scsi.write") == 2


@pytest.mark.parametrize("code", COMMANDS)
def test_wrong_directions_are_refused(bench: Bench, code: int) -> None:
    command = COMMANDS[code]
    cdb = bytes((code, *bytes(command.cdb_length - 1)))
    wrong = {IN: OUT, OUT: IN}.get(command.direction)
    for direction in (wrong,) if wrong is not None else (IN, OUT):
        assert bench.refused(cdb, direction, SECTOR) is None
    assert bench.refused(cdb[:-1], command.direction, 0) is None, "a CDB that is cut short"
    assert bench.world.rejected(command.flow) >= 2


@pytest.mark.parametrize(
    ("cdb", "direction"),
    [
        (bytes((0x12, 2, 0, 0, 36, 0)), IN),
        (bytes((0x12, 0, 1, 0, 36, 0)), IN),
        (bytes((0x12, 1, 0x89, 0, 36, 0)), IN),
        (bytes((0x1A, 0, 0x19, 0, 36, 0)), IN),
        (bytes((0x1A, 0, 0x3F, 1, 36, 0)), IN),
        (struct.pack(">BB8xI2x", 0x9E, 0x12, 32), IN),
        (bytes((0x08, 0xE0, 0, 0, 1, 0)), IN),
        (read(0, 1, flags=0x20), IN),
        (read(0, 1, flags=0x01), IN),
        (write(0, 1, flags=0x60), OUT),
    ],
)
def test_fields_that_are_not_offered(bench: Bench, cdb: bytes, direction: Direction) -> None:
    assert bench.refused(cdb, direction, SECTOR) == (5, 0x24, 0)


def test_saved_mode_pages_are_refused(bench: Bench) -> None:
    assert bench.refused(bytes((0x1A, 0, 0xC8, 0, 36, 0)), IN, 36) == (5, 0x39, 0)


def test_commands_without_data(bench: Bench) -> None:
    for code, size in ((0x00, 6), (0x1B, 6), (0x35, 10), (0x91, 16)):
        assert bench.execute(bytes((code, *bytes(size - 1)))) == b""


@pytest.mark.parametrize("code", sorted(set(range(256)) - set(COMMANDS)))
def test_unknown_commands(bench: Bench, code: int) -> None:
    assert bench.refused(bytes((code, *bytes(15)))) == (5, 0x20, 0)
    assert bench.world.rejected("scsi.unknown") == 1


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_unmap_gives_space_back(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    before = blocks(path)
    content = extents((0, 2048), (4096, 2048))
    bench.execute(unmap(len(content)), OUT, content)
    assert blocks(path) <= before - (2 << 20) + (64 << 10)
    assert bench.execute(read(2047, 2), IN, 2 * SECTOR) == bytes(SECTOR) + sector(2048)
    assert path.stat().st_size == SIZE
    bench.execute(unmap(0))
    bench.execute(unmap(8), OUT, extents())
    bench.execute(unmap(24), OUT, extents((5, 0)))


@pytest.mark.parametrize(
    ("content", "sense"),
    [
        (bytes(7), (5, 0x1A, 0)),
        (extents((0, 8))[:20], (5, 0x26, 0)),
        (struct.pack(">HH4x", 30, 24) + bytes(24), (5, 0x26, 0)),
        (struct.pack(">HH4x", 30, 0xFFFF) + bytes(24), (5, 0x26, 0)),
        (extents(*[(0, 1)] * 257), (5, 0x26, 0)),
        (extents((0, 2**32 - 1)), (5, 0x26, 0)),
        (extents(*[(0, 2**20)] * 5), (5, 0x26, 0)),
    ],
)
def test_unmap_lists_that_lie(bench: Bench, content: bytes, sense: tuple[int, int, int]) -> None:
    assert bench.refused(unmap(len(content)), OUT, content) == sense
    assert bench.refused(unmap(8, flags=1), OUT, extents()) == (5, 0x24, 0)
    assert bench.refused(unmap(100), OUT, extents()) is None, "another length than the data"
    assert bench.execute(read(0, 1), IN, SECTOR) == sector(0)


@given(
    st.one_of(
        st.binary(max_size=80),
        recorded("scsi.unmap").map(lambda sent: sent[64:]),
        st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=5).map(
            lambda ranges: extents(*ranges)
        ),
    )
)
def test_any_unmap_list_is_taken_or_refused(content: bytes) -> None:
    with memory_disk(b"x" * SIZE) as disk, suppress(CheckCondition, Mismatch):
        Bench(World(), disk).execute(unmap(len(content)), OUT, content)


@pytest.mark.parametrize("punches", [True, False])
def test_write_same_zeroes(world: World, tmp_path: Path, punches: bool) -> None:
    bench = Bench(world, make_file(tmp_path / "disk", b"x" * SIZE, punches=punches))
    for flags in (0, 8):
        bench.execute(write_same(100, 3000, flags), OUT, bytes(SECTOR))
    bench.execute(write_same(5000, 10, flags=9))
    everything = (tmp_path / "disk").read_bytes()
    assert everything[100 * SECTOR : 3100 * SECTOR] == bytes(3000 * SECTOR)
    assert everything.count(b"x") == SIZE - 3010 * SECTOR
    assert everything[99 * SECTOR] == everything[3100 * SECTOR] == ord("x")


def test_write_same_of_what_is_not_offered(bench: Bench) -> None:
    assert bench.refused(write_same(0, 0), OUT, bytes(SECTOR)) == (5, 0x24, 0)
    assert bench.refused(write_same(0, 2**32 - 1), OUT, bytes(SECTOR)) == (5, 0x24, 0)
    assert bench.refused(write_same(0, 1, flags=0x10), OUT, bytes(SECTOR)) == (5, 0x24, 0)
    assert bench.refused(write_same(0, 1), OUT, bytes(511) + b"x") == (5, 0x26, 0)
    assert bench.refused(write_same(0, 1), OUT, bytes(1024)) is None
    assert bench.refused(write_same(0, 1)) is None
    bench.backend.punches = False
    assert bench.refused(write_same(0, 70000), OUT, bytes(SECTOR)) == (5, 0x24, 0)
    content = extents((0, 8))
    assert bench.refused(unmap(len(content)), OUT, content) == (5, 0x24, 0)


def test_read_only_disks_refuse_every_change(world: World, tmp_path: Path) -> None:
    bench = Bench(world, make_file(tmp_path / "disk", sector(0), writable=False))
    content = extents((0, 8))
    for cdb, data in (
        (bytes((0x0A, 0, 0, 0, 1, 0)), bytes(SECTOR)),
        (write(0, 1), bytes(SECTOR)),
        (struct.pack(">BxII2x", 0xAA, 0, 1), bytes(SECTOR)),
        (struct.pack(">BxQI2x", 0x8A, 0, 1), bytes(SECTOR)),
        (write_same(0, 1), bytes(SECTOR)),
        (unmap(len(content)), content),
    ):
        assert bench.refused(cdb, OUT, data) == (7, 0x27, 0)
    bench.execute(bytes((0x35, *bytes(9))))
    with pytest.raises(OSError, match="descriptor"):
        bench.backend.write(_Ones(), 0, SECTOR)
    assert (tmp_path / "disk").read_bytes()[:SECTOR] == sector(0)


class _Ones:
    def views(self, start: int, length: int) -> list[memoryview]:
        return [memoryview(b"\xff" * length)]


def test_a_flush_reaches_the_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    flush = bytes((0x35, *bytes(9)))
    bench.execute(flush)
    assert len(synced) == 0, "nothing was written"
    bench.execute(write(0, 1), OUT, bytes(SECTOR))
    bench.execute(flush)
    bench.execute(flush)
    assert len(synced) == 1
    bench.execute(write(0, 1, flags=8), OUT, bytes(SECTOR))
    assert len(synced) == 2, "forced unit access"
    content = extents((0, 8))
    bench.execute(unmap(len(content)), OUT, content)
    bench.execute(flush)
    assert len(synced) == 3


class Broken:
    """A backend whose file fails."""

    size, writable, punches = SIZE, True, True

    def __init__(self, error: int) -> None:
        self.error = error

    def _fail(self) -> None:
        raise OSError(self.error, os.strerror(self.error))

    def read(self, data: Target, offset: int, length: int) -> None:
        self._fail()

    def write(self, data: Source, offset: int, length: int) -> None:
        self._fail()

    def zero(self, offset: int, length: int) -> None:
        self._fail()

    def flush(self) -> None:
        self._fail()

    def load(self) -> None:
        pass

    def save(self) -> None:
        self._fail()


def test_errors_of_the_host_are_errors_of_the_disk(world: World) -> None:
    backend: Backend = Broken(errno.EIO)
    bench = Bench(world, backend)
    assert bench.refused(read(0, 1), IN, SECTOR) == (3, 0x11, 0)
    assert bench.refused(write(0, 1), OUT, SECTOR) == (3, 0x0C, 0)
    assert bench.refused(bytes((0x35, *bytes(9)))) == (3, 0x0C, 0)
    full = Bench(world, Broken(errno.ENOSPC))
    assert full.refused(write(0, 1), OUT, SECTOR) == (7, 0x27, 7)
    assert full.refused(write_same(0, 1), OUT, bytes(SECTOR)) == (7, 0x27, 7)
    content = extents((0, 8))
    assert full.refused(unmap(len(content)), OUT, content) == (7, 0x27, 7)
    assert [error.errno for error in bench.failures] == [errno.EIO] * 3
    assert len(full.failures) == 3


def test_a_file_that_became_shorter_is_an_error(bench: Bench, tmp_path: Path) -> None:
    os.truncate(tmp_path / "disk", SIZE // 2)
    assert bench.execute(read(0, 1), IN, SECTOR) == sector(0)
    assert bench.refused(read(SECTORS - 8, 8), IN, 8 * SECTOR) == (3, 0x11, 0)


def test_a_write_that_the_host_takes_in_pieces(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(world, make_file(tmp_path / "disk"))
    pwritev, preadv = os.pwritev, os.preadv

    def short(descriptor: int, views: list[memoryview], offset: int) -> int:
        return pwritev(descriptor, [views[0][:1000]], offset)

    def short_read(descriptor: int, views: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [views[0][:700]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    monkeypatch.setattr(os, "preadv", short_read)
    data = os.urandom(16 * SECTOR)
    bench.execute(write(3, 16), OUT, data)
    assert bench.execute(read(3, 16), IN, 16 * SECTOR) == data
