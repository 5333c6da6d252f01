"""Fixtures: a guest over a VMBus server in this process."""

import pytest

from teuthis.flows import Counters
from teuthis.worker import link
from teuthis.worker.devices.hvsock import HvSock
from teuthis.worker.memory import GuestMemory
from teuthis.worker.vmbus.channel import Device
from teuthis.worker.vmbus.messages import Offer
from teuthis.worker.vmbus.server import Server

from .simulator import Channel, Guest

MEMORY_SIZE = 8 << 20


class Inside:
    """Transport into a server of this process; also the hypervisor's view of ports."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.ports: set[int] = set()
        self.delivered: list[bytes] = []
        self.rung: set[int] = set()

    def post(self, connection_id: int, payload: bytes) -> None:
        self.server.receive(connection_id, 1, payload)

    def signal(self, relid: int) -> None:
        if 0x2000 | relid in self.ports:
            self.rung.add(relid)

    def messages(self) -> list[bytes]:
        delivered, self.delivered = self.delivered, []
        return delivered

    def settle(self) -> None:
        for _ in range(10_000):
            for message in self.server.outbox:
                if message.flow == "link.deliver-message":
                    assert message.value == 2 | 1 << 32
                    self.delivered.append(message.payload)
                elif message.flow == "link.open-port":
                    self.ports.add(message.value)
                else:
                    assert message.flow == "link.close-port"
                    self.ports.discard(message.value)
                assert len(link.encode(message)) == link.MESSAGE_BYTES
            self.server.outbox.clear()
            self.server.interrupts.clear()
            if not self.rung:
                return
            rung, self.rung = self.rung, set()
            for relid in rung:
                if self.server.doorbell(relid):
                    self.rung.add(relid)


class Clock:
    """Time that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A host and a guest."""

    def __init__(self, memory_size: int = MEMORY_SIZE) -> None:
        self.memory = GuestMemory(-1, memory_size)
        self.counters = Counters()
        self.clock = Clock()
        self.server = Server(self.memory, self.counters)
        self.sockets = HvSock(self.server, self.counters, self.clock)
        self.transport = Inside(self.server)
        self.guest = Guest(self.memory, self.transport)

    def plugged(self, offer: Offer, device: Device) -> Channel:
        """The guest's end of the channel of the only device; it reads nothing by itself."""
        self.server.install(offer, device)
        offered: list[Channel] = []
        self.guest.on_offer = offered.append
        assert self.guest.connect()
        (channel,) = offered
        channel.poll = lambda: False  # type: ignore[method-assign]
        assert channel.interface == offer.interface
        return channel

    def rejected(self, flow: str) -> int:
        return self.counters.snapshot()[flow].rejected

    def accepted(self, flow: str) -> int:
        return self.counters.snapshot()[flow].count


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def connected(world: World) -> World:
    assert world.guest.connect()
    return world
