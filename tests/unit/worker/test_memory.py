"""Guest RAM and page lists: the hole below 4 GiB, pieces, bounds."""

import mmap
import struct

import pytest
from fuzz.recorded.seeds import kept
from hypothesis import example, given
from hypothesis import strategies as st

from teuthis.worker.memory import HIGH_BASE, LOW_LIMIT, PAGE_SIZE, GuestMemory, PageRange
from teuthis.worker.template import Template

from ..recorded import MEMORY_SIZE

GIB = 1 << 30


@pytest.fixture(scope="module")
def large() -> GuestMemory:
    return GuestMemory(-1, 3 * GIB + 4 * PAGE_SIZE)


def test_hole_below_4_gib(large: GuestMemory) -> None:
    assert large.page_offset(3 * GIB // PAGE_SIZE - 1) == 3 * GIB - PAGE_SIZE
    assert large.page_offset(3 * GIB // PAGE_SIZE) is None
    assert large.page_offset(4 * GIB // PAGE_SIZE - 1) is None
    assert large.page_offset(4 * GIB // PAGE_SIZE) == 3 * GIB
    assert large.page_offset(4 * GIB // PAGE_SIZE + 3) == 3 * GIB + 3 * PAGE_SIZE
    assert large.page_offset(4 * GIB // PAGE_SIZE + 4) is None
    assert large.page_offset(2**64 - 1) is None


def test_read_is_bounded(large: GuestMemory) -> None:
    assert large.read(4 * GIB, 3) == bytes(3)
    assert large.read(3 * GIB - 2, 2) == bytes(2)
    assert large.read(3 * GIB - 2, 3) is None
    assert large.read(4 * GIB + 4 * PAGE_SIZE - 1, 2) is None
    assert large.read(3 * GIB, 1) is None


@pytest.mark.parametrize("size", [0, -4096, 1, 4097])
def test_memory_of_impossible_size(size: int) -> None:
    with pytest.raises(ValueError, match="pages"):
        GuestMemory(-1, size)


@pytest.mark.parametrize("page", [0, 16, 2**52, 2**64 - 1])
def test_page_outside_memory_is_refused(page: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        PageRange(GuestMemory(-1, 16 * PAGE_SIZE), [1, page])


def named(sent: bytes) -> list[int]:
    """The pages that a page list of one range names, each once."""
    return list(dict.fromkeys(page for (page,) in struct.iter_unpack("<Q", sent[16:])))


class Everywhere(Template):
    """A template whose pages are all there; it notes who touches them."""

    def __init__(self) -> None:
        self.touched: set[int] = set()

    def touch(self, ram: mmap.mmap, first: int, end: int) -> None:
        self.touched |= set(range(first, end))


@example([1], 0, b"", 0, LOW_LIMIT - 2, 4)
@example([1], 0, b"", 0, 15 * PAGE_SIZE, 8192)
@example([1], 0, b"", 0, HIGH_BASE, 4)
@example([1], 0, b"", 0, 0, -1)
@example([1], 0, b"", 1, 0, 0)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=8, unique=True)
    | st.sampled_from(kept("memory.ram")).map(named),
    st.integers(0, 8 * PAGE_SIZE),
    st.binary(max_size=3 * PAGE_SIZE),
    st.sampled_from([0, 0, 0, 1, PAGE_SIZE - 1]),
    st.integers(0, 16 * PAGE_SIZE) | st.integers(LOW_LIMIT - 9, HIGH_BASE + 9),
    st.integers(-1, 9000),
)
def test_what_is_written_is_read(
    pages: list[int], start: int, data: bytes, odd: int, address: int, length: int
) -> None:
    size = 16 * PAGE_SIZE if max(pages) < 16 else MEMORY_SIZE
    if odd:
        with pytest.raises(ValueError, match="number of pages"):
            GuestMemory(-1, size + odd)
        return
    template = Everywhere()
    memory = GuestMemory(-1, size, template)
    found = memory.read(address, length)
    inside = length >= 0 and address < size and address + length <= size
    assert found == (bytes(length) if inside else None)
    if found:
        assert {address // PAGE_SIZE, (address + length - 1) // PAGE_SIZE} <= template.touched
    memory.journal = []
    buffer = PageRange(memory, pages)
    if start + len(data) > buffer.length:
        with pytest.raises(IndexError):
            buffer.write(start, data)
        return
    buffer.write(start, data)
    assert buffer.read(start, len(data)) == data
    whole = b"".join(memory.bytes[p * PAGE_SIZE : (p + 1) * PAGE_SIZE] for p in pages)
    assert whole[start : start + len(data)] == data
    assert sum(map(bool, whole)) == sum(map(bool, data))
    assert sum(size for _, size in memory.journal) == len(data)
    assert buffer.offset(0) == pages[0] * PAGE_SIZE
