"""What goes to passt and what does not; the stream in both directions."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from teuthis.flows import FLOWS, Counters
from teuthis.switch import rules
from teuthis.switch.protocol import Member
from teuthis.switch.switch import Switch
from teuthis.switch.uplink import Destinations, Uplink
from teuthis.worker.loop import Loop

from ..recorded import recorded
from . import frames as f
from .frames import MAC_A, ip

GATEWAY, GUEST = ip("10.126.7.1"), ip("10.126.7.2")
HOST = "192.168.1.5"
TCP, UDP = 6, 17


def out(target: str, port: int = 80, *, source: int = 40000, protocol: int = TCP) -> bytes:
    return f.ipv4(GUEST, ip(target), f.ports(source, port, 20), protocol=protocol)


def back(source: str, port: int, *, target: int = 80, protocol: int = TCP) -> bytes:
    payload = f.ports(port, target, 20)
    return f.ipv4(ip(source), GUEST, payload, protocol=protocol, mac=f.MAC_B, to=MAC_A)


def make(*host_ports: int) -> Destinations:
    return Destinations(GATEWAY, [f"{HOST}/32"], host_ports)


@pytest.mark.parametrize(
    "frame",
    [
        out("93.184.216.34"),
        out("10.0.0.7", 53, protocol=UDP),
        out("192.168.1.6"),
        f.ipv4(GUEST, ip("1.1.1.1"), protocol=1),
        f.arp(address=GUEST, target=GATEWAY),
        f.ipv4(bytes(4), b"\xff" * 4, f.ports(68, 67)),
        f.ipv4(GUEST, GATEWAY, f.ports(68, 67)),
    ],
    ids=bytes.hex,
)
def test_what_may_go_out(frame: bytes) -> None:
    make().check(frame)


OUT_OF_REACH = [
    out("127.0.0.1"),
    out("127.255.255.254", 22),
    out("0.0.0.0"),
    out("169.254.169.254"),
    out("224.0.0.1", protocol=UDP),
    out("255.255.255.255", 68, protocol=UDP),
    out("240.0.0.1"),
    out(HOST, 22),
    out("10.126.7.1", 22),
    out("10.126.7.1", 53, protocol=UDP),
    out("10.126.7.1", 67),
    out("127.0.0.1", 67, protocol=UDP),
    f.ipv4(GUEST, GATEWAY, protocol=1),
    f.ipv4(GUEST, ip("1.1.1.1"), fragment=0x2000),
    f.ipv4(GUEST, ip("1.1.1.1"), fragment=1),
    f.ipv6(),
    f.icmpv6(133),
]


@pytest.mark.parametrize("frame", OUT_OF_REACH, ids=bytes.hex)
def test_the_host_is_out_of_reach(frame: bytes) -> None:
    with pytest.raises(rules.Refused):
        make().check(frame)


def test_open_ports_of_the_host() -> None:
    destinations = make(8080)
    destinations.check(out("10.126.7.1", 8080))
    destinations.check(out("10.126.7.1", 8080, protocol=UDP))
    for frame in (out("10.126.7.1", 8081), out(HOST, 8080), out("127.0.0.1", 8080)):
        with pytest.raises(rules.Refused):
            destinations.check(frame)


def test_answers_to_callers() -> None:
    destinations = make()
    answer = out("10.126.7.1", 50000, source=80)
    with pytest.raises(rules.Refused):
        destinations.check(answer)
    destinations.called(back("10.126.7.1", 50000))
    destinations.check(answer)
    destinations.called(back(HOST, 50001))
    destinations.check(out(HOST, 50001, source=80))
    for frame in (
        out("10.126.7.1", 50001, source=80),
        out("10.126.7.1", 50000, source=81),
        out("10.126.7.1", 50000, source=80, protocol=UDP),
    ):
        with pytest.raises(rules.Refused):
            destinations.check(frame)


def test_callers_are_forgotten_in_the_end() -> None:
    destinations = make()
    for port in range(1, 5000):
        destinations.called(back("10.126.7.1", port))
    destinations.check(out("10.126.7.1", 4999, source=80))
    with pytest.raises(rules.Refused):
        destinations.check(out("10.126.7.1", 1, source=80))


addresses = st.sampled_from([GATEWAY, ip(HOST), ip("1.1.1.1"), b"\xff" * 4]) | st.binary(
    min_size=4, max_size=4
)
packets = st.builds(
    lambda target, source, port, protocol, fragment: f.ipv4(
        GUEST, target, f.ports(source, port, 20), protocol=protocol, fragment=fragment
    ),
    addresses,
    *[st.sampled_from([67, 68, 80, 8080]) | st.integers(0, 65535)] * 2,
    st.sampled_from([TCP, UDP, 1]),
    st.sampled_from([0, 0, 0, 1]),
)


@example(out("10.126.7.1", 40, source=40), 40)
@example(f.ipv4(GUEST, GATEWAY, fragment=1), 40)
@example(out("10.126.7.1", 8080), 40)
@given(
    st.one_of(st.binary(max_size=120), packets, recorded("network.to-uplink")),
    st.sampled_from([67, 68, 80]),
)
def test_any_frame_goes_or_stays(raw: bytes, calling: int) -> None:
    destinations = make(8080)
    destinations.called(back("10.126.7.1", calling, target=calling))
    for frame in (raw, f.ethernet(0x0800, raw)):
        try:
            destinations.called(frame)
            destinations.check(frame)
        except rules.Refused:
            continue
        assert frame[12:14] in (b"\x08\x00", b"\x08\x06")
        assert frame[30:31] != b"\x7f" or frame[12:14] == b"\x08\x06"


class World:
    """A switch with one VM, and both other ends: the worker's and passt's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = Loop()
        self.switch = Switch(self.loop, lambda: self.now)
        self.counters = Counters()
        near, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stream, self.passt = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.worker.setblocking(False)
        self.passt.setblocking(False)
        member = Member(mac=MAC_A, mtu=65520, bytes_rate=10**9, frames_rate=10**6, address=GUEST)
        self.switch.join(member, near.detach(), self.counters)
        (port,) = self.switch.ports
        self.stream = stream.detach()
        self.uplink = Uplink(self.switch, self.stream, make(), port)

    def turn(self) -> None:
        for _ in range(4):
            self.loop.turn(0)

    def frames(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.worker.recv(1 << 17))
            except BlockingIOError:
                return found

    def rejected(self, flow: str) -> int:
        return self.counters.snapshot()[flow].rejected

    def close(self) -> None:
        self.worker.close()
        self.passt.close()
        for port in self.switch.ports:
            self.switch.leave(port)
        os.close(self.stream)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_frames_go_with_their_length(world: World) -> None:
    world.worker.send(out("93.184.216.34"))
    world.worker.send(out("127.0.0.1"))
    world.worker.send(f.ipv4(GUEST, ip("1.1.1.1"), mac=f.MAC_B))
    world.turn()
    frame = out("93.184.216.34")
    assert world.passt.recv(1 << 17) == struct.pack(">I", len(frame)) + frame
    assert world.rejected("network.to-uplink") == 1
    assert world.rejected("network.from-worker") == 1


