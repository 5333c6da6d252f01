"""A guest that does anything at any time: messages, rings, doorbells, frames, while clients ask.

Whatever it does, the worker goes on or ends the VM with a reason; each request is answered once.
"""

import os
import random
import struct

import pytest

from teuthis.protocol import Exec, Facts, ReadFile, Status, StatusKind
from teuthis.worker.agent.agent import Agent
from teuthis.worker.devices.integration import Integration
from teuthis.worker.ending import EndVM
from teuthis.worker.loop import Loop
from teuthis.worker.vmbus.messages import INBOUND

from .agent_guest import frame, u32
from .conftest import World
from .simulator import HEADER, Channel, Half, packet, service

PORT = 0x7E07
WORDS = (0, 1, 2, 7, 8, 13, 0xE1E11, 0xE1E12, 8192, 0x2001, PORT, 2**31, 2**32 - 1)
STARTED = StatusKind.STARTED
FRAMES = (
    *(frame(0x80 + kind, u32(1)) for kind in range(10)),
    frame(0x84, u32(0, 0)),
    frame(0x87, bytes(8)),
    frame(0x82, bytes(16384)),
    frame(0x83, b"text"),
    b"\x82\0\0\0\xff\0\0\0",
)
LIKELY = (
    frame(0x81, u32(7)),
    frame(0x82, b"output" * 100),
    frame(0x83, b"error"),
    frame(0x86, u32(9)),
)


