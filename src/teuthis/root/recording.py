"""A recording's file: the frame around what the hypervisor program writes and reads.

"TEUTHREC", u32 version, u32 zero, ten u64 of the machine (`Start`), u64 bytes of compressed
entries; the entries, compressed by zstd; SHA-256 of the memory at the end (zeros: there was none),
SHA-256 of everything before it. Little-endian.

The entries are bytes here: the hypervisor program judges them, behind its walls. Only the guest's
RAM at the start is written on this side, before anything of the guest's has run.
"""

import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Final, Self, cast

import zstandard

from teuthis.errors import RecordingError
from teuthis.flows import FLOWS, Counters
from teuthis.root.loader import BootState
from teuthis.root.saved import PAGE, Memory, pieces

_ENTRY: Final = FLOWS["recording.entry"].values
_MAGIC: Final = b"TEUTHREC"
VERSION: Final = FLOWS["recording.file"].values["version"]
LIMIT: Final = FLOWS["recording.stream"].values["limit"]
"""Largest file, in bytes."""
_HEAD: Final = struct.Struct("<8sII10QQ")
_MEMORY_ENTRY: Final = struct.Struct("<BIQ")
_DIGEST: Final = 32
_NO_MEMORY: Final = bytes(_DIGEST)
_CHUNK: Final = FLOWS["recording.stream"].max_bytes
_LEVEL: Final = 3
_MAX_MEMORY: Final = 1 << 40
_ZEROS: Final = bytes(PAGE)
_INSTRUCTIONS_PER_MICROSECOND: Final = 100
"""About what the software processor does: a recorded guest's time passes as ours does."""


@dataclass(frozen=True, slots=True)
class Start:
    """How the machine began, beside its memory: the options of the hypervisor program."""

    memory_size: int
    boot: BootState
    instructions_per_microsecond: int
    wall_clock: int
    seed: int

    @classmethod
    def of(cls, memory_size: int, boot: BootState) -> Self:
        """A machine that begins now, with random numbers of its own."""
        return cls(
            memory_size,
            boot,
            _INSTRUCTIONS_PER_MICROSECOND,
            int(time.time()),
            int.from_bytes(os.urandom(8)),
        )

    def options(self) -> list[str]:
        """As the hypervisor program takes them, but for the memory size."""
        numbers = {
            **self.boot.options(),
            "--wall-clock": self.wall_clock,
            "--seed": self.seed,
        }
        options = [word for name, value in numbers.items() for word in (name, f"{value:#x}")]
        return ["--clock", f"deterministic:{self.instructions_per_microsecond}", *options]


class Writer:
    """A recording in the making. Its thread takes what the hypervisor program writes."""

    def __init__(self, path: str | os.PathLike[str], start: Start, limit: int = LIMIT) -> None:
        """Makes the file, which holds all of a guest's memory: for its owner only.

        Raises:
            RecordingError: it cannot be made.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.fdopen(os.open(path, flags, 0o600), "w+b")
            self._file.write(_head(start, 0))
        except OSError as error:
            raise RecordingError(f"{os.fspath(path)}: {error.strerror}") from error
        self._start = start
        self._limit = limit
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self._thread: threading.Thread | None = None
        self.error: str | None = None
        """Why it is incomplete, if it is."""

    def load(self, memory: int) -> None:
        """Takes the guest's RAM as it is before the first instruction."""
        for offset, data in _filled(memory, self._start.memory_size):
            self._write(_MEMORY_ENTRY.pack(_ENTRY["memory"], 8 + len(data), offset) + data)

    def take(self, source: int, counters: Counters) -> None:
        """Takes over the pipe `source` and, from now on, what comes out of it.

        When that is too much it is closed, at which the hypervisor program ends the machine.
        """

        def pump() -> None:
            with os.fdopen(source, "rb", buffering=0) as pipe:
                while data := pipe.read(_CHUNK):
                    counters.accept("recording.stream", len(data))
                    try:
                        self._write(data)
                        if self._file.tell() > self._limit:
                            counters.reject("recording.stream", "limit")
                            self.error = (
                                f"the recording has reached its limit of {self._limit} bytes"
                            )
                    except OSError as error:
                        self.error = f"the recording could not be written: {error.strerror}"
                    if self.error:
                        return

        self._thread = threading.Thread(target=pump, name="teuthis-recording", daemon=True)
        self._thread.start()

    def finish(self, memory: int | None) -> None:
        """Completes the file, once the machine's processes are gone.

        `memory`: the machine's memory, if it ended in order.
        """
        if self._thread is not None:
            self._thread.join()
        end = _NO_MEMORY
        if memory is not None and self.error is None:
            end = memory_digest(memory, self._start.memory_size)
        try:
            self._file.write(self._compressor.flush())
            size = self._file.tell() - _HEAD.size
            self._file.write(end)
            self._file.seek(0)
            self._file.write(_head(self._start, size))
            self._file.seek(0)
            digest = hashlib.sha256()
            while data := self._file.read(_CHUNK):
                digest.update(data)
            self._file.write(digest.digest())
            self._file.flush()
        except OSError as error:
            self.error = f"the recording could not be written: {error.strerror}"

    def close(self) -> None:
        """Closes the file; before `finish` it is a recording that is cut off."""
        with suppress(OSError):
            self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(self._compressor.compress(data))


