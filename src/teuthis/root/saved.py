"""A saved machine as the root side handles it: bytes that it copies and never looks into.

Memory that holds nothing but zeros is not kept. The rest lies in a file at its place in guest
memory, so that restored machines can map it, and a map says for each page whether it is there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

import msgspec

if TYPE_CHECKING:
    from teuthis.root.first_pages import FirstPages
    from teuthis.root.network import Wanted
    from teuthis.root.processor import Processor

PAGE: Final = 4096
IN_FILE: Final = 0
ZERO: Final = 1
PLACED: Final = 2
"""In the page file of a machine: put into its memory before it runs."""
_CHUNK: Final = 1 << 20
_ZEROS: Final = bytes(PAGE)
HEADER: Final = bytes(PAGE)
"""Of the page file; see `teuthis.worker.template`."""


class Memory(msgspec.Struct, frozen=True):
    """The memory of a running VM: descriptors that the root side holds.

    Attributes:
        size: in bytes.
        own: the file that its processes share.
        template: where the pages are from that are not in `own` yet.
        pages: the page file, which says which those are.
    """

    size: int
    own: int
    template: int | None = None
    pages: int | None = None


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file is known by: it has not changed as long as this is the same."""

    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> Identity:
        """That of an open file."""
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


class SavedDisk(msgspec.Struct, frozen=True):
    """A disk of a saved machine.

    Attributes:
        path: its file, absolute.
        base: what the file was known by when the machine was saved.
        limit: bytes that the guest may have in layers; None: it cannot write.
        layer: read-only descriptor of what it had written.
    """

    path: str
    base: Identity
    limit: int | None = None
    layer: int | None = None


class Saved(msgspec.Struct, frozen=True):
    """A saved machine, ready to be started from. Closes its descriptors at its end.

    Attributes:
        memory_size: in bytes.
        template: read-only descriptor of the memory.
        pages: for each page `IN_FILE` or `ZERO`.
        hypervisor: the state of processor and partition.
        worker: the state of the worker.
        disks: its disks, by LUN.
        network: the network that it was on.
        agent: whether our agent is in it.
        end_when_hung: whether it ends when its kernel answers no heartbeats.
        processor: what ran the guest, and must go on running it.
        cpus: how many processors the guest has.
        first: the pages that its guest touches first, if that is known.
    """

    memory_size: int
    template: int
    pages: bytes
    hypervisor: bytes
    worker: bytes
    disks: tuple[SavedDisk, ...] = ()
    network: Wanted | None = None
    agent: bool = True
    end_when_hung: bool = False
    processor: Processor = "soft"
    cpus: int = 1
    first: FirstPages | None = None
    _held: ExitStack = msgspec.field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        for file in (self.template, *(disk.layer for disk in self.disks)):
            if file is not None:
                self._held.callback(os.close, file)

    def page_file(self) -> bytes:
        """The content of the page file of a VM that is started from this."""
        return self.first.page_file if self.first else HEADER + self.pages

    def fill(self, memory: int) -> None:
        """Copies all of the memory into the empty file `memory`."""
        for start, end in runs(self.pages):
            os.lseek(memory, start, os.SEEK_SET)
            while start < end:
                copied = os.sendfile(memory, self.template, start, end - start)
                if copied == 0:
                    raise OSError("a memory file is too short")
                start += copied

    def close(self) -> None:
        """Closes the files; VMs started from it have them for themselves."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def runs(pages: bytes) -> list[tuple[int, int]]:
    """Where a memory file holds data: (start, end) in bytes."""
    found = []
    at = pages.find(IN_FILE)
    while at >= 0:
        end = pages.find(ZERO, at)
        end = len(pages) if end < 0 else end
        found.append((at * PAGE, end * PAGE))
        at = pages.find(IN_FILE, end)
    return found


def copy(memory: Memory, target: int) -> bytes:
    """Copies the memory of a VM that stands still into the file `target`; returns the page map."""
    os.ftruncate(target, memory.size)
    pages = bytearray([ZERO]) * (memory.size // PAGE)
    for start, data in pieces(memory):
        run = start
        for at in range(0, len(data), PAGE):
            if data[at : at + PAGE] == _ZEROS:
                write_all(target, data[run - start : at], run)
                run = start + at + PAGE
            else:
                pages[(start + at) // PAGE] = IN_FILE
        write_all(target, data[run - start :], run)
    return bytes(pages)


def write_all(target: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` to a file, there."""
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written


def pieces(memory: Memory) -> Iterator[tuple[int, bytes]]:
    """Offset and content of all that may be other than zero, in whole pages."""
    if memory.template is None or memory.pages is None:
        for start, end in extents(memory.own, memory.size):
            yield from _read(memory.own, start, end)
        return
    pages = os.pread(memory.pages, PAGE + memory.size // PAGE, 0)[PAGE:]
    at = 0
    while at < len(pages):
        present = pages[at] != IN_FILE
        end = pages.find(b"\0", at) if present else len(pages) - len(pages[at:].lstrip(b"\0"))
        end = len(pages) if end < 0 else end
        if not present:
            yield from _read(memory.template, at * PAGE, end * PAGE)
        else:
            for start, stop in extents(memory.own, end * PAGE, at * PAGE):
                yield from _read(memory.own, start, stop)
        at = end


def extents(file: int, end: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data, in whole pages."""
    while start < end:
        try:
            start = os.lseek(file, start, os.SEEK_DATA)
        except OSError:  # nothing follows
            return
        if start >= end:
            return
        stop = min(os.lseek(file, start, os.SEEK_HOLE), end)
        yield start, stop
        start = stop


def _read(file: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    while start < end:
        data = os.pread(file, min(end - start, _CHUNK), start)
        if not data:
            raise OSError("a memory file is too short")
        yield start, data
        start += len(data)


def seal(file: int) -> None:
    """Makes a memory file that nobody can write or resize any more."""
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
