"""Page lists: what Linux writes is taken, and no list reaches beyond guest memory."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.flows import Counters
from teuthis.worker.memory import PAGE_SIZE, GuestMemory
from teuthis.worker.vmbus.gpa import MAX_PAGES, MAX_RANGES, GpaError, GuestBuffer, buffers

from ..recorded import MEMORY_SIZE, recorded

PAGES = 64


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(-1, PAGES * PAGE_SIZE)


def page_list(*ranges: tuple[int, int, list[int]], count: int | None = None) -> bytes:
    """A list of (byte count, offset, pages)."""
    head = struct.pack("<II", 0, len(ranges) if count is None else count)
    return head + b"".join(
        struct.pack(f"<II{len(pages)}Q", length, offset, *pages) for length, offset, pages in ranges
    )


def take(memory: GuestMemory, raw: bytes) -> list[GuestBuffer]:
    return buffers(memory, memoryview(raw), Counters())


def test_ranges_name_guest_memory(memory: GuestMemory) -> None:
    first, second = take(memory, page_list((5000, 100, [9, 5]), (8, 4088, [7])))
    first.write(0, bytes(range(250)) * 20)
    second.write(0, b"12345678")
    assert memory.bytes[9 * PAGE_SIZE + 100 : 10 * PAGE_SIZE] == (bytes(range(250)) * 20)[:3996]
    assert memory.bytes[5 * PAGE_SIZE :][:1004] == (bytes(range(250)) * 20)[3996:]
    assert memory.bytes[7 * PAGE_SIZE + 4088 : 8 * PAGE_SIZE] == b"12345678"
    assert first.read(3990, 10) == (bytes(range(250)) * 20)[3990:4000]
    assert [len(view) for view in first.views(3990, 10)] == [6, 4]
    assert [len(view) for view in take(memory, page_list((8192, 0, [5, 6])))[0].views(0, 8192)] == [
        8192
    ], "neighbours are one piece"


def test_a_page_may_be_named_twice(memory: GuestMemory) -> None:
    (buffer,) = take(memory, page_list((2 * PAGE_SIZE, 0, [9, 9])))
    buffer.write(0, bytes(PAGE_SIZE) + b"x" * PAGE_SIZE)
    assert memory.bytes[9 * PAGE_SIZE : 10 * PAGE_SIZE] == b"x" * PAGE_SIZE


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(8),
        page_list((8, 0, [1]))[:12],
        b"\1" + page_list((8, 0, [1]))[1:],
        page_list((0, 0, [])),
        page_list((8, PAGE_SIZE, [1])),
        page_list((8, 2**32 - 1, [1])),
        page_list((2**32 - 1, 0, [1])),
        page_list((PAGE_SIZE, 1, [1])),
        page_list((8, 0, [1, 2])),
        page_list((8, 0, [1]), count=2),
        page_list((8, 0, [1]), count=0),
        page_list((8, 0, [1]), count=2**32 - 1),
        page_list(*[(8, 0, [1])] * (MAX_RANGES + 1)),
        page_list(((MAX_PAGES + 1) * PAGE_SIZE, 0, [1] * (MAX_PAGES + 1))),
        page_list(*[(100 * PAGE_SIZE, 0, [1] * 100)] * 11),
    ],
)
def test_lists_that_lie_are_refused(memory: GuestMemory, raw: bytes) -> None:
    counters = Counters()
    with pytest.raises(GpaError):
        buffers(memory, memoryview(raw), counters)
    assert counters.snapshot()["ring.gpa-direct"].rejected == 1


@pytest.mark.parametrize("page", [0, PAGES, 2**32, 2**52, 2**64 - 1])
def test_pages_that_are_no_memory_are_refused(memory: GuestMemory, page: int) -> None:
    with pytest.raises(GpaError):
        take(memory, page_list((2 * PAGE_SIZE, 0, [5, page])))


RANGES = st.tuples(
    st.integers(0, 5 * PAGE_SIZE), st.integers(0, PAGE_SIZE), st.lists(st.integers(0, PAGES))
)


LISTS = st.builds(
    lambda ranges, tail, cut: (PAGES * PAGE_SIZE, (page_list(*ranges) + tail)[: -cut or None]),
    st.lists(RANGES, max_size=4),
    st.binary(max_size=16),
    st.integers(0, 200),
)


@given(LISTS | st.tuples(st.just(MEMORY_SIZE), recorded("ring.gpa-direct")))
def test_any_list_is_taken_or_refused(case: tuple[int, bytes]) -> None:
    size, raw = case
    memory = GuestMemory(-1, size)
    try:
        found = take(memory, raw)
    except GpaError:
        return
    for buffer in found:
        assert sum(map(len, buffer.views(0, buffer.length))) == buffer.length
