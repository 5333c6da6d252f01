"""The worker's state: a guest goes on with another worker; what no worker wrote is refused."""

import os
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teuthis.flows import FLOWS
from teuthis.protocol import Exec, Status, StatusKind
from teuthis.worker.agent.agent import Agent
from teuthis.worker.loop import Loop
from teuthis.worker.saved import StateError, restore, save
from teuthis.worker.vmbus.channel import Channel, Saveable
from teuthis.worker.vmbus.messages import Offer

from .agent_guest import ENTROPY, ERROR, HELLO, STARTED, AgentGuest, frame, u32
from .conftest import World
from .simulator import service

RESUMED = FLOWS["agent.resumed"].number
LOOP = Loop()
INSTANCE = bytes(range(16))


class Device(Saveable):
    """A device that is there from the start and remembers a number."""

    def __init__(self) -> None:
        self.number = 0
        self.channel: Channel | None = None

    def opened(self, channel: Channel) -> None:
        self.channel = channel

    def ready(self, channel: Channel) -> bool:
        return False

    def closed(self, channel: Channel) -> None:
        self.channel = None

    def save(self) -> dict[str, Any]:
        return {"number": self.number}

    def restore(self, state: dict[str, Any], channel: Channel | None) -> None:
        if not isinstance(state["number"], int):
            raise TypeError("number")
        self.number = state["number"]
        self.channel = channel


class Worker(World):
    """All of a worker that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: list[Status] = []
        self.device = Device()
        self.server.install(Offer(service(1), INSTANCE, 0), self.device)
        self.agent = Agent(
            LOOP, self.sockets, self.counters, self.statuses.append, lambda text: None
        )
        self.agent.listen()

    def save(self) -> bytes:
        return save(self.server, self.sockets, self.agent)

    def restore(self, record: bytes) -> None:
        restore(record, self.server, self.sockets, self.agent, self.counters)


def successor(worker: Worker) -> Worker:
    """A worker that knows nothing, over the memory of another one's guest."""
    other = Worker()
    other.memory.bytes[:] = worker.memory.bytes[:]
    return other


def greeted() -> Worker:
    """Its agent has greeted, its device is open, a stream is open to a port of the guest."""
    worker = Worker()
    assert worker.guest.connect()
    worker.guest.pump()
    (installed,) = worker.guest.channels.values()
    installed.do_open()
    agent = AgentGuest(worker.guest)
    greeting = agent.hello()
    worker.guest.pump()
    assert greeting.received[0] == ENTROPY
    worker.device.number = 7
    return worker


@pytest.fixture
def worker() -> Worker:
    return greeted()


def test_a_guest_goes_on_with_another_worker(worker: Worker) -> None:
    other = successor(worker)
    other.restore(worker.save())
    other.agent.report_ready()
    assert other.statuses == [Status(StatusKind.READY)]
    assert other.device.number == 7
    assert other.device.channel is not None
    other.agent.resumed()
    # The guest's kernel goes on as it was, with the copy of its memory.
    guest = worker.guest
    guest.memory.bytes[:] = other.memory.bytes[:]
    other.transport.ports = worker.transport.ports
    guest.transport = other.transport
    guest.memory = other.memory
    for channel in guest.channels.values():
        for half in (channel.out, channel.inn):
            half.memory = other.memory
            half.words = other.memory.words[half.pages[0] * 1024 : half.pages[0] * 1024 + 1024]
    greeting = next(c for c in guest.channels.values() if c.interface == service(0x7E07))
    greeting.received.clear()
    guest.pump()
    kind, length = struct.unpack_from("<B3xI", greeting.received)
    assert (kind, length) == (RESUMED, 76)
    assert other.save() == worker.save()
    assert other.accepted("state.worker") == 1


def test_an_idle_connection_is_kept(worker: Worker) -> None:
    null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    worker.agent.handle(Exec(id=1, argv=["x"], env={}, cwd="/"), null)
    agent = AgentGuest(worker.guest)
    agent.until(lambda: agent.tasks and agent.tasks[0].request)
    (task,) = agent.tasks
    other = successor(worker)
    other.restore(worker.save())
    assert rescinded(other) == [task.channel.relid], "it was at work"
    task.say(STARTED, u32(9))
    task.exit(0)
    agent.step()
    other = successor(worker)
    other.restore(worker.save())
    assert rescinded(other) == []
    assert other.save() == worker.save()
    offers = len(other.server.outbox)
    null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    other.agent.handle(Exec(id=1, argv=["x"], env={}, cwd="/"), null)
    assert len(other.server.outbox) == offers, "a connection of its own"


def test_an_idle_connection_that_is_not_settled_is_closed(worker: Worker) -> None:
    null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
    worker.agent.handle(Exec(id=1, argv=["x" * 60_000], env={}, cwd="/"), null)
    agent = AgentGuest(worker.guest)
    # The guest takes none of the request, which is larger than the ring.
    worker.guest.pump()
    (channel,) = agent._new
    channel.do_open(pages_each=7)
    channel.send(frame(ERROR, u32(2)))
    worker.server.doorbell(channel.relid)
    other = successor(worker)
    other.restore(worker.save())
    assert rescinded(other) == [channel.relid]


