"""Rings: what Linux writes is read, what the host writes is read back, and no index is believed."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teuthis.flows import Counters
from teuthis.worker.memory import PAGE_SIZE, GuestMemory
from teuthis.worker.vmbus.ring import (
    COMPLETION,
    GPA_DIRECT,
    OVERHEAD,
    READ_MAX,
    WANTS_COMPLETION,
    Outgoing,
    RingError,
    RingReader,
    RingWriter,
    transfer_pages,
)

from ..recorded import recorded
from .simulator import Half, packet

WRITE, READ, MASK, PENDING = range(4)


class Ring:
    """A reader and a writer of the host, each with the guest's side of it."""

    def __init__(self, data_pages: int = 2) -> None:
        self.memory = GuestMemory(-1, (64 + 4 * data_pages) * PAGE_SIZE)
        self.counters = Counters()
        # Out of order, so that a copy has several pieces.
        out = [9, *[20 + data_pages - i for i in range(data_pages)]]
        into = [11, *[40 + 4 * data_pages - 2 * i for i in range(data_pages)]]
        self.out, self.into = Half(self.memory, out), Half(self.memory, into)
        self.reader = RingReader(self.memory, out, self.counters)
        self.writer = RingWriter(self.memory, into, self.counters)

    def put(self, raw: bytes) -> None:
        start = self.out.words[WRITE]
        self.out.move(start, raw)
        self.out.words[WRITE] = (start + len(raw)) % self.out.size

    def rejected(self, flow: str) -> int:
        return self.counters.snapshot()[flow].rejected


@pytest.fixture
def ring() -> Ring:
    return Ring()


def test_empty_ring_gives_nothing(ring: Ring) -> None:
    assert ring.reader.read() == []


def test_packets_are_read_in_order_across_the_wrap(ring: Ring) -> None:
    for round_number in range(50):
        bodies = [bytes([round_number]) * 8 * size for size in (1, 50, 3)]
        ring.put(b"".join(map(packet, bodies)))
        packets = ring.reader.read()
        assert [bytes(p.payload) for p in packets] == bodies
        assert {p.type for p in packets} == {6}
        assert ring.out.words[READ] == ring.out.words[WRITE]


def test_a_page_list_stands_before_the_payload(ring: Ring) -> None:
    ring.put(packet(b"payload!", GPA_DIRECT, header=bytes(range(24)), transaction=7, flags=1))
    (read,) = ring.reader.read()
    assert (read.type, read.flags, read.transaction) == (GPA_DIRECT, WANTS_COMPLETION, 7)
    assert bytes(read.header) == bytes(range(24))
    assert bytes(read.payload) == b"payload!"


@pytest.mark.parametrize("index", [1, 4, 8191, 8192, 8200, 2**31, 2**32 - 8])
def test_write_index_outside_the_ring_is_refused(ring: Ring, index: int) -> None:
    ring.out.words[WRITE] = index
    with pytest.raises(RingError):
        ring.reader.read()
    assert ring.rejected("ring.control") == 1


@pytest.mark.parametrize("index", [1, 8192, 2**32 - 8])
def test_read_index_outside_the_ring_is_refused(ring: Ring, index: int) -> None:
    ring.into.words[READ] = index
    with pytest.raises(RingError):
        ring.writer.room()
    assert ring.rejected("ring.control") == 1


def descriptor(kind: int = 6, offset8: int = 2, length8: int = 3) -> bytes:
    return struct.pack("<HHHHQ", kind, offset8, length8, 0, 0) + bytes(16)


@pytest.mark.parametrize(
    "raw",
    [
        bytes(8),
        bytes(16),
        descriptor(length8=4),
        descriptor(length8=0),
        descriptor(length8=1),
        descriptor(length8=0xFFFF),
        descriptor(offset8=0),
        descriptor(offset8=1),
        descriptor(offset8=4),
        descriptor(offset8=0xFFFF),
        descriptor(kind=0),
        descriptor(kind=7),
        descriptor(kind=0xFFFF),
        packet(b"good") + descriptor(length8=99),
    ],
)
def test_malformed_packets_are_refused(ring: Ring, raw: bytes) -> None:
    ring.put(raw)
    with pytest.raises(RingError):
        ring.reader.read()
    assert ring.rejected("ring.packet") == 1


def test_packet_larger_than_any_is_refused() -> None:
    ring = Ring(data_pages=6)
    ring.put(packet(bytes(16448)))
    with pytest.raises(RingError):
        ring.reader.read()


def test_a_ring_full_of_small_packets_is_taken_in_portions() -> None:
    ring = Ring(data_pages=400)
    smallest = packet(b"")
    count = ring.out.size // len(smallest) - 1
    ring.put(smallest * count)
    portions = [len(packets) for packets in iter(ring.reader.read, [])]
    assert sum(portions) == count
    assert max(portions) <= READ_MAX // len(smallest)
    assert ring.out.words[READ] == ring.out.words[WRITE]


def test_a_packet_that_the_portion_cuts_comes_whole_with_the_next() -> None:
    ring = Ring(data_pages=400)
    largest, small = packet(bytes(16000)), packet(b"end")
    ring.put(largest * 20 + small)
    packets = [each for portion in iter(ring.reader.read, []) for each in portion]
    assert [len(each.payload) for each in packets] == [16000] * 20 + [8]


def test_a_bad_packet_behind_a_portion_is_refused() -> None:
    ring = Ring(data_pages=400)
    good = packet(bytes(16000))
    ring.put(good * 20 + descriptor(length8=99))
    with pytest.raises(RingError):
        list(iter(ring.reader.read, []))
    assert ring.rejected("ring.packet") == 1


