"""Ports and forwarding, over real sockets; joining, through a switch process of its own."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from teuthis import data
from teuthis.errors import ConfigurationError, HostError
from teuthis.flows import FLOWS, Counters, counters_size
from teuthis.root.network import named
from teuthis.switch.main import Entrance
from teuthis.switch.protocol import Answer, Member, Outcome
from teuthis.switch.switch import SUBNET, Switch
from teuthis.worker.loop import Loop

from . import frames as f
from .frames import MAC_A, MAC_B, A, B
from .test_rules import CLAIMS, MALFORMED, SPOOFED

MAC_C = bytes.fromhex("020000000003")


def member(mac: bytes = MAC_A, **changes: object) -> Member:
    fields = {"mac": mac, "mtu": 1500, "bytes_rate": 10**9, "frames_rate": 10**6, **changes}
    return msgspec.convert(fields, Member)


class Vm:
    """A worker's end, and what was counted for it."""

    def __init__(self, world: "World", who: Member) -> None:
        near, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.counters = Counters()
        self.answer = world.switch.join(who, near.fileno(), self.counters)
        if self.answer.outcome is Outcome.JOINED:
            near.detach()
        near.close()

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def frames(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 17))
            except BlockingIOError:
                return found

    def rejected(self, flow: str) -> int:
        return self.counters.snapshot()[flow].rejected


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop()
        self.switch = Switch(self.loop, lambda: self.now)
        self.vms: list[Vm] = []
        self.doors: list[Door] = []

    def plug(self, mac: bytes = MAC_A, **changes: object) -> Vm:
        vm = Vm(self, member(mac, **changes))
        self.vms.append(vm)
        return vm

    def turn(self) -> None:
        for _ in range(4):
            self.loop.turn(0)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.switch.expire()
        self.turn()

    def door(self, path: Path) -> "Door":
        self.doors.append(Door(self, path))
        return self.doors[-1]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for vm in made.vms:
        vm.socket.close()
    for door in made.doors:
        door.entrance.close()


# ---- forwarding ----------------------------------------------------------------------------------


def test_unicast_goes_to_its_owner_only(world: World) -> None:
    a, b, c = (world.plug(mac) for mac in (MAC_A, MAC_B, MAC_C))
    a.send(f.ipv4())
    a.send(f.ipv4(to=bytes.fromhex("020000000009")))  # nobody's
    a.send(f.ipv4(to=MAC_A))
    world.turn()
    assert b.frames() == [f.ipv4()]
    assert c.frames() == []
    assert a.frames() == [f.ipv4(to=MAC_A)]


def test_broadcast_goes_to_all_others(world: World) -> None:
    a, b, c = (world.plug(mac) for mac in (MAC_A, MAC_B, MAC_C))
    a.send(f.arp())
    world.turn()
    assert (a.frames(), b.frames(), c.frames()) == ([], [f.arp()], [f.arp()])


def test_spoofed_frames_are_dropped_and_counted(world: World) -> None:
    a, b = world.plug(MAC_A), world.plug(MAC_B)
    for frame in (f.ipv4(B), f.ipv4(mac=MAC_C), f.arp(address=B), f.arp(mac=MAC_B), b"x", f.ipv4()):
        a.send(frame)
    world.turn()
    assert b.frames() == [f.ipv4()]
    assert a.rejected("network.from-worker") == 5
    assert a.counters.snapshot()["network.from-worker"].count == 1
    assert b.rejected("network.from-worker") == 0


def test_each_kind_of_bad_frame_is_counted_as_such(world: World) -> None:
    a, b = world.plug(MAC_A), world.plug(MAC_B)
    for frame in (*SPOOFED, *CLAIMS, *MALFORMED):
        if frame:  # nothing would be the end of the stream
            a.send(frame)
            world.turn()
    assert b.frames() == []
    kinds = a.counters.snapshot()["network.from-worker"].kinds
    assert set(kinds) == set(FLOWS["network.from-worker"].rejects) - {"rate"}
    assert sum(kinds.values()) == len(SPOOFED) + len(CLAIMS) + len(MALFORMED) - 1


def test_broadcasts_are_bounded(world: World) -> None:
    a, b = world.plug(MAC_A), world.plug(MAC_B)
    for _ in range(10):
        for _ in range(50):
            a.send(f.arp())
        world.turn()
        world.turn()
    a.send(f.ipv4())
    world.turn()
    received = b.frames()
    assert received[-1] == f.ipv4()  # unicast is not held up by that
    assert 190 <= len(received) - 1 <= 210
    assert a.rejected("network.from-worker") == 501 - len(received)
    world.pass_time(1)
    a.send(f.arp())
    world.turn()
    assert len(b.frames()) == 1


def test_rates_are_kept(world: World) -> None:
    a, b = world.plug(MAC_A, bytes_rate=100_000), world.plug(MAC_B)
    frame = f.ipv4(payload=bytes(958))  # 992 bytes
    received = 0
    for _ in range(200):
        with suppress(BlockingIOError):
            a.send(frame)
        world.pass_time(0.01)
        received += len(b.frames())
    assert 190 <= received <= 215  # 2 seconds
    assert a.rejected("network.from-worker") == 0  # read more slowly, not dropped
    assert world.switch.deadline() is None or world.switch.deadline() > world.now  # type: ignore[operator]


