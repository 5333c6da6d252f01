"""hv_sock streams: both ways of connecting, the order of endings, lying packets, time."""

import os
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from teuthis.worker.devices.hvsock import (
    LINGER_SECONDS,
    MAX_CONNECTIONS,
    OPEN_SECONDS,
    Connection,
    service_id,
    service_port,
)
from teuthis.worker.memory import PAGE_SIZE

from ..recorded import recorded
from .conftest import World
from .simulator import Channel, packet, service


class Recorder:
    """A handler that keeps what it sees."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: list[str] = []
        self.data = bytearray()

    def opened(self) -> None:
        self.events.append("opened")

    def received(self, data: bytes) -> None:
        self.data += data

    def closed(self) -> None:
        self.events.append("closed")


class Pair:
    """An open stream: the host's handler and the guest's channel."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.sockets.listen(99, self.accept)
        self.guest = world.guest.dial(99)

    def accept(self, connection: Connection) -> Recorder:
        self.host = Recorder(connection)
        return self.host


@pytest.fixture
def pair(connected: World) -> Pair:
    return Pair(connected)


def test_service_ids() -> None:
    assert service_id(0x7E07) == service(0x7E07)
    assert service_port(service(0x7E07)) == 0x7E07
    assert service_port(bytes(16)) is None


def test_guest_connects_and_both_talk(pair: Pair) -> None:
    assert pair.host.events == ["opened"]
    pair.guest.send(b"ping" * 5000)
    pair.host.connection.send(b"pong" * 50_000)
    pair.world.guest.pump()
    assert pair.host.data == b"ping" * 5000
    assert pair.guest.received == b"pong" * 50_000


def connect(world: World, port: int = 7) -> tuple[Recorder, Channel]:
    made: list[Recorder] = []

    def accept(connection: Connection) -> Recorder:
        made.append(Recorder(connection))
        return made[0]

    offered: list[Channel] = []
    world.guest.on_offer = offered.append
    assert world.sockets.connect(port, accept)
    world.guest.pump()
    (channel,) = offered
    assert channel.from_host
    assert channel.interface == service(port)
    return made[0], channel


def test_host_connects_and_what_it_said_before_arrives(connected: World) -> None:
    host, channel = connect(connected)
    host.connection.send(b"early")
    channel.do_open(pages_each=52)
    connected.guest.pump()
    assert host.events == ["opened"]
    assert channel.received == b"early"


def test_large_amounts_survive_small_rings(pair: Pair) -> None:
    there, back = os.urandom(500_000), os.urandom(500_000)
    pair.host.connection.send(back)
    pair.guest.send(there)
    pair.world.guest.pump()
    assert pair.host.data == there
    assert pair.guest.received == back


@pytest.mark.parametrize("size", [12, 16384])
def test_guest_that_never_reads_loses_its_stream(pair: Pair, size: int) -> None:
    sent = 0
    while "closed" not in pair.host.events:
        pair.host.connection.send(bytes(size))
        sent += size
        assert sent < 6 << 20
    assert sent > (1 << 17)
    pair.world.guest.pump()
    assert pair.guest.gone
    assert pair.world.rejected("hvsock.send") == 1


def test_what_is_read_in_time_has_no_limit(pair: Pair) -> None:
    for _ in range(40):
        pair.host.connection.send(bytes(300_000))
        for _ in range(300):
            pair.host.connection.send(b"x")
        pair.world.guest.pump()
    assert len(pair.guest.received) == 40 * 300_300


def test_guest_ends_first(pair: Pair) -> None:
    pair.guest.send(b"last words")
    pair.guest.finish()
    pair.world.guest.pump()
    assert pair.host.data == b"last words"
    assert pair.host.events == ["opened", "closed"]
    assert pair.guest.gone, "the host has to rescind before Linux lets go"
    assert pair.world.accepted("vmbus.close-channel") == 1
    assert pair.world.accepted("vmbus.relid-released") == 1
    assert not pair.world.transport.ports


def test_host_ends_first_and_all_arrives(pair: Pair) -> None:
    pair.host.connection.send(bytes(100_000))
    pair.host.connection.close()
    pair.host.connection.send(b"too late")
    pair.world.guest.pump()
    assert len(pair.guest.received) == 100_000
    assert pair.guest.ended
    assert pair.host.events == ["opened"]
    pair.guest.finish()
    pair.world.guest.pump()
    assert pair.host.events == ["opened", "closed"]
    assert pair.guest.gone


def test_guest_that_does_not_end_is_not_waited_for(pair: Pair) -> None:
    pair.host.connection.close()
    pair.world.guest.pump()
    assert pair.world.sockets.deadline() == pair.world.clock.now + LINGER_SECONDS
    pair.world.clock.now += LINGER_SECONDS - 1
    pair.world.sockets.expire()
    assert pair.host.events == ["opened"]
    pair.world.clock.now += 1
    pair.world.sockets.expire()
    assert pair.host.events == ["opened", "closed"]
    assert pair.world.sockets.deadline() is None


def test_guest_without_a_listener_is_not_waited_for(connected: World) -> None:
    host, channel = connect(connected)
    connected.clock.now += OPEN_SECONDS
    connected.sockets.expire()
    connected.guest.pump()
    assert host.events == ["closed"]
    assert channel.gone