class Chaos:
    """A host with an agent and clients, and a guest without manners."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.loop = Loop()
        self.statuses: list[Status] = []
        self.agent = Agent(
            self.loop,
            self.world.sockets,
            self.world.counters,
            self.statuses.append,
            lambda text: None,
        )
        self.agent.listen()
        self.integration = Integration(
            self.loop,
            self.world.server,
            self.world.counters,
            self.world.clock,
            self.statuses.append,
        )
        self.request = 0
        self.channels: list[Channel] = []
        self.polite = seed % 4 != 0

    def word(self) -> int:
        return self.random.choice((*WORDS, self.random.getrandbits(32)))

    def channel(self) -> Channel | None:
        """An open channel; three guests of four leave their greeting connection alone."""
        greeting = service(PORT)
        usable = [
            channel
            for channel in self.channels
            if channel.gpadl
            and (channel.from_host or channel.interface != greeting or not self.polite)
        ]
        return self.random.choice(usable) if usable else None

    # ---- what may happen -------------------------------------------------------------------------

    def any_message(self) -> None:
        kind = self.random.choice((*INBOUND, self.random.getrandbits(8)))
        if kind in (14, 16) and self.random.random() < 0.95:
            return  # else nothing lives long enough to be attacked
        words = [self.word() for _ in range(self.random.randrange(58))]
        body = struct.pack(f"<{len(words)}I", *words)
        self.world.server.receive(self.random.choice((1, 1, 1, 4)), 1, HEADER.pack(kind, 0) + body)

    def right_message(self) -> None:
        channel = self.channel()
        relid = channel.relid if channel else 1
        kind = self.random.choice((7, 11, 13, 22, 22, 22, 22))
        gpadl = channel.gpadl if channel else 0
        self.world.guest.post(kind, struct.pack("<II", relid, gpadl if kind == 11 else 0))

    def connect(self) -> None:
        self.world.guest.initiate()
        self.world.guest.post(3)

    def dial(self) -> None:
        self.world.guest.post(21, service(self.word()) + service(PORT))

    def open(self) -> None:
        for channel in self.channels:
            if not channel.gpadl:
                pages = self.world.guest.allocate(14)
                self.world.guest.recycle()
                handle = self.random.getrandbits(32)
                self.world.guest.share_as(handle, channel.relid, pages)
                body = struct.pack("<5I120x", channel.relid, 1, handle, 0, 7)
                self.world.guest.post(5, body)
                channel.gpadl = handle
                channel.out = Half(self.world.memory, pages[:7])
                channel.inn = Half(self.world.memory, pages[7:])
                self.world.transport.settle()

    def stream(self) -> None:
        channel = self.channel()
        if channel is not None:
            data = b"".join(self.random.choices(LIKELY, k=self.random.randrange(1, 4)))
            if self.random.random() < 0.2:
                data = self.random.choice(FRAMES)
            self.put(channel, packet(struct.pack("<II", 1, len(data)) + data))

    def garbage(self) -> None:
        channel = self.channel()
        if channel is not None:
            words = [self.word() for _ in range(4 * self.random.randrange(1, 5))]
            raw = struct.pack(f"<{len(words)}I", *words)
            self.put(channel, packet(raw) if self.random.random() < 0.5 else raw)

    def put(self, channel: Channel, raw: bytes) -> None:
        start = channel.out.words[0] % channel.out.size & ~7
        channel.out.move(start, raw)
        channel.out.words[0] = (start + len(raw)) % channel.out.size
        self.world.transport.signal(channel.relid)

    def index(self) -> None:
        channel = self.channel()
        if channel is not None:
            half = self.random.choice((channel.out, channel.inn))
            half.words[self.random.choice((0, 1, 2, 3, 16))] = self.word()

    def drain(self) -> None:
        channel = self.channel()
        if channel is not None:
            channel.inn.words[1] = channel.inn.words[0]
            self.world.transport.signal(channel.relid)

    def doorbell(self) -> None:
        self.world.server.doorbell(self.random.randrange(2048))

    def ask(self) -> None:
        self.request += 1
        null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
        if self.random.random() < 0.2:
            for descriptor in null[1:]:
                os.close(descriptor)
            self.integration.handle(Facts(id=self.request), null[:1])
        elif self.random.random() < 0.5:
            self.agent.handle(Exec(id=self.request, argv=["x"], env={}, cwd="/"), null)
        else:
            for descriptor in null[1:]:
                os.close(descriptor)
            self.agent.handle(ReadFile(id=self.request, path="/x"), null[:1])

    def time(self) -> None:
        self.world.clock.now += self.random.choice((0.1, 4, 40))
        self.world.sockets.expire()
        self.agent.expire()
        self.integration.expire()

    # ---- judgement -------------------------------------------------------------------------------

    def step(self) -> None:
        action = self.random.choice(
            (
                self.any_message,
                self.right_message,
                self.dial,
                self.open,
                self.open,
                self.stream,
                self.stream,
                self.stream,
                self.garbage,
                self.index,
                self.drain,
                self.drain,
                self.doorbell,
                self.ask,
                self.time,
            )
        )
        action()
        self.deliver()
        self.loop.turn(0)

    def deliver(self) -> None:
        self.world.transport.settle()
        for message in self.world.transport.messages():
            if message[0] in (1, 2):
                self.take(message)

    def take(self, message: bytes) -> None:
        kind, _ = HEADER.unpack_from(message)
        if kind == 1:
            self.channels.append(Channel(self.world.guest, message[8:]))
        elif self.random.random() < 0.8:
            relid = struct.unpack("<I", message[8:])[0]
            self.channels = [channel for channel in self.channels if channel.relid != relid]
            self.world.guest.post(7, struct.pack("<I", relid))
            self.world.guest.post(13, struct.pack("<I", relid))

    def check(self) -> None:
        """At the end of time, each request has had exactly one answer."""
        self.world.server.receive(1, 1, HEADER.pack(16, 0))
        for _ in range(5):
            self.world.clock.now += 100
            self.world.sockets.expire()
            self.agent.expire()
            self.integration.expire()
            self.loop.turn(0)
        other = (StatusKind.READY, StatusKind.HEALTH, STARTED)
        answers = [s.id for s in self.statuses if s.kind not in other]
        assert sorted(answers) == list(range(1, self.request + 1))
        assert not self.agent.busy


@pytest.mark.parametrize("seed", range(60))
def test_anything_at_any_time_is_survived(seed: int) -> None:
    chaos = Chaos(seed)
    chaos.connect()
    chaos.dial()
    chaos.deliver()
    chaos.open()
    hello = frame(0x80, u32(1))
    greeting = next(c for c in chaos.channels if c.interface == service(PORT))
    chaos.put(greeting, packet(struct.pack("<II", 1, len(hello)) + hello))
    try:
        for _ in range(400):
            chaos.step()
    except EndVM:
        assert not chaos.polite
    else:
        chaos.check()
