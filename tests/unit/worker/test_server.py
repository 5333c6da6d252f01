"""The VMBus state machine: what a guest may do, and each kind of thing it may not."""

import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from teuthis.flows import FLOWS
from teuthis.worker.memory import PAGE_SIZE
from teuthis.worker.vmbus import messages as m
from teuthis.worker.vmbus.channel import Channel
from teuthis.worker.vmbus.gpadl import MAX_PER_CHANNEL

from ..recorded import MEMORY_SIZE, recorded
from .conftest import World
from .simulator import HEADER, service

FAILED = m.INVALID_PARAMETER


class Quiet:
    """A device that records what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def opened(self, channel: Channel) -> None:
        self.events.append("opened")

    def ready(self, channel: Channel) -> bool:
        self.events.append("ready")
        return False

    def closed(self, channel: Channel) -> None:
        self.events.append("closed")


@pytest.fixture
def device() -> Quiet:
    return Quiet()


def offer(world: World, device: Quiet) -> Channel:
    channel = world.server.offer(m.Offer(service(1), service(2), 0x2000), device)
    assert channel is not None
    world.guest.pump()
    return channel


# ---- connection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", m.VERSIONS)
def test_negotiation_accepts_known_versions(world: World, version: int) -> None:
    assert world.guest.connect(version)
    assert world.server.version == version


@pytest.mark.parametrize("version", [0, 0x40000, 0x30000, 0x50004, 0x60000, 0xFFFFFFFF])
def test_negotiation_refuses_other_versions(world: World, version: int) -> None:
    assert not world.guest.connect(version)
    assert world.server.version is None
    assert world.rejected("vmbus.initiate-contact") == 1


@pytest.mark.parametrize(
    ("version", "vp", "sint", "vtl", "connection"),
    [
        (0x50003, 1, 2, 0, 4),
        (0x50003, 0, 1, 0, 4),
        (0x50003, 0, 2, 1, 4),
        (0x50003, 0, 2, 0, 1),
        (0x40001, 0, 0, 0, 4),
    ],
)
def test_contact_with_a_wrong_target_is_refused(
    world: World, version: int, vp: int, sint: int, vtl: int, connection: int
) -> None:
    world.guest.post(14, struct.pack("<IIBB6xQQ", version, vp, sint, vtl, 0, 0), connection)
    assert world.guest.expect(15)[0] == 0


def test_messages_before_contact_are_refused(world: World) -> None:
    world.guest.post(3)
    world.guest.post(16)
    world.guest.pump()
    assert not world.guest.inbox
    assert world.rejected("vmbus.request-offers") == 1
    assert world.rejected("vmbus.unload") == 1


@pytest.mark.parametrize("number", sorted(set(m.INBOUND) - {14}))
def test_nothing_is_taken_before_contact(world: World, number: int) -> None:
    world.guest.post(number, bytes(64))
    world.guest.pump()
    assert not world.guest.inbox
    assert world.counters.snapshot()[m.INBOUND[number].flow].kinds == {"early": 1}


def test_messages_on_the_contact_connection_are_refused(connected: World) -> None:
    connected.guest.post(16, connection_id=4)
    assert connected.rejected("vmbus.unload") == 1


def test_second_request_for_offers_is_refused(connected: World) -> None:
    connected.guest.post(3)
    connected.guest.pump()
    assert not connected.guest.inbox
    assert connected.rejected("vmbus.request-offers") == 1


def test_unload_closes_everything_and_is_answered(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    connected.guest.channels[channel.relid].do_open()
    connected.guest.post(16)
    connected.guest.expect(17)
    assert device.events == ["opened", "closed"]
    assert not connected.transport.ports
    assert connected.server.version is None


def test_fresh_contact_resets_everything(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    connected.guest.channels[channel.relid].do_open()
    assert connected.guest.connect()
    assert device.events == ["opened", "closed"]
    assert not connected.transport.ports
    assert offer(connected, device).relid != channel.relid


def test_nothing_is_offered_before_the_guest_asks(world: World, device: Quiet) -> None:
    assert world.server.offer(m.Offer(service(1), service(2), 0), device) is None


def test_installed_devices_are_offered_whenever_a_guest_asks(world: World, device: Quiet) -> None:
    world.server.install(m.Offer(service(1), service(2), 0), device)
    for _ in range(2):  # a guest that loads its driver anew begins with contact again
        world.guest.channels.clear()
        assert world.guest.connect()
        assert len(world.guest.channels) == 1


# ---- unknown and short ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [0, 1, 2, 4, 6, 10, 12, 15, 17, 18, 19, 20, 23, 24, 25, 99, 2**32 - 1]
)
def test_unknown_messages_are_counted_and_ignored(connected: World, kind: int) -> None:
    connected.guest.post(kind, bytes(200))
    connected.guest.pump()
    assert not connected.guest.inbox
    assert connected.rejected("vmbus.unknown") == 1


@pytest.mark.parametrize("kind", list(m.INBOUND))
def test_short_messages_are_counted_and_ignored(connected: World, kind: int) -> None:
    minimum = FLOWS[m.INBOUND[kind].flow].min_bytes
    for size in range(minimum):
        connected.server.receive(1, 1, HEADER.pack(kind, 0)[:size].ljust(size, b"\0"))
    connected.guest.pump()
    assert not connected.guest.inbox
    assert connected.rejected("vmbus.unknown") == minimum


def test_other_message_types_and_giants_are_ignored(connected: World) -> None:
    connected.server.receive(1, 2, HEADER.pack(16, 0))
    connected.server.receive(1, 1, HEADER.pack(16, 0) + bytes(240))
    assert connected.rejected("vmbus.unknown") == 2


# ---- channels ------------------------------------------------------------------------------------


def test_offer_open_close_reopen_rescind_release(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    guest_side = connected.guest.channels[channel.relid]
    assert guest_side.connection_id == 0x2000 | channel.relid
    guest_side.do_open()
    assert connected.transport.ports == {guest_side.connection_id}
    assert guest_side.write(bytes(0), signal=True)
    connected.guest.pump()
    connected.guest.post(7, struct.pack("<I", channel.relid))
    connected.guest.pump()
    assert device.events == ["opened", "ready", "closed"]
    assert not connected.transport.ports
    connected.guest.post(11, struct.pack("<II", channel.relid, guest_side.gpadl))
    connected.guest.expect(12)
    guest_side.do_open()
    connected.server.rescind(channel)
    connected.guest.pump()
    assert device.events[3:] == ["opened", "closed"]
    assert (
        connected.rejected("vmbus.close-channel") == connected.rejected("vmbus.relid-released") == 0
    )


def test_relids_are_not_reused_before_they_are_released(world: World) -> None:
    world.guest.connect()
    relids = set()
    while (channel := world.server.offer(m.Offer(service(1), service(2), 0), Quiet())) is not None:
        world.server.outbox.clear()
        relids.add(channel.relid)
        world.server.rescind(channel)
    assert relids == set(range(1, 2048))
    world.guest.post(13, struct.pack("<I", 77))
    again = world.server.offer(m.Offer(service(1), service(2), 0), Quiet())
    assert again is not None
    assert again.relid == 77


@pytest.mark.parametrize(
    ("relid", "vp", "downstream"),
    [(None, 1, 7), (None, 0, 0), (None, 0, 1), (None, 0, 13), (None, 0, 14), (None, 0, 2**32 - 1)],
)
def test_bad_open_is_answered_with_failure(
    connected: World, device: Quiet, relid: int | None, vp: int, downstream: int
) -> None:
    channel = offer(connected, device)
    guest_side = connected.guest.channels[channel.relid]
    guest_side.share_ring()
    fields = (channel.relid, 5, guest_side.gpadl, vp, downstream)
    connected.guest.post(5, struct.pack("<5I120x", *fields))
    assert struct.unpack("<III", connected.guest.expect(6)) == (channel.relid, 5, FAILED)
    assert not device.events
    assert connected.rejected("vmbus.open-channel") == 1


def test_open_with_foreign_or_unknown_memory_fails(connected: World, device: Quiet) -> None:
    one, other = offer(connected, device), offer(connected, device)
    guest_side = connected.guest.channels[one.relid]
    guest_side.share_ring()
    for relid, gpadl in ((other.relid, guest_side.gpadl), (one.relid, 12345)):
        connected.guest.post(5, struct.pack("<5I120x", relid, 1, gpadl, 0, 7))
        assert struct.unpack("<III", connected.guest.expect(6))[2] == FAILED


def test_open_with_wild_indices_fails(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    guest_side = connected.guest.channels[channel.relid]
    guest_side.share_ring()
    guest_side.out.words[1] = 0x7FFF_FFF8
    connected.guest.post(5, struct.pack("<5I120x", channel.relid, 1, guest_side.gpadl, 0, 7))
    assert struct.unpack("<III", connected.guest.expect(6))[2] == FAILED
    assert connected.rejected("ring.control") == 1


def test_second_open_fails_and_leaves_the_first(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    guest_side = connected.guest.channels[channel.relid]
    guest_side.do_open()
    connected.guest.post(5, struct.pack("<5I120x", channel.relid, 2, guest_side.gpadl, 0, 7))
    assert struct.unpack("<III", connected.guest.expect(6))[2] == FAILED
    assert channel.open
    assert device.events == ["opened"]


def test_unknown_relids_are_ignored(connected: World) -> None:
    for kind, body in (
        (5, struct.pack("<5I120x", 9, 1, 1, 0, 7)),
        (7, b"\x09\0\0\0"),
        (13, b"\x09\0\0\0"),
    ):
        connected.guest.post(kind, body)
    connected.guest.pump()
    assert not connected.guest.inbox
    assert not connected.server.doorbell(9)
    for flow in ("vmbus.open-channel", "vmbus.close-channel", "vmbus.relid-released"):
        assert connected.rejected(flow) == 1


def test_releasing_a_channel_in_use_is_ignored(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    connected.guest.post(13, struct.pack("<I", channel.relid))
    assert connected.rejected("vmbus.relid-released") == 1


def test_modify_channel_is_answered(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    connected.guest.channels[channel.relid].do_open()
    for relid, vp, status in ((channel.relid, 0, 0), (channel.relid, 1, FAILED), (99, 0, FAILED)):
        connected.guest.post(22, struct.pack("<II", relid, vp))
        assert struct.unpack("<II", connected.guest.expect(24)) == (relid, status)
    assert connected.rejected("vmbus.modify-channel") == 2


def test_connect_request_for_no_service_is_refused(connected: World) -> None:
    connected.guest.post(21, service(5) + service(6))
    result = connected.guest.expect(23)
    assert result == service(5) + service(6) + struct.pack("<I", m.CONNECTION_REFUSED)
    assert connected.rejected("vmbus.tl-connect-request") == 1


# ---- guest memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [1, 26, 27, 54, 55, 128])
def test_descriptions_of_any_length_are_assembled(
    connected: World, device: Quiet, pages: int
) -> None:
    channel = offer(connected, device)
    connected.guest.share(channel.relid, list(range(100, 100 + pages)))


def test_description_is_torn_down_and_its_handle_is_free(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    handle = connected.guest.share(channel.relid, [100, 101])
    connected.guest.post(11, struct.pack("<II", channel.relid, handle))
    assert struct.unpack("<I", connected.guest.expect(12)) == (handle,)
    connected.guest.share_as(handle, channel.relid, [100])
    assert struct.unpack("<III", connected.guest.expect(10))[2] == 0


def test_teardown_of_the_unknown_is_answered_and_counted(connected: World) -> None:
    connected.guest.post(11, struct.pack("<II", 1, 77))
    assert struct.unpack("<I", connected.guest.expect(12)) == (77,)
    assert connected.rejected("vmbus.gpadl-teardown") == 1


def test_teardown_for_another_channel_is_ignored(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    handle = connected.guest.share(channel.relid, [100])
    connected.guest.post(11, struct.pack("<II", channel.relid + 1, handle))
    connected.guest.pump()
    assert not connected.guest.inbox
    assert connected.counters.snapshot()["vmbus.gpadl-teardown"].kinds == {"channel": 1}


def test_teardown_under_an_open_channel_is_ignored(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    guest_side = connected.guest.channels[channel.relid]
    guest_side.do_open()
    connected.guest.post(11, struct.pack("<II", channel.relid, guest_side.gpadl))
    connected.guest.pump()
    assert not connected.guest.inbox
    assert connected.rejected("vmbus.gpadl-teardown") == 1


@pytest.mark.parametrize(
    ("range_bytes", "ranges", "byte_count", "byte_offset", "pages"),
    [
        (16, 0, PAGE_SIZE, 0, [100]),
        (16, 2, PAGE_SIZE, 0, [100]),
        (16, 1, 0, 0, [100]),
        (16, 1, PAGE_SIZE, PAGE_SIZE, [100]),
        (16, 1, 2 * PAGE_SIZE, 0, [100]),
        (24, 1, PAGE_SIZE, 0, [100, 101]),
        (16, 1, PAGE_SIZE, 1, [100]),
        (16, 1, PAGE_SIZE, 0, [100, 101]),
        (16, 1, PAGE_SIZE, 0, [0]),
        (16, 1, PAGE_SIZE, 0, [2048]),
        (16, 1, PAGE_SIZE, 0, [1 << 20]),
        (16, 1, PAGE_SIZE, 0, [2**64 - 1]),
        (8, 1, 0xFFFFFFFF, 0, []),
    ],
)
def test_lying_descriptions_fail(
    connected: World,
    device: Quiet,
    range_bytes: int,
    ranges: int,
    byte_count: int,
    byte_offset: int,
    pages: list[int],
) -> None:
    channel = offer(connected, device)
    head = struct.pack("<IIHHII", channel.relid, 7, range_bytes, ranges, byte_count, byte_offset)
    connected.guest.post(8, head + struct.pack(f"<{len(pages)}Q", *pages))
    assert struct.unpack("<III", connected.guest.expect(10)) == (channel.relid, 7, FAILED)
    assert connected.rejected("vmbus.gpadl-header") == 1


def test_description_for_no_channel_or_a_used_handle_fails(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    connected.guest.share_as(7, channel.relid, [100])
    connected.guest.share_as(7, channel.relid, [100])
    connected.guest.share_as(8, 999, [100])
    statuses = [struct.unpack("<III", connected.guest.expect(10))[2] for _ in range(3)]
    assert statuses == [0, FAILED, FAILED]


def test_bodies_of_nothing_and_too_many_pages_are_refused(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    body = struct.pack("<IIQ", 0, 7, 100)
    connected.guest.post(9, body)
    assert connected.rejected("vmbus.gpadl-body") == 1
    head = struct.pack("<IIHHII", channel.relid, 7, 24, 1, 2 * PAGE_SIZE, 0)
    connected.guest.post(8, head + struct.pack("<Q", 100))
    connected.guest.post(9, struct.pack("<IIQQ", 0, 7, 100, 101))
    assert struct.unpack("<III", connected.guest.expect(10)) == (channel.relid, 7, FAILED)
    connected.guest.post(9, body)
    assert connected.rejected("vmbus.gpadl-body") == 3


def test_bodies_with_pages_that_are_no_memory_are_refused(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    head = struct.pack("<IIHHII", channel.relid, 7, 24, 1, 2 * PAGE_SIZE, 0)
    for page in (0, 1 << 20):
        connected.guest.post(8, head + struct.pack("<Q", 100))
        connected.guest.post(9, struct.pack("<IIQ", 0, 7, page))
        assert struct.unpack("<III", connected.guest.expect(10)) == (channel.relid, 7, FAILED)
    assert connected.counters.snapshot()["vmbus.gpadl-body"].kinds == {"page": 2}


def test_too_many_descriptions_fail(connected: World, device: Quiet) -> None:
    channel = offer(connected, device)
    for _ in range(MAX_PER_CHANNEL):
        connected.guest.share(channel.relid, [100])
    connected.guest.share_as(7, channel.relid, [100])
    assert struct.unpack("<III", connected.guest.expect(10))[2] == m.INSUFFICIENT_RESOURCES


def test_total_of_described_pages_is_bounded(connected: World) -> None:
    statuses = []
    for _ in range(2):
        channel = offer(connected, Quiet())
        for index in range(16):
            head = (channel.relid, channel.relid << 8 | index, 8 + 8 * 8000, 1, 8000 * PAGE_SIZE, 0)
            connected.guest.post(8, struct.pack("<IIHHII", *head) + struct.pack("<Q", 100))
            connected.guest.pump()
            statuses += [struct.unpack("<III", body)[2] for _, body in connected.guest.inbox]
            connected.guest.inbox.clear()
    assert statuses == [m.INSUFFICIENT_RESOURCES] * 16


# ---- anything ------------------------------------------------------------------------------------

SMALL = st.integers(0, 20) | st.sampled_from([0xE1E11, 0xE1E12, 0xE1E13, 2**32 - 1])
Step = tuple[int, int, list[int]]
MESSAGES: st.SearchStrategy[Step] = st.tuples(
    st.sampled_from([1, 1, 1, 4, 7]),
    st.sampled_from([*m.INBOUND, 77]),
    st.lists(SMALL, max_size=58),
)
RELIDS = st.integers(0, 3)
HANDLES = st.integers(1, 4) | st.integers(1, 40)


def described(relid: int, handle: int, first: int, count: int, announced: int) -> list[int]:
    """The words of a description of some pages, of which more may be announced."""
    pages = [word for page in range(first, first + count) for word in (page, 0)]
    return [relid, handle, 8 + 8 * announced | 1 << 16, announced * PAGE_SIZE, 0, *pages]


def sensible(number: int, *words: st.SearchStrategy[int]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(1), st.just(number), st.tuples(*words).map(list))


SENSIBLE = st.one_of(
    st.tuples(
        st.just(1),
        st.just(8),
        st.builds(
            described,
            *(RELIDS, HANDLES, st.integers(99, 120), st.integers(1, 8), st.integers(1, 9)),
        ),
    ),
    sensible(9, st.just(0), HANDLES, st.integers(99, 120), st.just(0)),
    sensible(5, RELIDS, SMALL, HANDLES, st.integers(0, 1), st.integers(0, 5)),
    *(sensible(number, RELIDS) for number in (7, 13)),
    sensible(11, RELIDS, HANDLES),
    sensible(22, RELIDS, st.integers(0, 1)),
    sensible(21, *[SMALL] * 8),
    sensible(14, st.sampled_from([*m.VERSIONS, 0x60000]), *[st.integers(0, 2)] * 7),
)
SENT = recorded(*(shape.flow for shape in m.INBOUND.values()))
STEPS = MESSAGES | SENSIBLE | SENT | st.sampled_from(["connect", "offer", "offer", "rescind"])


TOO_MANY: list[Step | str | bytes] = [
    (1, 8, described(1, handle, 99, 1, 1)) for handle in range(1, MAX_PER_CHANNEL + 2)
]
TOO_LARGE: list[Step | str | bytes] = [
    "offer",
    *((1, 8, described(1 + handle % 2, handle, 99, 1, 8000)) for handle in range(1, 20)),
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(True, TOO_MANY)
@example(True, TOO_LARGE)
@given(st.booleans(), st.lists(STEPS, max_size=40) | st.lists(STEPS, min_size=20, max_size=60))
def test_any_series_of_messages_is_survived(begun: bool, steps: list[Step | str | bytes]) -> None:
    world = World(MEMORY_SIZE)
    device = Quiet()
    channels: list[Channel] = []
    for step in (*(("connect", "offer") if begun else ()), *steps):
        if step == "connect":
            world.guest.initiate()
            world.guest.post(3)
        elif step == "offer":
            channel = world.server.offer(m.Offer(service(1), service(2), 0), device)
            if channel is not None:
                channels.append(channel)
        elif step == "rescind":
            for channel in channels:
                world.server.rescind(channel)
        elif isinstance(step, bytes):
            world.server.receive(4 if step[:1] == b"\x0e" else 1, 1, step)
        else:
            assert isinstance(step, tuple)
            connection, kind, words = step
            world.guest.post(kind, struct.pack(f"<{len(words)}I", *words), connection)
        for relid in range(4):
            world.server.doorbell(relid)
        world.transport.settle()
    world.server.receive(1, 1, HEADER.pack(16, 0))


@given(st.binary(max_size=240))
def test_any_message_is_decoded_or_unknown(payload: bytes) -> None:
    try:
        shape, record, _ = m.decode(payload)
    except m.UnknownMessage:
        return
    assert type(record) is shape.record