def rescinded(worker: Worker) -> list[int]:
    messages = [m for m in worker.server.outbox if m.payload[:4] == u32(2)]
    return [struct.unpack_from("<I", m.payload, 8)[0] for m in messages]


def test_streams_of_programs_are_closed(worker: Worker) -> None:
    class Handler:
        def opened(self) -> None: ...

        def received(self, data: bytes) -> None: ...

        def closed(self) -> None: ...

    offered: list[Any] = []
    worker.guest.on_offer = offered.append
    assert worker.sockets.connect(99, lambda connection: Handler())
    worker.guest.pump()
    offered[0].do_open()
    other = successor(worker)
    other.restore(worker.save())
    assert rescinded(other) == [offered[0].relid]


def test_an_agent_that_has_not_greeted_may_do_so_later() -> None:
    worker = Worker()
    assert worker.guest.connect()
    other = successor(worker)
    other.restore(worker.save())
    other.agent.report_ready()
    assert other.statuses == []
    worker.guest.transport, worker.guest.memory = other.transport, other.memory
    greeting = worker.guest.dial(0x7E07)
    greeting.send(frame(HELLO, u32(1)))
    worker.guest.pump()
    assert other.statuses == [Status(StatusKind.READY)]


def changed(record: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = msgspec.msgpack.decode(record)
    change(document)
    return msgspec.msgpack.encode(document)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(format=1),
        lambda s: s.pop("agent"),
        lambda s: s.update(more=1),
        lambda s: s.update(last_host_port=7),
        lambda s: s["server"].update(version=3),
        lambda s: s["server"].update(message_vp=1),
        lambda s: s["server"].update(last_relid=2048),
        lambda s: s["server"].update(devices={}),
        lambda s: s["server"]["devices"].update({bytes(16): {}}),
        lambda s: s["server"]["devices"].update({INSTANCE: {}}),
        lambda s: s["server"]["devices"].update({INSTANCE: {"number": "x"}}),
        lambda s: s["server"]["channels"][0].update(relid=0),
        lambda s: s["server"]["channels"][0].update(relid=2048),
        lambda s: s["server"]["channels"][0].update(instance=bytes(16)),
        lambda s: s["server"]["channels"][0].update(target_vp=1),
        lambda s: s["server"]["channels"][0].update(ring_gpadl=1),
        lambda s: s["server"]["channels"][0].update(downstream_page=1),
        lambda s: s["server"]["channels"][0].update(downstream_page=1 << 40),
        lambda s: s["server"]["channels"].append(s["server"]["channels"][0]),
        lambda s: s["server"]["channels"].append({**s["server"]["channels"][0], "relid": 2000}),
        lambda s: s["server"]["gpadls"].append(s["server"]["gpadls"][0]),
        lambda s: s["server"]["gpadls"][0]["pages"].pop(),
        lambda s: s["server"]["gpadls"][0]["pages"].append(20),
        lambda s: s["server"]["gpadls"][0].update(byte_count=0),
        lambda s: s["server"]["gpadls"][0].update(byte_count=1 << 40),
        lambda s: s["server"]["gpadls"][0]["pages"].__setitem__(0, 0),
        lambda s: s["server"]["gpadls"][0]["pages"].__setitem__(0, 1 << 40),
        lambda s: s["server"]["gpadls"][0]["pages"].__setitem__(0, -1),
    ],
)
def test_values_that_cannot_be_are_refused(
    worker: Worker, change: Callable[[dict[str, Any]], object]
) -> None:
    other = successor(worker)
    with pytest.raises(StateError):
        other.restore(changed(worker.save(), change))
    assert other.rejected("state.worker") == 1


@pytest.mark.parametrize("record", [b"", b"\xc0", b"\x80", bytes(100), b"{}"])
def test_what_no_worker_wrote_is_refused(record: bytes) -> None:
    with pytest.raises(StateError):
        Worker().restore(record)


@settings(deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8))
def test_any_record_is_taken_or_refused(changes: list[tuple[int, int]]) -> None:
    worker = greeted()
    record = bytearray(worker.save())
    for at, value in changes:
        record[at % len(record)] = value
    other = successor(worker)
    try:
        other.restore(bytes(record))
    except StateError:
        return
    other.save()


def test_a_device_that_cannot_be_saved_is_named(worker: Worker) -> None:
    class Stubborn:
        def opened(self, channel: Channel) -> None: ...

        def ready(self, channel: Channel) -> bool:
            return False

        def closed(self, channel: Channel) -> None: ...

    worker.server.install(Offer(service(1), bytes(16), 0), Stubborn())
    with pytest.raises(NotImplementedError, match="Stubborn"):
        worker.save()
