"""The adapter over a channel, as Linux's netvsc drives it; a switch's end of the frame socket."""

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from teuthis.flows import FLOWS
from teuthis.worker.devices.network.device import (
    LET_GO_SECONDS,
    OFFER,
    SEND_SECTION,
    Network,
)
from teuthis.worker.devices.network.port import Port
from teuthis.worker.devices.network.rndis import PACKET_OVERHEAD, envelope
from teuthis.worker.loop import Loop
from teuthis.worker.memory import PAGE_SIZE
from teuthis.worker.vmbus.ring import Packet

from ...recorded import recorded
from ..conftest import World
from ..simulator import DESCRIPTOR, Channel
from ..simulator import packet as ring_packet
from .test_rndis import FRAME, LIES, MAC, MTU, message, packet, ppi, request

IN_BAND, TRANSFER, GPA_DIRECT, COMPLETION = 6, 7, 9, 11
NO_SECTION = 0xFFFF_FFFF
RECEIVE_PAGES, SEND_PAGES, RING_PAGES = 64, 8, 16
DATA_PAGE = 1900
FAILURE, SUCCESS = 2, 1


def nvsp(number: int, *words: int) -> bytes:
    return struct.pack(f"<I{len(words)}I", number, *words).ljust(40, b"\0")


def page_list(*ranges: tuple[int, int, list[int]]) -> bytes:
    return struct.pack("<II", 0, len(ranges)) + b"".join(
        struct.pack(f"<II{len(pages)}Q", length, offset, *pages) for length, offset, pages in ranges
    )