def test_guest_that_moves_the_read_index_hurts_only_itself(ring: Ring) -> None:
    ring.put(packet(b"one"))
    ring.out.words[READ] = 12345
    assert len(ring.reader.read()) == 1
    assert ring.out.words[READ] == ring.out.words[WRITE]


def test_guest_is_signalled_when_reading_made_the_room_it_waits_for(ring: Ring) -> None:
    ring.put(packet(bytes(6000)))
    ring.reader.read()
    assert not ring.reader.signal, "it does not wait"
    ring.out.words[PENDING] = 4000
    ring.put(packet(bytes(6000)))
    ring.reader.read()
    assert ring.reader.signal
    ring.put(packet(bytes(600)))
    ring.reader.read()
    assert not ring.reader.signal, "there was room before"
    ring.out.words[PENDING] = 9000
    ring.put(packet(bytes(6000)))
    ring.reader.read()
    assert not ring.reader.signal, "there is not enough yet"


def test_guest_without_the_feature_is_not_signalled(ring: Ring) -> None:
    ring.out.words[16] = 0
    ring.out.words[PENDING] = 4000
    ring.put(packet(bytes(6000)))
    ring.reader.read()
    assert not ring.reader.signal


def test_written_packets_are_what_linux_expects(ring: Ring) -> None:
    assert ring.writer.write([Outgoing(b"hello"), Outgoing(b"world!!!")])
    assert ring.into.take(0, 64) == packet(b"hello") + packet(b"world!!!", position=32)
    assert ring.into.words[WRITE] == 64


def test_a_completion_carries_its_transaction(ring: Ring) -> None:
    ring.writer.write([Outgoing(b"done", COMPLETION, 2**64 - 3)])
    assert ring.into.take(0, 32) == packet(b"done", COMPLETION, transaction=2**64 - 3)


def test_transfer_pages_name_their_ranges(ring: Ring) -> None:
    ring.writer.write([transfer_pages(b"message!", 0xCAFE, [(0, 60), (1600, 1514)], 9)])
    header = struct.pack("<HHI4I", 0xCAFE, 0, 2, 60, 0, 1514, 1600)
    expected = packet(b"message!", 7, header=header, transaction=9, flags=1)
    assert ring.into.take(0, len(expected)) == expected


def test_signal_only_when_empty_and_not_masked(ring: Ring) -> None:
    assert ring.writer.write([Outgoing(b"x")])
    assert not ring.writer.write([Outgoing(b"y")])
    ring.into.words[READ] = ring.into.words[WRITE]
    ring.into.words[MASK] = 1
    assert not ring.writer.write([Outgoing(b"z")])


def test_ring_is_never_filled_completely(ring: Ring) -> None:
    room = ring.writer.room()
    assert room == 8192 - 8 - OVERHEAD
    ring.writer.write([Outgoing(bytes(room))])
    assert ring.writer.room() == 0
    assert ring.into.words[WRITE] != ring.into.words[READ]


def test_writer_asks_for_room_and_takes_it_back(ring: Ring) -> None:
    assert ring.writer.wait_for(1024)
    assert ring.into.words[PENDING] == 0
    ring.writer.write([Outgoing(bytes(8000))])
    assert not ring.writer.wait_for(1024)
    assert ring.into.words[PENDING] == 1024 + OVERHEAD
    ring.into.words[READ] = ring.into.words[WRITE]
    assert ring.writer.room() >= 1024
    ring.writer.stop_waiting()
    assert ring.into.words[PENDING] == 0


def test_pages_outside_memory_are_refused(ring: Ring) -> None:
    outside = ring.memory.size // PAGE_SIZE
    for pages in ([9, outside], [9, 0], [0, 9], [9]):
        with pytest.raises(ValueError, match="page"):
            RingReader(ring.memory, pages, ring.counters)


@given(st.lists(st.binary(max_size=900) | recorded("hvsock.data"), max_size=60))
def test_any_payloads_survive_the_way_to_the_guest(payloads: list[bytes]) -> None:
    ring = Ring()
    mirror = RingReader(ring.memory, ring.into.pages, ring.counters)
    for payload in payloads:
        assert len(payload) <= ring.writer.room()
        ring.writer.write([Outgoing(payload)])
        (read,) = mirror.read()
        assert bytes(read.payload[: len(payload)]) == payload
        assert not any(read.payload[len(payload) :])


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.binary(max_size=200),
            st.one_of(
                st.none(), st.integers(0, 1100).map(lambda n: n * 8), st.integers(0, 2**32 - 1)
            ),
            st.integers(0, 2**32 - 1),
        ),
        max_size=8,
    ),
    st.lists(recorded("ring.packet"), max_size=4),
)
def test_any_ring_content_is_read_or_refused(
    steps: list[tuple[bytes, int | None, int]], packets: list[bytes]
) -> None:
    ring = Ring()
    for raw in packets:
        ring.put(raw[: len(raw) & ~7])
    for data, index, pending in steps:
        ring.out.words[PENDING] = pending
        ring.into.words[READ] = pending % 8192 & ~7
        try:
            if index is None:
                ring.put(packet(data))
            else:
                ring.out.move(0, data)
                ring.out.words[WRITE] = index
            for read in ring.reader.read():
                assert len(read.payload) <= 16448
            ring.writer.write([Outgoing(data[: ring.writer.room()])])
        except RingError:
            return
