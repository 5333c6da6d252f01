"""Page lists of GPA-direct packets: guest memory that a packet names for one transfer.

In the packet: u32 0, u32 number of ranges, then for each range {u32 byte count, u32 offset into the
first page, u64 page number for each page it touches}. The list is judged as the copy that the ring
reader made; the memory behind it belongs to the guest and is only ever a source or target of bytes.
"""

import struct
from typing import Final

from teuthis.flows import FLOWS, Counters
from teuthis.worker.memory import PAGE_SIZE, GuestMemory, PageRange

_HEAD = struct.Struct("<II")
_PAGE_NUMBER_BYTES = 8
MAX_RANGES: Final = FLOWS["ring.gpa-direct"].values["ranges_max"]
MAX_PAGES: Final = FLOWS["ring.gpa-direct"].values["pages_max"]


class GpaError(ValueError):
    """A list that contradicts itself, or names what is no guest memory."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class GuestBuffer:
    """Bytes of guest memory, in the guest's order: all of them are RAM."""

    __slots__ = ("_pages", "_start", "length")

    def __init__(self, pages: PageRange, start: int, length: int) -> None:
        self._pages = pages
        self._start = start
        self.length = length

    def views(self, start: int, length: int) -> list[memoryview]:
        """The memory itself, for a system call that reads it."""
        return self._pages.views(self._start + start, length)

    def targets(self, start: int, length: int) -> list[memoryview]:
        """The memory itself, for a system call that writes it."""
        return self._pages.targets(self._start + start, length)

    def read(self, start: int, length: int) -> bytes:
        """A copy of `length` bytes at byte `start`."""
        return self._pages.read(self._start + start, length)

    def write(self, start: int, data: bytes) -> None:
        """Copies `data` to byte `start`."""
        self._pages.write(self._start + start, data)


def buffers(memory: GuestMemory, header: memoryview, counters: Counters) -> list[GuestBuffer]:
    """The ranges in a packet's page list. Raises `GpaError`."""
    try:
        ranges = _parse(memory, header)
    except GpaError as error:
        counters.reject("ring.gpa-direct", error.kind)
        raise
    counters.accept("ring.gpa-direct", sum(each.length for each in ranges))
    return ranges


def _parse(memory: GuestMemory, header: memoryview) -> list[GuestBuffer]:
    if len(header) < _HEAD.size:
        raise GpaError("cut", "no page list")
    reserved, count = _HEAD.unpack_from(header)
    if reserved or not 1 <= count <= MAX_RANGES:
        raise GpaError("count", "an impossible number of ranges")
    found, pages_left, at = [], MAX_PAGES, _HEAD.size
    for _ in range(count):
        if len(header) - at < _HEAD.size:
            raise GpaError("cut", "fewer ranges than announced")
        length, offset = _HEAD.unpack_from(header, at)
        at += _HEAD.size
        pages = -(-(offset + length) // PAGE_SIZE)
        if length == 0 or offset >= PAGE_SIZE or pages > pages_left:
            raise GpaError("range", "an impossible range")
        end = at + pages * _PAGE_NUMBER_BYTES
        if end > len(header):
            raise GpaError("cut", "fewer pages than announced")
        try:
            found.append(GuestBuffer(PageRange(memory, header[at:end].cast("Q")), offset, length))
        except ValueError as error:
            raise GpaError("page", "a page that is no memory") from error
        pages_left -= pages
        at = end
    if at != len(header):
        raise GpaError("cut", "more pages than announced")
    return found
