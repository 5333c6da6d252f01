"""A disk and its commands without a channel; a guest's storage driver over a channel."""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from teuthis.flows import Counters
from teuthis.worker.devices.storage.backend import SECTOR, Backend, File
from teuthis.worker.devices.storage.scsi import CheckCondition, Data, Disk, Mismatch
from teuthis.worker.devices.storage.storvsp import OFFER, Storvsp
from teuthis.worker.devices.storage.vstor import Direction
from teuthis.worker.memory import PAGE_SIZE
from teuthis.worker.vmbus.gpa import buffers

from ..conftest import World
from ..simulator import DESCRIPTOR, packet

SIZE = 4 << 20
GPA_DIRECT = 9
BEGIN, END, QUERY_VERSION, QUERY_PROPERTIES, EXECUTE = 7, 8, 9, 10, 3
OUT, IN, NONE = 0, 1, 2


def make_file(path: Path, content: bytes = b"", size: int = SIZE, **options: bool) -> File:
    """A disk's file with `content` and zeros behind it."""
    path.write_bytes(content)
    os.truncate(path, size)
    writable = options.get("writable", True)
    descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
    return File(descriptor, size, writable=writable, punches=options.get("punches", True))


@contextmanager
def memory_disk(content: bytes = b"", size: int = SIZE) -> Iterator[File]:
    """A disk in memory, for tests that a fuzzer runs by the thousand."""
    descriptor = os.memfd_create("disk")
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, content, 0)
    yield File(descriptor, size, writable=True, punches=True)
    os.close(descriptor)


def page_list(pages: list[int], length: int, offset: int = 0) -> bytes:
    return struct.pack(f"<IIII{len(pages)}Q", 0, 1, length, offset, *pages)


class Answer(NamedTuple):
    """A completion as the driver sees it."""

    status: int
    srb_status: int
    scsi_status: int
    moved: int
    sense: tuple[int, int, int] | None
    body: bytes


def decode(raw: bytes) -> Answer:
    operation, flags, status = struct.unpack_from("<III", raw)
    assert (operation, flags, len(raw)) == (1, 0, 64)
    _, srb_status, scsi_status = struct.unpack_from("<HBB", raw, 12)
    (moved,) = struct.unpack_from("<I", raw, 24)
    sense = (raw[28 + 2] & 15, raw[28 + 12], raw[28 + 13]) if srb_status & 0x80 else None
    return Answer(status, srb_status, scsi_status, moved, sense, raw[12:])


class Driver:
    """What Linux's storvsc does with a channel; requests are collected until `answers`."""

    def __init__(self, world: World, disks: list[Backend]) -> None:
        self.world = world
        self.notes: list[str] = []
        self.device = Storvsp(world.server, world.memory, world.counters, disks, self.notes.append)
        self.channel = world.plugged(OFFER, self.device)
        self.channel.do_open(9)
        self.next = 1

    def raw(self, payload: bytes, header: bytes = b"", *, kind: int = 6, flags: int = 1) -> int:
        self.next += 1
        kind = GPA_DIRECT if header else kind
        raw = packet(payload, kind, header=header, transaction=self.next, flags=flags)
        assert self.channel.write(raw)
        return self.next

    def answers(self) -> dict[int, Answer]:
        """Completions by transaction."""
        self.world.transport.settle()
        half, found = self.channel.inn, {}
        while half.words[0] != half.words[1]:
            read = half.words[1]
            kind, offset, length, _, transaction = DESCRIPTOR.unpack(half.take(read, 16))
            assert kind == 11
            found[transaction] = decode(half.take(read + offset * 8, (length - offset) * 8))
            half.words[1] = (read + length * 8 + 8) % half.size
        return found

    def ask(self, payload: bytes, header: bytes = b"") -> Answer:
        transaction = self.raw(payload, header)
        (answer,) = self.answers().items()
        assert answer[0] == transaction
        return answer[1]

    def operation(self, number: int, body: bytes = b"") -> Answer:
        return self.ask(struct.pack("<III", number, 1, 0) + body.ljust(52, b"\0"))

    def initialize(self) -> "Driver":
        assert self.operation(BEGIN).status == 0
        assert self.operation(QUERY_VERSION, struct.pack("<H", 0x0602)).status == 0
        assert self.operation(QUERY_PROPERTIES).status == 0
        assert self.operation(END).status == 0
        return self

    def scsi(
        self,
        cdb: bytes,
        direction: int = NONE,
        length: int = 0,
        *,
        path: int = 0,
        target: int = 0,
        lun: int = 0,
        header: bytes | None = None,
    ) -> Answer:
        """One command; its data are at page 1024 of guest memory."""
        pages = list(range(1024, 1024 + -(-length // PAGE_SIZE)))
        if header is None:
            header = page_list(pages, length) if length else b""
        return self.ask(srb(cdb, direction, length, path=path, target=target, lun=lun), header)

    @property
    def memory(self) -> bytes:
        """Guest memory from page 1024 on."""
        return self.world.memory.bytes[1024 * PAGE_SIZE :]

    def rejected(self, flow: str) -> int:
        return self.world.rejected(flow)


def srb(
    cdb: bytes,
    direction: int = NONE,
    length: int = 0,
    *,
    path: int = 0,
    target: int = 0,
    lun: int = 0,
    size: int = 52,
    cdb_length: int | None = None,
) -> bytes:
    return struct.pack("<III", EXECUTE, 1, 0) + struct.pack(
        "<HBBBBBBBBBBI20s16x", size, 0, 0, 0, path, target, lun,
        len(cdb) if cdb_length is None else cdb_length, 0x14, direction, 0, length, cdb,
    )  # fmt: skip


@pytest.fixture
def attach(world: World) -> Callable[..., Driver]:
    def make(*disks: Backend) -> Driver:
        return Driver(world, list(disks))

    return make


class Bench:
    """One disk without a channel; its data are at page 1024 of guest memory."""

    def __init__(self, world: World, backend: Backend) -> None:
        self.world = world
        self.backend = backend
        self.failures: list[OSError] = []
        self.disk = Disk(3, backend, world.counters, lambda lun, error: self.failures.append(error))

    def execute(
        self, cdb: bytes, direction: Direction = Direction.NONE, content: bytes | int = 0
    ) -> bytes:
        """Runs a command with `content` (or room for so many bytes); what it left in memory."""
        size = content if isinstance(content, int) else len(content)
        buffer = None
        if size:
            pages = list(range(1024, 1024 + -(-size // PAGE_SIZE)))
            raw = memoryview(page_list(pages, size))
            (buffer,) = buffers(self.world.memory, raw, Counters())
            buffer.write(0, b"\xee" * size if isinstance(content, int) else content)
        moved = self.disk.execute(cdb, Data(direction, size, buffer))
        return buffer.read(0, moved) if buffer else b""

    def refused(
        self, cdb: bytes, direction: Direction = Direction.NONE, content: bytes | int = 0
    ) -> tuple[int, int, int] | None:
        """The sense of a command that must fail; None: its data do not fit it."""
        try:
            self.execute(cdb, direction, content)
        except CheckCondition as failed:
            return failed.sense.key, failed.sense.code, failed.sense.qualifier
        except Mismatch:
            return None
        raise AssertionError("not refused")


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    content = b"".join(bytes([i % 251]) * SECTOR for i in range(SIZE // SECTOR))
    return Bench(world, make_file(tmp_path / "disk", content))
