"""Ports and forwarding: a frame goes to the owner of its destination, or nowhere.

The switch learns nothing: who owns a MAC address the root side says when a VM joins. It never waits
for a VM: one that takes no frames loses those beyond a little that is kept, one that sends too many
is read more slowly.
"""

import ipaddress
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from teuthis.flows import FLOWS, Counters
from teuthis.switch import rules
from teuthis.switch.protocol import Answer, Member, Outcome
from teuthis.switch.rate import Bucket
from teuthis.worker.loop import READ, WRITE, Loop

SUBNET: Final = ipaddress.IPv4Network("10.126.8.0/24")
"""Addresses of a named network; the networks never meet, so all have the same."""
MAX_PORTS: Final = FLOWS["switch.join"].values["members_max"]
_GROUP_RATE: Final = FLOWS["network.from-worker"].values["group_frames_rate"]
"""Broadcast and multicast frames a second of one VM: each costs as much as there are VMs."""
_UNSENT_MAX: Final = FLOWS["network.to-worker"].values["unsent_max"]
"""Bytes kept for a VM that does not take them; what comes then is lost."""
_TURN = 32
"""Frames of one VM before the others get their turn."""
_RESERVE_SECONDS = 0.05


class Port:
    """Where one VM is plugged in."""

    def __init__(
        self, switch: "Switch", member: Member, who: rules.Sender, frames: int, counters: Counters
    ) -> None:
        self.who = who
        self.mtu = member.mtu
        self.counters = counters
        self.resume_at: float | None = None
        """When a VM that sent too much is read again."""
        self._switch = switch
        self._frames = frames
        self._max_frame = member.mtu + rules.ETHERNET_BYTES
        now = switch.clock()
        reserve = max(member.bytes_rate * _RESERVE_SECONDS, self._max_frame)
        self._bytes = Bucket(member.bytes_rate, reserve, now)
        self._count = Bucket(
            member.frames_rate, max(member.frames_rate * _RESERVE_SECONDS, _TURN), now
        )
        self._groups = Bucket(_GROUP_RATE, _GROUP_RATE, now)
        self.on_taken: Callable[[], None] = lambda: None
        """Called when the VM has taken some of what was kept for it."""
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        os.set_blocking(frames, False)
        self.watch()

    def watch(self) -> None:
        """Reads what the VM sends, as long as it may go on; writes what it has not taken."""
        events = (READ if self._may_send else 0) | (WRITE if self._unsent else 0)
        if events:
            self._switch.loop.watch(self._frames, events, self._ready)
        else:
            self._switch.loop.unwatch(self._frames)

    @property
    def slow(self) -> bool:
        """Whether so much waits for the VM that whoever can should wait too."""
        return self._unsent_bytes > _UNSENT_MAX // 2

    @property
    def _may_send(self) -> bool:
        return not self._switch.blocked and self.resume_at is None

    def expire(self, now: float) -> None:
        """Goes on with a VM whose time has come."""
        if self.resume_at is not None and self.resume_at <= now:
            self.resume_at = None
            self.watch()

    def close(self) -> None:
        """Unplugs the VM; its worker sees the end of the stream."""
        self._switch.loop.unwatch(self._frames)
        os.close(self._frames)
        self.counters.close()

    def deliver(self, frame: bytes) -> None:
        """Gives the VM a frame; of what it does not take, a little is kept for it."""
        if not self._unsent and self._write(frame):
            return
        if self._unsent_bytes + len(frame) > _UNSENT_MAX:
            self.counters.reject("network.to-worker", "unread")
            return
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        self.watch()

    def _write(self, frame: bytes) -> bool:
        """Writes one frame; False: not now. A VM that has ended is noticed when it is read."""
        try:
            os.write(self._frames, frame)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _ready(self) -> None:
        if self._unsent:
            while self._unsent and self._write(self._unsent[0]):
                self._unsent_bytes -= len(self._unsent.popleft())
            self.on_taken()
        for _ in range(_TURN if self._may_send else 0):
            now = self._switch.clock()
            delay = max(self._bytes.wait(now), self._count.wait(now))
            if delay:
                self.resume_at = now + delay
            if not self._may_send:
                break
            try:
                frame = os.read(self._frames, self._max_frame + 1)
            except BlockingIOError:
                break
            except OSError:
                frame = b""
            if not frame:
                self._switch.leave(self)
                return
            self._bytes.spend(len(frame))
            self._count.spend(1)
            self._take(frame, now)
        self.watch()

    def _take(self, frame: bytes, now: float) -> None:
        try:
            rules.check(frame, self.who, self._max_frame)
            if frame[0] & rules.MULTICAST_BIT:
                if self._groups.wait(now):
                    raise rules.Refused("rate", "too many frames for everybody")
                self._groups.spend(1)
        except rules.Refused as refused:
            self.counters.reject("network.from-worker", refused.kind)
            return
        self.counters.accept("network.from-worker", len(frame))
        self._switch.forward(frame, self)


Uplink = Callable[[bytes, Port], None]
"""Takes each frame of the only VM there is."""


class Switch:
    """All ports of one network."""

    def __init__(self, loop: Loop, clock: Callable[[], float]) -> None:
        """`clock`: seconds, monotonic."""
        self.loop = loop
        self.clock = clock
        self.uplink: Uplink | None = None
        self.blocked = False
        """Whether the uplink takes nothing now: no VM is read."""
        self._ports: dict[bytes, Port] = {}

    @property
    def ports(self) -> list[Port]:
        """All that are plugged in."""
        return list(self._ports.values())

    def join(self, member: Member, frames: int, counters: Counters) -> Answer:
        """Plugs a VM in; both descriptors are the switch's if it is JOINED."""
        if member.mac in self._ports or member.mac[0] & rules.MULTICAST_BIT:
            return Answer(Outcome.MAC_TAKEN)
        if len(self._ports) >= MAX_PORTS:
            return Answer(Outcome.FULL)
        if any(port.mtu != member.mtu for port in self.ports):
            return Answer(Outcome.OTHER_MTU)
        taken = frozenset[bytes]().union(*(port.who.addresses for port in self.ports))
        if member.address is None:
            free = (host for host in SUBNET.hosts() if host.packed not in taken)
            address = next(free)  # there are more of them than ports
        else:
            address = ipaddress.IPv4Address(member.address)
            if address.packed in taken:
                return Answer(Outcome.ADDRESS_TAKEN)
        who = rules.sender(member.mac, address)
        self._ports[member.mac] = Port(self, member, who, frames, counters)
        return Answer(Outcome.JOINED, address.packed)

    def leave(self, port: Port) -> None:
        """Unplugs a VM that has ended."""
        del self._ports[port.who.mac]
        port.close()

    def forward(self, frame: bytes, source: Port) -> None:
        """Hands on a frame that `source` may send."""
        if self.uplink is not None:
            self.uplink(frame, source)
        elif frame[0] & rules.MULTICAST_BIT:
            for port in self.ports:
                if port is not source:
                    port.deliver(frame)
        elif (owner := self._ports.get(frame[:6])) is not None:
            owner.deliver(frame)

    def block(self, blocked: bool) -> None:
        """Stops reading VMs, or goes on."""
        self.blocked = blocked
        for port in self.ports:
            port.watch()

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return min((p.resume_at for p in self.ports if p.resume_at is not None), default=None)

    def expire(self) -> None:
        """Goes on with the VMs whose time has come."""
        now = self.clock()
        for port in self.ports:
            port.expire(now)