def test_guest_closes_without_a_word(pair: Pair) -> None:
    pair.world.guest.post(7, struct.pack("<I", pair.guest.relid))
    pair.guest.open = False
    pair.world.guest.pump()
    assert pair.host.events == ["opened", "closed"]
    assert pair.guest.gone


def test_reset_closes_streams(pair: Pair) -> None:
    pair.world.guest.initiate()
    assert pair.host.events == ["opened", "closed"]
    pair.host.connection.send(b"into the void")
    pair.host.connection.close()
    pair.host.connection.abort()


def wrap(kind: int, size: int, data: bytes) -> bytes:
    return packet(struct.pack("<II", kind, size) + data)


@pytest.mark.parametrize(
    "raw",
    [
        wrap(0, 4, b"data"),
        wrap(2, 4, b"data"),
        wrap(1, 9, b"data"),
        wrap(1, 2**32 - 1, b"data"),
        wrap(1, 4, b"data" + bytes(16)),
        packet(b""),
        packet(struct.pack("<II", 1, 4) + b"data", kind=11),
    ],
)
def test_lying_packets_end_the_stream(pair: Pair, raw: bytes) -> None:
    pair.guest.write(raw)
    pair.world.guest.pump()
    assert pair.host.events == ["opened", "closed"]
    assert pair.host.data == b""
    assert pair.guest.gone
    assert pair.world.rejected("hvsock.data") == 1


def test_wild_ring_indices_end_the_stream_whoever_notices(pair: Pair) -> None:
    pair.guest.inn.words[1] = 0xFFFF_FFF8
    pair.host.connection.send(b"data")
    assert pair.host.events == ["opened", "closed"]


def test_connect_requests_that_are_refused(connected: World) -> None:
    connected.sockets.listen(98, lambda connection: None)
    for endpoint, wanted in (
        (service(1), service(97)),
        (service(1), service(98)),
        (service(1), bytes(16)),
    ):
        connected.guest.post(21, endpoint + wanted)
        connected.guest.expect(23)
    assert connected.rejected("vmbus.tl-connect-request") == 3


def test_connections_are_bounded(connected: World) -> None:
    connected.sockets.listen(99, Recorder)
    for _ in range(MAX_CONNECTIONS):
        connected.guest.post(21, service(1) + service(99))
    connected.guest.pump()
    assert len(connected.guest.channels) == MAX_CONNECTIONS
    connected.guest.post(21, service(1) + service(99))
    connected.guest.expect(23)


def test_connecting_before_the_guest_is_there_fails(world: World) -> None:
    assert not world.sockets.connect(7, Recorder)


def test_a_guest_that_connects_before_it_takes_offers_may_do_so_later(world: World) -> None:
    """The first greeting is the only one: a refused one must not keep its place."""
    made: list[Recorder] = []

    def accept(connection: Connection) -> Recorder:
        made.append(Recorder(connection))
        return made[-1]

    world.sockets.listen(99, accept)
    world.guest.initiate()
    world.guest.post(21, service(1) + service(99))
    world.guest.expect(23)
    assert not made
    world.guest.connect()
    world.guest.post(21, service(1) + service(99))
    world.guest.pump()
    assert len(made) == 1


WORDS = st.integers(0, 3) | st.sampled_from([8, 16384, 16385, 2**32 - 1])
RAW_PACKETS = st.builds(
    lambda kind, size, data: wrap(kind, size, data), WORDS, WORDS, st.binary(max_size=40)
)


@example([wrap(1, 4, b"more")], 20, 0, 0)
@example([wrap(1, 4, b"full"), wrap(1, 4, b"still")], 0, 200, 0)
@example([wrap(1, 40, bytes(40))], 0, 0, 7 * PAGE_SIZE - PAGE_SIZE - 8)
@example([wrap(1, 0, b"")], 0, 0, 0)
@given(
    st.lists(
        st.one_of(st.binary(max_size=80), RAW_PACKETS, recorded("hvsock.data").map(packet)),
        max_size=6,
    ),
    st.integers(0, 20),
    st.integers(0, 200),
    st.integers(0, 7 * PAGE_SIZE),
)
def test_any_packets_are_read_or_end_the_stream(
    packets: list[bytes], meanwhile: int, unread: int, pending: int
) -> None:
    """Also of a guest that writes while it is read, does not read, or waits for room.

    These are `meanwhile`, in packets; `unread`, in packets of the host's; `pending`, in bytes.
    """
    world = World()
    assert world.guest.connect()
    pair = Pair(world)
    received, left = pair.host.received, [meanwhile]

    def busy(data: bytes) -> None:
        received(data)
        if left[0]:
            left[0] -= 1
            pair.guest.write(wrap(1, 4, b"more"), signal=False)

    pair.host.received = busy  # type: ignore[method-assign]
    pair.guest.out.words[3] = pending
    for _ in range(unread):
        pair.host.connection.send(bytes(400))
    for raw in packets:
        if pair.guest.gone:
            break
        pair.guest.write(raw + bytes(-len(raw) % 8), signal=True)
        world.guest.pump()
    assert len(pair.host.data) <= sum(map(len, packets)) + 4 * meanwhile