def _head(start: Start, size: int) -> bytes:
    clock = (start.instructions_per_microsecond, start.wall_clock, start.seed)
    return _HEAD.pack(_MAGIC, VERSION, 0, start.memory_size, *astuple(start.boot), *clock, size)


def _filled(memory: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Offset and content of what holds something, in pieces of an entry."""
    largest = _ENTRY["memory_piece"]
    for start, data in pieces(Memory(size, memory)):
        for at in range(0, len(data), largest):
            piece = data[at : at + largest]
            if piece.count(0) != len(piece):
                yield start + at, piece


def memory_digest(memory: int, size: int) -> bytes:
    """SHA-256 over the pages of a memory file that are not all zero, with their numbers."""
    digest = hashlib.sha256()
    for start, data in pieces(Memory(size, memory)):
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            if page != _ZEROS:
                digest.update((start + at).to_bytes(8, "little") + page)
    return digest.digest()


class Recording:
    """A recording whose frame is whole. Use it in a `with` block."""

    def __init__(self, file: IO[bytes], start: Start, size: int, memory: bytes) -> None:
        self.start = start
        self.memory = None if memory == _NO_MEMORY else memory
        """SHA-256 of the memory at the end; None: the recorded machine did not end in order."""
        self._file = file
        self._size = size

    def entries(self) -> Iterator[bytes]:
        """What the hypervisor program wrote.

        Raises:
            RecordingError: it does not unpack.
        """
        self._file.seek(_HEAD.size)
        window = FLOWS["recording.file"].values["window_max"]
        decompressor = zstandard.ZstdDecompressor(max_window_size=window)
        part = _Part(self._file, self._size)
        try:
            with decompressor.stream_reader(cast(IO[bytes], part)) as reader:
                while data := reader.read(_CHUNK):
                    yield data
        except zstandard.ZstdError as error:
            raise RecordingError(f"the recording does not unpack: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Part:
    """So many bytes of a file, from where it is."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def read(path: str | os.PathLike[str], counters: Counters | None = None) -> Recording:
    """Opens a recording, and checks its frame.

    Raises:
        RecordingError: it is none, or is damaged, cut off, or of another version.
    """
    counters = counters or Counters()
    name = os.fspath(path)
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (the `Recording` closes it)
        try:
            recording = _read(file, name)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise RecordingError(f"{name}: {error.strerror}") from error
    except _Refused as error:
        counters.reject("recording.file", error.kind)
        raise
    counters.accept("recording.file", os.fstat(file.fileno()).st_size)
    return recording


class _Refused(RecordingError):
    """With the kind of bad input that it is."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def _read(file: IO[bytes], name: str) -> Recording:
    head = file.read(_HEAD.size)
    if not head.startswith(_MAGIC):
        raise _Refused("foreign", f"{name} is no recording of a virtual machine")
    cut = _Refused("cut", f"{name} is cut off: its machine, or a copy, was interrupted")
    if len(head) < _HEAD.size:
        raise cut
    _, version, zero, memory_size, *registers, rate, wall_clock, seed, size = _HEAD.unpack(head)
    if version != VERSION:
        how = "newer than this program: update it"
        if version < VERSION:
            how = "which only the Teuthis that made it can replay"
        raise _Refused("version", f"{name} is a recording of version {version}, {how}")
    damaged = _Refused("damaged", f"{name} is not what was recorded: it is damaged")
    total = os.fstat(file.fileno()).st_size
    if size == 0 or total < _HEAD.size + size + 2 * _DIGEST:
        raise cut
    if zero or total > LIMIT + (1 << 20):
        raise damaged
    digest = hashlib.sha256(head)
    left = total - _HEAD.size - _DIGEST
    memory = b""
    while left:
        data = file.read(min(left, _CHUNK))
        if not data:
            raise cut
        digest.update(data)
        memory = (memory + data)[-_DIGEST:]
        left -= len(data)
    if file.read(_DIGEST) != digest.digest() or total != _HEAD.size + size + 2 * _DIGEST:
        raise damaged
    start = Start(memory_size, BootState(*registers), rate, wall_clock, seed)
    if not 0 < start.memory_size <= _MAX_MEMORY or start.memory_size % PAGE:
        raise damaged
    if start.instructions_per_microsecond == 0 or start.boot.gdt_limit > 0xFFFF:
        raise damaged
    return Recording(file, start, size, memory)