def test_each_kind_of_frame_that_stays_is_counted_as_such(world: World) -> None:
    (port,) = world.switch.ports
    for frame in (*OUT_OF_REACH, f.ipv4(GUEST, total=19)):
        world.uplink.send(frame, port)
    kinds = world.counters.snapshot()["network.to-uplink"].kinds
    assert set(kinds) == set(FLOWS["network.to-uplink"].rejects)
    assert sum(kinds.values()) == len(OUT_OF_REACH) + 1


def test_headers_of_passt_that_lie_are_dropped(world: World) -> None:
    lie, good = f.ipv4(total=19), back("1.1.1.1", 443)
    for frame in (lie, good):
        world.passt.send(struct.pack(">I", len(frame)) + frame)
    world.turn()
    assert world.frames() == [good]
    assert world.counters.snapshot()["network.from-uplink"].kinds == {"header": 1}


def test_frames_come_in_pieces(world: World) -> None:
    frames = [back("1.1.1.1", 443) + bytes([n]) * (n * 300) for n in range(5)]
    stream = b"".join(struct.pack(">I", len(each)) + each for each in frames)
    found = []
    for at in range(0, len(stream), 7):
        world.passt.send(stream[at : at + 7])
        world.turn()
        found += world.frames()
    assert found == frames


@pytest.mark.parametrize("length", [0, 13, 65536, 2**32 - 1])
def test_lengths_that_lie_end_the_uplink(world: World, length: int) -> None:
    world.passt.send(struct.pack(">I", length) + bytes(100))
    world.turn()
    assert world.uplink.closed
    assert world.rejected("network.from-uplink") == 1


def test_the_end_of_passt_is_noticed(world: World) -> None:
    world.passt.close()
    world.turn()
    assert world.uplink.closed


def test_a_passt_that_takes_nothing_stops_the_vm(world: World) -> None:
    frame = f.ipv4(GUEST, ip("1.1.1.1"), bytes(60000))
    sent = 0
    for _ in range(100):
        try:
            world.worker.send(frame)
            sent += 1
        except BlockingIOError:
            break
        world.turn()
    else:
        raise AssertionError("it took everything")
    assert world.switch.blocked
    stream = b""
    while len(stream) < sent * (len(frame) + 4):
        world.turn()
        stream += world.passt.recv(1 << 20)
    assert stream == (struct.pack(">I", len(frame)) + frame) * sent
    world.turn()
    assert not world.switch.blocked


def test_a_slow_vm_stops_passt_and_loses_nothing(world: World) -> None:
    frame = back("1.1.1.1", 443) + bytes(1400)
    framed = struct.pack(">I", len(frame)) + frame
    sent, left = 0, b""
    for _ in range(4000):
        try:
            left = (left or framed)[world.passt.send(left or framed) :]
        except BlockingIOError:
            break
        sent += not left
        world.turn()
    else:
        raise AssertionError("it took everything")
    found = 0
    while frames := world.frames():
        found += len(frames)
        world.turn()
    assert found == sent
    assert world.rejected("network.to-worker") == 0
    world.passt.setblocking(True)
    world.passt.sendall(left + framed)  # it goes on
    for _ in range(3):
        world.turn()
    assert len(world.frames()) == 1 + bool(left)


FRAGMENT = f.ipv4(ip("1.1.1.1"), GUEST, bytes(20), fragment=1, mac=f.MAC_B, to=MAC_A)
FRAMES = st.builds(
    lambda frame, cut: (struct.pack(">I", len(frame)) + frame)[: cut or None],
    st.sampled_from([FRAGMENT, back("1.1.1.1", 80), f.ipv4(mac=f.MAC_B)]),
    st.integers(0, 60),
)


@example([struct.pack(">I", len(FRAGMENT)) + FRAGMENT])
@example([struct.pack(">I", 60) + bytes(20), bytes(40)])
@given(
    st.lists(st.one_of(st.binary(max_size=80), FRAMES, recorded("network.to-uplink")), max_size=8)
)
def test_any_stream_is_taken_or_ends(pieces: list[bytes]) -> None:
    world = World()
    try:
        for piece in pieces:
            framed = struct.pack(">I", len(piece)) + piece
            os.write(world.passt.fileno(), framed if len(piece) % 2 else piece or b"\0")
            world.turn()
            world.frames()
            if world.uplink.closed:
                break
    finally:
        world.close()