class Driver:
    """What Linux's netvsc does with a channel, step by step."""

    def __init__(self, world: World, mtu: int = MTU, *, opens: bool = True) -> None:
        self.world = world
        self.loop = Loop()
        near, self.switch = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.switch.setblocking(False)
        self.notes: list[str] = []
        self.device = Network(
            world.server,
            world.memory,
            world.counters,
            Port(self.loop, near.detach(), mtu + 14),
            MAC,
            mtu,
            self.notes.append,
            lambda: self.now,
        )
        self.now = 0.0
        self.channel = world.plugged(OFFER, self.device)
        if opens:
            self.channel.do_open(RING_PAGES)
        self.transaction = 0
        self.completions: dict[int, bytes] = {}
        self.deliveries: list[tuple[int, int, list[tuple[int, int]]]] = []
        """(transaction, channel, ranges)"""
        self.receive_pages: list[int] = []
        self.send_pages: list[int] = []

    # ---- packets -----------------------------------------------------------------------------

    def raw(
        self, payload: bytes, header: bytes = b"", *, kind: int = IN_BAND, flags: int = 1
    ) -> int:
        self.transaction += 1
        kind = GPA_DIRECT if header else kind
        raw = ring_packet(payload, kind, header=header, transaction=self.transaction, flags=flags)
        assert self.channel.write(raw)
        return self.transaction

    def turn(self) -> None:
        """Lets the host work, then takes what it sent."""
        for _ in range(3):
            self.world.transport.settle()
            self.loop.turn(0)
        half = self.channel.inn
        while half.words[0] != half.words[1]:
            read = half.words[1]
            kind, offset, length, flags, transaction = DESCRIPTOR.unpack(half.take(read, 16))
            header = half.take(read + 16, offset * 8 - 16)
            payload = half.take(read + offset * 8, (length - offset) * 8)
            if kind == COMPLETION:
                self.completions[transaction] = payload
            else:
                assert (kind, flags) == (TRANSFER, 1)
                assert offset * 8 >= 32
                identity, owns, count = struct.unpack_from("<HBxI", header)
                assert (identity, owns) == (0xCAFE, 0)
                flat = struct.unpack_from(f"<{2 * count}I", header, 8)
                number, channel, section, _ = struct.unpack_from("<4I", payload)
                assert (number, section) == (107, NO_SECTION)
                ranges = list(zip(flat[1::2], flat[::2], strict=True))
                self.deliveries.append((transaction, channel, ranges))
            before = half.free()
            half.words[1] = (read + length * 8 + 8) % half.size
            if half.words[3] and before <= half.words[3] < half.free():
                self.world.transport.signal(self.channel.relid)

    def ask(self, payload: bytes, header: bytes = b"", *, kind: int = IN_BAND) -> tuple[int, ...]:
        """Sends a packet; the words of its completion."""
        transaction = self.raw(payload, header, kind=kind)
        self.turn()
        return struct.unpack("<10I", self.completions.pop(transaction))

    def tell(self, payload: bytes) -> None:
        self.raw(payload, flags=0)
        self.turn()
        assert not self.completions

    # ---- the handshake -----------------------------------------------------------------------

    def begin(self) -> "Driver":
        assert self.ask(nvsp(1, 0x6_0001, 0x6_0001))[:4] == (2, 0x6_0001, 1, SUCCESS)
        self.tell(nvsp(125, MTU + 14, 0, 8, 0))
        self.tell(nvsp(100, 6, 0x1E))
        return self

    def share(self, pages: int) -> tuple[int, list[int]]:
        allocated = self.world.guest.allocate(pages)
        return self.world.guest.share(self.channel.relid, allocated), allocated

    def give_buffers(self) -> "Driver":
        handle, self.receive_pages = self.share(RECEIVE_PAGES)
        answer = self.ask(nvsp(101, handle, 0xCAFE))
        number, found, sections, offset, self.section, self.sections, end, *_ = answer
        assert (number, found, sections, offset) == (102, SUCCESS, 1, 0)
        assert self.section * self.sections == end <= RECEIVE_PAGES * PAGE_SIZE
        assert self.section >= MTU + 14 + PACKET_OVERHEAD
        handle, self.send_pages = self.share(SEND_PAGES)
        assert self.ask(nvsp(104, handle, 0))[:3] == (105, SUCCESS, SEND_SECTION)
        return self

    def up(self) -> "Driver":
        """The whole way to an interface that is up."""
        self.begin().give_buffers()
        assert struct.unpack_from("<3I", self.control(message(2, 1, 1, 0, 0x4000)), 8)[1] == 0
        assert self.control(request(4, 0x0101_0101))[-6:] == MAC
        assert self.control(request(5, 0x0001_010E, struct.pack("<I", 0xB)))[-4:] == bytes(4)
        return self

    def control(self, raw: bytes) -> bytes:
        """A control message; the answer that comes by the receive buffer."""
        assert self.send_pages_direct(raw, channel=1)[:2] == (108, SUCCESS)
        ((transaction, channel, ((offset, length),)),) = self.take()
        assert channel == 1
        answer = self.received(offset, length)
        self.give_back(transaction)
        return answer

    # ---- data --------------------------------------------------------------------------------

    def put(self, pages: list[int], at: int, data: bytes) -> None:
        for index, byte in enumerate(range(at, at + len(data))):
            address = pages[byte // PAGE_SIZE] * PAGE_SIZE + byte % PAGE_SIZE
            self.world.memory.bytes[address : address + 1] = data[index : index + 1]

    def send_pages_direct(
        self, data: bytes, *, channel: int = 0, section: tuple[int, int] = (NO_SECTION, 0)
    ) -> tuple[int, ...]:
        """Sends `data` by a page list of two ranges."""
        first = [DATA_PAGE, DATA_PAGE + 5]
        self.put(first, 100, data[:8])
        self.put([DATA_PAGE + 9, DATA_PAGE + 7], 50, data[8:])
        ranges = [(min(8, len(data)), 100, first[:1])]
        if len(data) > 8:
            pages = [DATA_PAGE + 9, DATA_PAGE + 7][: -(-(50 + len(data) - 8) // PAGE_SIZE)]
            ranges.append((len(data) - 8, 50, pages))
        return self.ask(nvsp(107, channel, *section), page_list(*ranges))

    def send_section(
        self, data: bytes, section: int = 1, size: int | None = None
    ) -> tuple[int, ...]:
        self.put(self.send_pages, section * SEND_SECTION, data)
        return self.ask(nvsp(107, 0, section, len(data) if size is None else size))

    def take(self) -> list[tuple[int, int, list[tuple[int, int]]]]:
        self.turn()
        taken, self.deliveries = self.deliveries, []
        return taken

    def received(self, offset: int, length: int) -> bytes:
        data = b""
        while length:
            page, at = divmod(offset, PAGE_SIZE)
            piece = min(length, PAGE_SIZE - at)
            address = self.receive_pages[page] * PAGE_SIZE + at
            data += self.world.memory.bytes[address : address + piece]
            offset, length = offset + piece, length - piece
        return data

    def give_back(self, transaction: int, payload: bytes = struct.pack("<II", 108, 1)) -> None:
        raw = ring_packet(payload, COMPLETION, transaction=transaction)
        assert self.channel.write(raw)
        self.turn()

    def frames(self) -> list[bytes]:
        """What the switch has got."""
        found = []
        while True:
            try:
                found.append(self.switch.recv(1 << 17))
            except BlockingIOError:
                return found

    def rejected(self, flow: str) -> int:
        return self.world.rejected(flow)

    def kinds(self, flow: str) -> set[str]:
        return set(self.world.counters.snapshot()[flow].kinds)


@pytest.fixture
def driver(world: World) -> Iterator[Driver]:
    made = Driver(world)
    yield made
    made.switch.close()


@pytest.fixture
def up(driver: Driver) -> Driver:
    return driver.up()


# ---- the handshake -------------------------------------------------------------------------------


def test_handshake_as_linux_does_it(driver: Driver) -> None:
    driver.up()
    assert not [flow for flow, count in driver.world.counters.snapshot().items() if count.rejected]


@pytest.mark.parametrize("version", [0x1, 0x5, 0x7_0000])
def test_unknown_version_is_refused(driver: Driver, version: int) -> None:
    assert driver.ask(nvsp(1, version, version))[:4] == (2, 0, 1, FAILURE)
    driver.begin()


def test_nothing_before_init(driver: Driver) -> None:
    handle, _ = driver.share(4)
    for payload in (nvsp(101, handle, 0xCAFE), nvsp(104, handle, 0), nvsp(107, 0, NO_SECTION, 0)):
        assert driver.ask(payload)[:2] == (108, FAILURE)
    driver.tell(nvsp(125, 1514, 0, 0, 0))
    driver.tell(nvsp(100, 6, 30))
    driver.tell(nvsp(103, 0xCAFE))
    driver.tell(nvsp(106, 0))
    for flow in ("nvsp.revoke-receive-buffer", "nvsp.revoke-send-buffer"):
        assert driver.kinds(flow) == {"early"}
    assert driver.rejected("nvsp.receive-buffer") == driver.rejected("nvsp.send-buffer") == 1
    assert driver.rejected("nvsp.ndis-config") == driver.rejected("nvsp.ndis-version") == 1
    assert driver.rejected("nvsp.rndis-packet") == 1


def test_buffers_that_cannot_be(driver: Driver) -> None:
    driver.begin()
    handle, _ = driver.share(RECEIVE_PAGES)
    for wrong in (nvsp(101, 0x999, 0xCAFE), nvsp(101, driver.channel.gpadl, 0xCAFE)):
        assert driver.ask(wrong)[:3] == (102, FAILURE, 0)
    assert driver.ask(nvsp(101, handle, 0xCAFF))[:2] == (102, FAILURE)
    assert driver.ask(nvsp(101, handle, 0xCAFE))[:2] == (102, SUCCESS)
    assert driver.ask(nvsp(101, handle, 0xCAFE))[:2] == (102, FAILURE)
    for wrong in (nvsp(104, 0x999, 0), nvsp(104, driver.channel.gpadl, 0), nvsp(104, handle, 1)):
        assert driver.ask(wrong)[:3] == (105, FAILURE, 0)
    assert driver.ask(nvsp(104, handle, 0))[:2] == (105, SUCCESS)
    assert driver.ask(nvsp(104, handle, 0))[:2] == (105, FAILURE)
    driver.tell(nvsp(103, 0xCAFF))
    driver.tell(nvsp(106, 1))
    assert driver.rejected("nvsp.revoke-receive-buffer") == 1
    assert driver.rejected("nvsp.revoke-send-buffer") == 1


def test_unknown_messages_are_completed(driver: Driver) -> None:
    driver.begin()
    for payload in (nvsp(0), nvsp(2), nvsp(128), nvsp(2**32 - 1), b"", nvsp(1)[:32]):
        assert driver.ask(payload)[:2] == (108, FAILURE)
    assert driver.rejected("nvsp.unknown") == 6


def test_a_guest_may_begin_anew(up: Driver) -> None:
    up.world.guest.post(7, struct.pack("<I", up.channel.relid))
    up.channel.open = False
    up.channel.do_open(RING_PAGES)
    up.up()
    assert up.send_section(bytes(packet()))[:2] == (108, SUCCESS)
    assert up.frames() == [FRAME]


# ---- guest to host -------------------------------------------------------------------------------


def test_frames_go_out_by_section_by_pages_and_by_both(up: Driver) -> None:
    raw = bytes(packet())
    assert up.send_section(raw)[:2] == (108, SUCCESS)
    assert up.send_section(raw, section=0)[:2] == (108, SUCCESS)
    assert up.send_pages_direct(raw)[:2] == (108, SUCCESS)
    large = bytes(packet(bytes(MTU + 14)))
    assert up.send_pages_direct(large)[:2] == (108, SUCCESS)
    up.put(up.send_pages, 2 * SEND_SECTION, raw[:44])
    assert up.send_pages_direct(raw[44:], section=(2, 44))[:2] == (108, SUCCESS)
    assert up.frames() == [FRAME, FRAME, FRAME, bytes(MTU + 14), FRAME]
    several = (raw + bytes(-len(raw) % 8)) * 3
    assert up.send_section(several)[:2] == (108, SUCCESS)
    assert up.frames() == [FRAME] * 3


def test_sections_outside_the_send_buffer(up: Driver) -> None:
    whole = SEND_PAGES * PAGE_SIZE // SEND_SECTION
    for section, size in ((whole, 104), (2**32 - 2, 104), (0, SEND_SECTION + 1), (0, 2**32 - 1)):
        assert up.ask(nvsp(107, 0, section, size))[:2] == (108, FAILURE)
    assert up.ask(nvsp(107, 2, 0, 104))[:2] == (108, FAILURE)
    assert up.ask(nvsp(107, 0, NO_SECTION, 104))[:2] == (108, FAILURE)
    assert up.rejected("nvsp.rndis-packet") == 5
    assert up.frames() == []


def test_page_lists_that_lie(up: Driver) -> None:
    beyond = [1 << 40]
    for ranges in (
        [(104, 0, beyond)],
        [(104, 0, [0])],
        [(PAGE_SIZE * 3, 0, [DATA_PAGE])],
        [(66000, 0, list(range(DATA_PAGE, DATA_PAGE + 17)))],
    ):
        assert up.ask(nvsp(107, 0, NO_SECTION, 0), page_list(*ranges))[:2] == (108, FAILURE)
    assert up.rejected("nvsp.rndis-packet") == 4
    assert up.frames() == []


def test_frames_that_lie_go_nowhere(up: Driver) -> None:
    information = packet(information=ppi(0))  # a checksum left open
    for lie in (*LIES, information, memoryview(message(9, 1, 2))):
        data = bytes(lie)
        # The last one that a packet's length leaves whole: what is cut is another lie.
        data = data[:4] + struct.pack("<I", len(data)) + data[8:]
        assert up.send_section(data)[:2] == (108, FAILURE)
    assert up.send_pages_direct(bytes(packet()), channel=1)[:2] == (108, FAILURE)
    assert up.kinds("rndis.packet") == set(FLOWS["rndis.packet"].rejects)
    assert up.rejected("rndis.packet") == len(LIES) + 3
    assert up.send_section(b"\1\0\0\0\xff\xff\xff\xff")[:2] == (108, FAILURE)
    one = bytes(packet(bytes(60)))
    padded = one + bytes(-len(one) % 8)
    assert up.send_section(padded * 9)[:2] == (108, FAILURE)
    assert up.send_pages_direct(message(6, 0), channel=1)[:2] == (108, FAILURE)
    assert up.kinds("rndis.unknown") == set(FLOWS["rndis.unknown"].rejects)
    assert len(up.frames()) == 8  # of the nine in one packet, those before it was one too many


def test_control_messages_of_impossible_size(up: Driver) -> None:
    numbers = ((2, "initialize"), (3, "halt"), (4, "query"), (5, "set"), (8, "keepalive"))
    for number, flow in numbers:
        assert up.send_pages_direct(message(number), channel=1)[:2] == (108, FAILURE)
        assert up.rejected(f"rndis.{flow}") == 1
    assert up.take() == []


def test_requests_that_reach_beyond_themselves(up: Driver) -> None:
    for number, flow in ((4, "query"), (5, "set")):
        lie = request(number, 0x0001_010E, bytes(4), offset=2**32 - 1)
        assert up.send_pages_direct(lie, channel=1)[:2] == (108, FAILURE)
        assert up.kinds(f"rndis.{flow}") == {"bounds"}
    assert up.take() == []


def test_no_frame_before_the_adapter_is_initialized(driver: Driver) -> None:
    driver.begin().give_buffers()
    assert driver.send_section(bytes(packet()))[:2] == (108, FAILURE)
    assert driver.frames() == []


def test_revoked_send_buffer_is_used_no_more(up: Driver) -> None:
    up.tell(nvsp(106, 0))
    assert up.send_section(bytes(packet()))[:2] == (108, FAILURE)
    assert up.frames() == []


def test_a_switch_that_takes_nothing_stops_the_guest_and_loses_nothing(up: Driver) -> None:
    sent = 0
    large = bytes(packet(bytes(MTU + 14)))
    for number in range(2000):
        up.put(up.send_pages, 0, large[:44] + struct.pack("<I", number))
        transaction = up.raw(nvsp(107, 0, 0, len(large)))
        up.turn()
        sent += 1
        if transaction not in up.completions:
            break
    else:
        raise AssertionError("the socket took all")
    found: list[bytes] = []
    while len(found) < sent:
        up.turn()
        found += up.frames()
    assert [struct.unpack_from("<I", each)[0] for each in found[:-1]] == list(range(sent - 1))
    up.turn()
    assert transaction in up.completions


# ---- host to guest -------------------------------------------------------------------------------


def test_frames_come_in_and_sections_come_back(up: Driver) -> None:
    for round_number in range(3 * up.sections // 16):
        sent = [bytes([round_number, index]) * 40 for index in range(16)]
        for each in sent:
            up.switch.send(each)
        found = []
        for transaction, channel, ranges in up.take():
            assert channel == 0
            for offset, length in ranges:
                found.append(up.received(offset, length))
            up.give_back(transaction)
        assert found == [envelope(80) + each for each in sent]


def test_a_guest_without_free_sections_is_given_nothing(up: Driver) -> None:
    total = up.sections + 8
    for number in range(total):
        up.switch.send(struct.pack("<I", number) * 20)
        up.turn()
    lent = [each for _, _, ranges in up.deliveries for each in ranges]
    assert len(lent) == len({offset for offset, _ in lent}) == up.sections
    taken, up.deliveries = up.deliveries, []
    for transaction, _, _ in taken:
        up.give_back(transaction)
    later = [each for _, _, ranges in up.take() for each in ranges]
    assert len(later) == 8


def test_completions_of_nothing(up: Driver) -> None:
    up.switch.send(FRAME)
    ((transaction, _, _),) = up.take()
    up.give_back(transaction + 1)
    up.give_back(0)
    up.give_back(transaction)
    up.give_back(transaction)
    assert up.rejected("nvsp.taken") == 3
    up.switch.send(FRAME)
    ((transaction, _, _),) = up.take()
    up.give_back(transaction, b"\0" * 8)
    assert up.rejected("nvsp.taken") == 4


def test_frames_too_large_for_the_guest(up: Driver) -> None:
    up.switch.send(bytes(MTU + 15))
    up.switch.send(bytes(13))
    up.switch.send(FRAME)
    (delivery,) = up.take()
    assert [length for _, length in delivery[2]] == [44 + 60]
    assert up.rejected("network.to-worker") == 2


def test_nothing_is_delivered_to_an_interface_that_is_down(driver: Driver) -> None:
    driver.begin().give_buffers()
    driver.control(message(2, 1, 1, 0, 0x4000))
    driver.switch.send(FRAME)
    assert driver.take() == []
    set_filter = request(5, 0x0001_010E, struct.pack("<I", 0xB))
    assert driver.send_pages_direct(set_filter, channel=1)[:2] == (108, SUCCESS)
    assert [channel for _, channel, _ in driver.take()] == [1, 0]


def test_revoked_receive_buffer_is_used_no_more(up: Driver) -> None:
    up.tell(nvsp(103, 0xCAFE))
    before = bytes(up.world.memory.bytes)
    up.switch.send(FRAME)
    assert up.take() == []
    after = bytes(up.world.memory.bytes)
    assert envelope(60) + FRAME not in after
    assert len(before) == len(after)


def test_a_full_ring_is_waited_for(up: Driver) -> None:
    """A guest that reads nothing for a while gets every completion in the end."""
    raw = bytes(packet())
    up.put(up.send_pages, 0, raw)
    sent = []
    for _ in range(4000):
        up.transaction += 1
        each = ring_packet(nvsp(107, 0, 0, len(raw)), transaction=up.transaction, flags=1)
        if not up.channel.write(each):
            break
        sent.append(up.transaction)
        up.world.transport.settle()
        up.frames()
    else:
        raise AssertionError("the ring took all")
    for _ in range(20):
        up.turn()
        up.frames()
    assert sorted(up.completions) == sent


def test_a_full_ring_with_all_sections_lent(up: Driver) -> None:
    """What gives sections back stands behind what waits for room in the ring: nothing is stuck."""
    for number in range(up.sections):
        up.switch.send(struct.pack("<I", number) * 20)
        up.turn()
    taken, up.deliveries = up.deliveries, []
    assert sum(len(ranges) for _, _, ranges in taken) == up.sections
    up.switch.send(FRAME)  # there is no section for it
    raw = bytes(packet())
    up.put(up.send_pages, 0, raw)
    sent = []
    fits = up.channel.inn.size // 64 + 8
    for _ in range(fits):  # completions fill the ring, which is not read
        up.transaction += 1
        each = ring_packet(nvsp(107, 0, 0, len(raw)), transaction=up.transaction, flags=1)
        if not up.channel.write(each):
            break
        sent.append(up.transaction)
        up.world.transport.settle()
        up.loop.turn(0)
        up.frames()
    for transaction, _, _ in taken:
        done = ring_packet(struct.pack("<II", 108, 1), COMPLETION, transaction=transaction)
        assert up.channel.write(done)
        up.world.transport.settle()
    for _ in range(20):
        up.turn()
        up.frames()
    assert sorted(up.completions) == sent
    assert [len(ranges) for _, _, ranges in up.deliveries] == [1]


def test_guest_that_asks_and_does_not_listen(up: Driver) -> None:
    up.tell(nvsp(103, 0xCAFE))
    ask = message(8, 1)
    for _ in range(16):
        assert up.send_pages_direct(ask, channel=1)[:2] == (108, SUCCESS)
    up.raw(nvsp(107, 1, NO_SECTION, 0), page_list((12, 100, [DATA_PAGE])))
    up.world.guest.pump()
    assert up.channel.relid not in up.world.guest.channels  # rescinded
    assert up.rejected("rndis.answer") == 1


# ---- the link ------------------------------------------------------------------------------------


def test_the_link_goes_down_with_the_switch(up: Driver) -> None:
    up.switch.close()
    ((transaction, channel, ((offset, length),)),) = up.take()
    assert channel == 1
    assert up.received(offset, length) == struct.pack("<5I", 7, 20, 0x4001_000C, 0, 0)
    up.give_back(transaction)
    assert len(up.notes) == 1
    assert up.send_section(bytes(packet()))[:2] == (108, SUCCESS)  # it goes nowhere
    assert up.control(request(4, 0x0001_0114))[-4:] == struct.pack("<I", 1)
    assert len(up.notes) == 1


# ---- anything ------------------------------------------------------------------------------------

WORDS = (0, 1, 2, 44, 60, 100, 101, 103, 104, 106, 107, 108, 125, 0xCAFE, NO_SECTION, 2**31)
word = st.one_of(st.sampled_from(WORDS), st.integers(0, 2**32 - 1))
SENT = recorded(
    *("nvsp.init", "nvsp.ndis-version", "nvsp.receive-buffer", "nvsp.revoke-receive-buffer"),
    *("nvsp.send-buffer", "nvsp.revoke-send-buffer", "nvsp.rndis-packet", "nvsp.taken"),
    "nvsp.ndis-config",
).map(lambda sent: [word for (word,) in struct.iter_unpack("<I", sent.ljust(40, b"\0")[:40])])
payloads = st.lists(word, min_size=8, max_size=12) | SENT


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([IN_BAND, GPA_DIRECT, COMPLETION]),
            payloads,
            st.lists(word, max_size=8),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
def test_any_packets_leave_the_adapter_standing(
    packets: list[tuple[int, list[int], list[int], int]],
) -> None:
    driver = Driver(World()).up()
    device = driver.device
    try:
        for kind, words, header, flags in packets:
            page = struct.pack("<II", 0, 1) + struct.pack(f"<{len(header)}I", *header)
            raw = ring_packet(
                struct.pack(f"<{len(words)}I", *words),
                kind,
                header=page[: len(page) // 8 * 8] if kind == GPA_DIRECT else b"",
                transaction=words[0],
                flags=flags,
            )
            driver.channel.write(raw, signal=True)
            driver.world.guest.pump()
            driver.loop.turn(0)
            driver.frames()
    finally:
        driver.switch.close()
    assert isinstance(device, Network)


def test_ring_errors_take_the_channel_away(up: Driver) -> None:
    up.channel.inn.words[1] = 4
    up.switch.send(FRAME)
    up.loop.turn(0)
    up.world.guest.pump()
    assert up.channel.relid not in up.world.guest.channels


# ---- saved machines ------------------------------------------------------------------------------


def replaced(driver: Driver, state: dict[str, Any] | None = None) -> Network:
    """The adapter of a machine that goes on with this one's guest."""
    server = driver.world.server
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.close()
    device = Network(
        server,
        driver.world.memory,
        driver.world.counters,
        Port(driver.loop, near.detach(), MTU + 14),
        bytes.fromhex("020000000099"),
        MTU,
        driver.notes.append,
        lambda: driver.now,
    )
    server._installed = [(OFFER, device)]
    saved = driver.device.save() if state is None else state
    driver.device.on_closed = lambda channel: None
    device.restore(saved, server._channels[driver.channel.relid])
    device.resumed()
    driver.world.guest.pump()
    return device


def offers(world: World) -> list[Channel]:
    offered: list[Channel] = []
    world.guest.on_offer = offered.append
    return offered


def let_go(driver: Driver) -> None:
    """As a driver does that is told to: the channel is closed, then taken away and forgotten."""
    driver.world.guest.post(7, struct.pack("<I", driver.channel.relid))
    driver.world.guest.pump()


def test_a_restored_machine_has_another_adapter(world: World, up: Driver) -> None:
    """The old one serves its driver until that lets go; then comes the new one."""
    driver = up
    offered = offers(world)
    device = replaced(driver)
    for _ in range(3):
        assert driver.send_pages_direct(bytes(packet(FRAME)))[:2] == (108, SUCCESS)
    assert driver.ask(b"\xff" * 40)[:2] == (108, FAILURE)
    assert driver.control(request(4, 0x0101_0101))[-6:] == MAC
    assert not driver.channel.rescinded
    assert not offered, "one adapter at a time: the new one is to be eth0 again"
    let_go(driver)
    assert driver.channel.rescinded
    assert [channel.interface for channel in offered] == [OFFER.interface]
    assert device.deadline() is None
    assert driver.frames() == driver.notes == []


@pytest.mark.parametrize("steps", range(5))
def test_a_driver_is_saved_at_any_step(world: World, driver: Driver, steps: int) -> None:
    """Each machine in a row of copies serves the next step."""
    device = driver.device
    step: list[Callable[[], object]] = [
        driver.begin,
        driver.give_buffers,
        lambda: driver.control(message(2, 1, 1, 0, 0x4000)),
        lambda: driver.control(request(4, 0x0101_0101)),
        lambda: driver.control(request(5, 0x0001_010E, struct.pack("<I", 0xB))),
    ]
    for number, each in enumerate(step):
        if number >= steps:
            device = replaced(driver, device.save())
        each()
    state = device.save()
    assert state["mac"] == MAC
    assert (state["initialized"], state["lent"], state["controls"]) == (True, {}, [])
    assert replaced(driver, state).save() == state


def test_answers_under_way_are_part_of_the_state(world: World, up: Driver) -> None:
    """An answer that was not taken, one that waits for room, a packet that was not handled."""
    driver = up
    driver.send_pages_direct(request(4, 0x0101_0101), channel=1)
    ((transaction, _, _),) = driver.take()
    driver.device._controls.append(message(0x8000_0004, 77))
    raw = nvsp(107, 0, 1, 0)
    driver.device._packets.append(Packet(IN_BAND, 1, 4711, memoryview(b""), memoryview(raw)))
    replaced(driver)
    world.server.doorbell(driver.channel.relid)
    ((other, _, ((offset, length),)),) = driver.take()
    assert driver.received(offset, length) == message(0x8000_0004, 77)
    assert other > transaction
    assert 4711 in driver.completions
    free = len(world.server._channels[driver.channel.relid].device._free)  # type: ignore[attr-defined]
    assert free == driver.sections - 2
    for each in (transaction, other):
        driver.give_back(each)
    assert not driver.world.rejected("nvsp.taken")


def test_a_driver_that_keeps_the_old_adapter_loses_it(world: World, up: Driver) -> None:
    driver = up
    offered = offers(world)
    device = replaced(driver)
    assert device.deadline() == LET_GO_SECONDS
    device.expire()
    world.guest.pump()
    assert not driver.channel.rescinded
    driver.now = LET_GO_SECONDS
    device.expire()
    world.guest.pump()
    assert driver.channel.rescinded
    assert len(offered) == 1
    assert device.deadline() is None


def test_an_old_adapter_that_was_taken_away_stays_so(world: World, up: Driver) -> None:
    """The machine is saved between the rescind and the driver's last word."""
    driver = up
    offered = offers(world)
    driver.channel.close = lambda: None  # type: ignore[method-assign]
    device = replaced(driver)
    driver.now = LET_GO_SECONDS
    device.expire()
    world.guest.pump()
    another = replaced(driver, device.save())
    assert not offered
    Channel.close(driver.channel)
    world.guest.pump()
    assert len(offered) == 1
    assert another.deadline() is None


def test_an_offer_that_was_not_taken_yet_is_one_of_the_new_adapter(world: World) -> None:
    driver = Driver(world, opens=False)
    offered = offers(world)
    device = replaced(driver)
    assert not offered
    driver.channel.do_open(RING_PAGES)
    driver.up()
    assert device._adapter.mac == bytes.fromhex("020000000099")
    driver.switch.close()


def test_an_adapter_that_nobody_uses_is_replaced_at_once(world: World, up: Driver) -> None:
    driver = up
    offered = offers(world)
    let_go(driver)
    assert not driver.channel.rescinded
    replaced(driver)
    assert driver.channel.rescinded
    assert len(offered) == 1


def test_a_guest_without_an_adapter_is_offered_one(world: World, up: Driver) -> None:
    offered = offers(world)
    state = up.device.save()
    up.device.restore(state, None)
    world.guest.pump()
    assert len(offered) == 1


def test_a_guest_that_begins_anew_finds_the_new_adapter(world: World, up: Driver) -> None:
    device = replaced(up)
    offered = offers(world)
    assert world.guest.connect()
    assert [channel.interface for channel in offered] == [OFFER.interface]
    assert not offered[0].rescinded
    offered[0].do_open(RING_PAGES)
    assert device.deadline() is None


@pytest.mark.parametrize(
    "change",
    [
        {"mac": b"short"},
        {"version": 7},
        {"initialized": 1},
        {"receive_buffer": -1},
        {"lent": {1: [0], 2: [0]}},
        {"lent": {1: [4096]}},
        {"lent": {1: []}},
        {"next_transaction": 0},
        {"next_transaction": 1 << 63},
        {"packets": [{"type": 1, "flags": 0, "transaction": 0, "header": b"", "payload": b""}]},
        {"packets": [{"type": 6, "flags": 0, "transaction": -1, "header": b"", "payload": b""}]},
        {"controls": [bytes(1025)]},
        {"controls": [b""] * 17},
        {"more": 1},
    ],
)
def test_states_that_cannot_be_are_refused(
    world: World, up: Driver, change: dict[str, Any]
) -> None:
    state = up.device.save()
    with pytest.raises(ValueError, match=r".+"):
        up.device.restore({**state, **change}, world.server._channels[up.channel.relid])


def test_memory_that_was_taken_back_is_no_reason_to_refuse(world: World, up: Driver) -> None:
    state = up.device.save()
    device = replaced(up, {**state, "receive_buffer": 4711, "send_buffer": 4711, "lent": {1: [0]}})
    assert device.save()["receive_buffer"] is None
    assert device.save()["lent"] == {}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "version": st.none() | st.integers(),
            "initialized": st.booleans(),
            "receive_buffer": st.none() | st.integers(0, 1 << 32),
            "lent": st.dictionaries(st.integers(), st.lists(st.integers(0, 50), max_size=4)),
            "packets": st.lists(
                st.fixed_dictionaries(
                    {
                        "type": st.sampled_from([IN_BAND, GPA_DIRECT, COMPLETION, 7]),
                        "flags": st.integers(0, 3),
                        "transaction": st.integers(0, 1 << 63),
                        "header": st.binary(max_size=64),
                        "payload": st.binary(max_size=64),
                    }
                ),
                max_size=4,
            ),
            "controls": st.lists(st.binary(max_size=1100), max_size=20),
        },
    )
)
def test_any_state_is_taken_or_refused(changes: dict[str, Any]) -> None:
    world = World()
    driver = Driver(world).up()
    try:
        state = {**driver.device.save(), **changes}
        try:
            device = replaced(driver, state)
        except ValueError:
            return
        world.server.doorbell(driver.channel.relid)
        device.save()
    finally:
        driver.switch.close()