def test_frame_rates_are_kept(world: World) -> None:
    a, b = world.plug(MAC_A, frames_rate=100), world.plug(MAC_B)
    received = 0
    for _ in range(100):
        for _ in range(4):
            with suppress(BlockingIOError):
                a.send(f.ipv4())
        world.pass_time(0.01)
        received += len(b.frames())
    assert 95 <= received <= 140


def test_one_vm_in_the_way_holds_up_nobody(world: World) -> None:
    a, b, c = (world.plug(mac) for mac in (MAC_A, MAC_B, MAC_C))
    for _ in range(2000):
        b.send(f.ipv4(B, f.ip("10.126.8.3"), mac=MAC_B, to=MAC_C))
        world.turn()
        c.frames()
        a.send(f.ipv4())
        world.turn()
    assert b.counters.snapshot()["network.from-worker"].count == 2000


def test_a_vm_that_does_not_read_loses_frames(world: World) -> None:
    a, b = world.plug(MAC_A), world.plug(MAC_B)
    for number in range(2000):
        a.send(f.ipv4(payload=number.to_bytes(4) + bytes(1400)))
        world.turn()
    assert b.rejected("network.to-worker") > 0
    received: list[bytes] = []
    while frames := b.frames():
        received += frames
        world.turn()
    assert len(received) + b.rejected("network.to-worker") == 2000
    # In order; what was kept is no more than it may be.
    numbers = [int.from_bytes(frame[34:38]) for frame in received]
    assert numbers == list(range(len(numbers)))
    assert len(received) * 1438 < (1 << 20) + (1 << 20)
    a.send(f.ipv4())
    world.turn()
    assert b.frames() == [f.ipv4()]


def test_a_vm_that_ends_is_unplugged(world: World) -> None:
    a, b = world.plug(MAC_A), world.plug(MAC_B)
    b.socket.close()
    world.turn()
    assert [port.who.mac for port in world.switch.ports] == [MAC_A]
    a.send(f.ipv4())
    world.turn()
    assert world.plug(MAC_B).answer == Answer(Outcome.JOINED, B)  # the address is free again


# ---- joining -------------------------------------------------------------------------------------


def test_addresses_are_handed_out(world: World) -> None:
    assert world.plug(MAC_A).answer == Answer(Outcome.JOINED, A)
    assert world.plug(MAC_B).answer == Answer(Outcome.JOINED, B)


def test_joins_that_cannot_be(world: World) -> None:
    world.plug(MAC_A)
    assert world.plug(MAC_A).answer.outcome is Outcome.MAC_TAKEN
    assert world.plug(b"\x03" + MAC_B[1:]).answer.outcome is Outcome.MAC_TAKEN
    assert world.plug(MAC_B, mtu=9000).answer.outcome is Outcome.OTHER_MTU
    assert world.plug(MAC_B, address=A).answer.outcome is Outcome.ADDRESS_TAKEN
    for number in range(4, 203):
        last = world.plug(bytes.fromhex(f"0200000001{number:02x}"))
        assert last.answer.outcome is Outcome.JOINED
    assert world.plug(MAC_B).answer.outcome is Outcome.FULL


def counters_page() -> int:
    page = os.memfd_create("counters")
    os.ftruncate(page, counters_size())
    return page


class Door:
    """An entrance with somebody in front of it."""

    def __init__(self, world: World, path: Path) -> None:
        requests = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        requests.bind(str(path))
        self.world = world
        self.path = path
        self.entrance = Entrance(world.switch, requests.detach(), None)

    def ask(self, request: bytes, count: int = 2) -> tuple[Answer | None, socket.socket]:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine, reply = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        page = counters_page()
        with mine, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as requests:
            requests.connect(str(self.path))
            descriptors = [*([near.fileno(), page] * 2)[:count], reply.fileno()]
            socket.send_fds(requests, [request], descriptors)
            near.close()
            reply.close()
            os.close(page)
            self.world.turn()
            mine.settimeout(5)
            packet = mine.recv(64)
        return (Answer.decode(packet) if packet else None), far


def test_join_by_socket(world: World, tmp_path: Path) -> None:
    door = world.door(tmp_path / "socket")
    answer, a = door.ask(msgspec.json.encode(member(MAC_A)))
    assert answer == Answer(Outcome.JOINED, A)
    answer, b = door.ask(msgspec.json.encode(member(MAC_B)))
    assert answer == Answer(Outcome.JOINED, B)
    assert door.entrance.joined
    a.send(f.ipv4())
    world.turn()
    assert b.recv(2000) == f.ipv4()
    a.close()
    b.close()
    world.turn()
    assert world.switch.ports == []


