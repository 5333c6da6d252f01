"""Guest RAM: one shared mapping, copied from once and never referred to while being judged.

The guest may change any byte at any moment. Callers take a copy, validate the copy and use only
the copy. Addresses below 3 GiB are file offsets; RAM beyond that continues at 4 GiB, as in
`hypervisor/src/memory.rs`.
"""

import mmap
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from teuthis.flows import FLOWS
from teuthis.worker.template import Template

PAGE_SIZE: Final = 4096
LOW_LIMIT: Final = FLOWS["memory.hole"].values["hole_first"]
HIGH_BASE: Final = FLOWS["memory.hole"].values["hole_end"]

_LOW_PAGES = LOW_LIMIT // PAGE_SIZE
_HIGH_PAGE = HIGH_BASE // PAGE_SIZE


class GuestMemory:
    """The RAM of one VM."""

    def __init__(self, descriptor: int, size: int, template: Template | None = None) -> None:
        """Maps `size` bytes of the memory file shared; -1 maps private memory, for tests.

        What is not in the file yet comes from `template`.
        """
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"guest memory of {size} bytes is not a number of pages")
        self.size = size
        self._template = template
        self.bytes = mmap.mmap(descriptor, size)
        self.view = memoryview(self.bytes)
        """For system calls that read into guest RAM or write out of it, without a copy."""
        self.words = self.view.cast("I")
        """Aligned 32-bit values, each read and written by one instruction."""
        self.journal: list[tuple[int, int]] | None = None
        """Takes (file offset, bytes) of all that is written, in a machine that is recorded."""

    def page_offset(self, page: int) -> int | None:
        """File offset of guest page number `page`, or None when it is not RAM."""
        if page >= _LOW_PAGES:
            page -= _HIGH_PAGE - _LOW_PAGES
            if page < _LOW_PAGES:
                return None
        offset = page * PAGE_SIZE
        return offset if 0 <= offset < self.size else None

    def wrote(self, offset: int, length: int) -> None:
        """Whoever writes to `bytes`, `view` or `words` says where."""
        if self.journal is not None:
            self.journal.append((offset, length))

    def touch(self, start: int, end: int) -> None:
        """Makes sure that the pages of these file offsets are here, to be read and written."""
        if self._template is not None:
            self._template.touch(self.bytes, start // PAGE_SIZE, -(-end // PAGE_SIZE))

    def read(self, address: int, length: int) -> bytes | None:
        """A copy of `length` bytes at guest physical `address`, or None when not all is RAM."""
        offset = self.page_offset(address // PAGE_SIZE)
        if offset is None or length < 0:
            return None
        offset += address % PAGE_SIZE
        end = offset + length
        if end > self.size or (offset < LOW_LIMIT < end):
            return None
        self.touch(offset, end)
        return self.bytes[offset:end]


class PageRange:
    """A buffer of the guest's: whole pages in its order, checked here once and for all.

    Neighbouring pages are merged into runs, so that a copy is usually one slice.
    """

    __slots__ = ("_memory", "_offsets", "_starts", "length")

    def __init__(self, memory: GuestMemory, pages: Sequence[int]) -> None:
        """Raises `ValueError` for page zero and for pages outside RAM."""
        self._memory = memory
        self.length = len(pages) * PAGE_SIZE
        self._starts: list[int] = []
        self._offsets: list[int] = []
        expected = None
        for index, page in enumerate(pages):
            offset = memory.page_offset(page)
            if page == 0 or offset is None:
                raise ValueError("a page outside guest memory")
            memory.touch(offset, offset + 1)
            if offset != expected:
                self._starts.append(index * PAGE_SIZE)
                self._offsets.append(offset)
            expected = offset + PAGE_SIZE

    def offset(self, start: int) -> int:
        """File offset of byte `start` of this buffer."""
        run = bisect_right(self._starts, start) - 1
        return self._offsets[run] + start - self._starts[run]

    def _pieces(self, start: int, length: int) -> list[tuple[int, int]]:
        """(file offset, length) of each contiguous piece of a range inside the buffer."""
        end = start + length
        if not 0 <= start <= end <= self.length:
            raise IndexError("range outside the buffer")
        starts, offsets = self._starts, self._offsets
        pieces = []
        run = bisect_right(starts, start) - 1
        while start < end:
            limit = starts[run + 1] if run + 1 < len(starts) else self.length
            piece = min(end, limit) - start
            pieces.append((offsets[run] + start - starts[run], piece))
            start += piece
            run += 1
        return pieces

    def views(self, start: int, length: int) -> list[memoryview]:
        """Guest RAM itself, piece by piece, to be read."""
        view = self._memory.view
        return [view[at : at + size] for at, size in self._pieces(start, length)]

    def targets(self, start: int, length: int) -> list[memoryview]:
        """Guest RAM itself, piece by piece, to be written."""
        for at, size in self._pieces(start, length):
            self._memory.wrote(at, size)
        return self.views(start, length)

    def read(self, start: int, length: int) -> bytes:
        """A copy of `length` bytes at byte `start`."""
        ram = self._memory.bytes
        pieces = self._pieces(start, length)
        if len(pieces) == 1:
            offset, length = pieces[0]
            return ram[offset : offset + length]
        return b"".join([ram[offset : offset + length] for offset, length in pieces])

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Copies `data` to byte `start`."""
        ram = self._memory.bytes
        at = 0
        for offset, length in self._pieces(start, len(data)):
            ram[offset : offset + length] = data[at : at + length]
            self._memory.wrote(offset, length)
            at += length