def test_requests_without_descriptors_harm_nobody(world: World, tmp_path: Path) -> None:
    door = world.door(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as requests:
        requests.connect(str(door.path))
        for request in (b"", b"{}", msgspec.json.encode(member(MAC_A))):
            requests.send(request)
            world.turn()
    answer, far = door.ask(msgspec.json.encode(member(MAC_A)))
    assert answer == Answer(Outcome.JOINED, A)
    far.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_is_not_answered(world: World, tmp_path: Path) -> None:
    door = world.door(tmp_path / "socket")
    door.entrance._owner = 65534
    answer, far = door.ask(msgspec.json.encode(member(MAC_A)))
    assert answer is None
    assert world.switch.ports == []
    far.close()


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (b"{}", 2),
        (b"\xff", 2),
        (msgspec.json.encode(member(MAC_A)), 1),
        (msgspec.json.encode(member(MAC_A)).replace(b"mtu", b"mtv"), 2),
        (msgspec.json.encode(member(MAC_A)).replace(b"1500", b"65521"), 2),
    ],
)
def test_malformed_requests(world: World, tmp_path: Path, request_: bytes, count: int) -> None:
    door = world.door(tmp_path / "socket")
    before = len(list(Path("/proc/self/fd").iterdir()))
    answer, far = door.ask(request_, count)
    assert answer == Answer(Outcome.MALFORMED)
    far.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert world.switch.ports == []


def test_each_refusal_to_join_is_counted_as_such(world: World, tmp_path: Path) -> None:
    door = world.door(tmp_path / "socket")
    world.plug(MAC_A, address=A)
    pages = [counters_page() for _ in range(4)]

    def refused(mac: bytes, **changes: object) -> Outcome:
        page = pages.pop()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = msgspec.json.encode(member(mac, **changes))
        answer = door.entrance._join(request, [near.detach(), os.dup(page)])
        counters = Counters(page)
        (kind,) = counters.snapshot()["switch.join"].kinds
        assert kind.replace("-", "_").upper() == answer.outcome.name
        counters.close()
        os.close(page)
        far.close()
        return answer.outcome

    assert refused(MAC_A) is Outcome.MAC_TAKEN
    assert refused(MAC_B, mtu=9000) is Outcome.OTHER_MTU
    assert refused(MAC_B, address=A) is Outcome.ADDRESS_TAKEN
    for number in range(4, 203):
        world.plug(bytes.fromhex(f"0200000001{number:02x}"))
    assert refused(MAC_B) is Outcome.FULL


macs = st.sampled_from([MAC_A, MAC_B, b"\x03" + MAC_A[1:]]) | st.binary(min_size=6, max_size=6)
members = st.fixed_dictionaries(
    {"mac": macs, "mtu": st.sampled_from([1500, 9000]) | st.integers(0, 1 << 17)},
    optional={
        "bytes_rate": st.integers(-1, 1 << 40),
        "frames_rate": st.integers(-1, 1 << 40),
        "address": st.sampled_from([A, B]) | st.binary(max_size=5),
    },
)


@settings(max_examples=30)
@example(b"", False, 0)
@example(msgspec.json.encode(member(MAC_A)), False, 2)
@given(
    st.binary(max_size=300) | members.map(msgspec.json.encode),
    st.booleans(),
    st.sampled_from([2, 2, 2, 0, 1, 3]),
)
def test_any_request_is_answered(request_: bytes, taken: bool, given_: int) -> None:
    world = World()
    if taken:
        world.plug(MAC_A, address=A)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    requests = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    entrance = Entrance(world.switch, requests.detach(), None)
    descriptors = [near.detach(), counters_page(), counters_page()]
    for descriptor in descriptors[given_:]:
        os.close(descriptor)
    answer = entrance._join(request_, descriptors[:given_])
    assert answer.outcome is not Outcome.FULL
    far.close()
    entrance.close()
    for port in world.switch.ports:
        world.switch.leave(port)
    for vm in world.vms:
        vm.socket.close()


@pytest.mark.parametrize("packet", [b"", bytes(7), bytes(9), b"\x09" + bytes(7)])
def test_answers_that_lie(packet: bytes) -> None:
    page = counters_page()
    with pytest.raises(HostError, match="nonsense"):
        named._judged(packet, "lan", page)
    os.close(page)


def test_an_address_outside_the_network_is_refused() -> None:
    page = counters_page()
    with pytest.raises(HostError):
        named._judged(Answer(Outcome.JOINED, b"\x7f\0\0\1").encode(), "lan", page)
    with pytest.raises(ConfigurationError):
        named._judged(Answer(Outcome.FULL).encode(), "lan", page)
    assert named._judged(Answer(Outcome.JOINED, A).encode(), "lan", page) in SUBNET
    os.close(page)


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "networks"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(HostError):
        data.see_private(directory, stat.S_ISDIR)
    directory.chmod(0o700)
    data.see_private(directory, stat.S_ISDIR)
    directory.rename(tmp_path / "other")
    directory.symlink_to(tmp_path / "other")
    with pytest.raises(HostError):
        data.see_private(directory, stat.S_ISDIR)


def test_wrong_arguments_end_it_at_once() -> None:
    done = subprocess.run([sys.executable, "-m", "teuthis.switch"], check=False)
    assert done.returncode == 64
