"""A guest without manners, made of bytes: messages, descriptions of memory, rings, doorbells.

It attacks all that one worker serves - storage, a network, the integration services, hv_sock and
the agent behind it - while clients ask for things and time passes. Each choice is made by the next
bytes, so that a fuzzer that keeps what reached something new learns to attack. Recorded packets of
a real Debian's are among what it sends (`fuzz/seeds`).
"""

import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

from fuzz.recorded.seeds import kept

from teuthis.protocol import Exec, Facts, ReadFile, Shutdown, Status, StatusKind
from teuthis.worker.agent.agent import Agent
from teuthis.worker.devices import hvsock
from teuthis.worker.devices.integration import Integration
from teuthis.worker.devices.network import device as network
from teuthis.worker.devices.network.port import Port
from teuthis.worker.devices.storage import storvsp
from teuthis.worker.loop import Loop
from teuthis.worker.vmbus import gpadl
from teuthis.worker.vmbus.messages import INBOUND
from teuthis.worker.vmbus.server import MAX_CHANNELS

from .agent_guest import frame, u32
from .conftest import MEMORY_SIZE, World
from .simulator import DESCRIPTOR, HEADER, Channel, Half, packet, service
from .storage.conftest import SIZE as DISK_SIZE
from .storage.conftest import memory_disk, srb

PORT = 0x7E07
MTU = 1500
HALF_PAGES = 7
DATA_PAGE = 1200
"""Where page lists like to point."""
IN_BAND, TRANSFER, GPA_DIRECT, COMPLETION = 6, 7, 9, 11
WORDS = (0, 1, 2, 3, 7, 8, 13, 0xE1E11, 0xE1E12, 8192, 0x2001, PORT, 2**31, 2**32 - 1)
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
_STORAGE = [
    seed
    for flow in (
        *("storvsp.begin-init", "storvsp.query-protocol-version", "storvsp.query-properties"),
        *("storvsp.end-init", "scsi.inquiry", "scsi.unit", "scsi.report-luns", "scsi.capacity"),
        *("scsi.mode-sense", "scsi.read", "scsi.write", "scsi.synchronize", "scsi.unmap"),
    )
    for seed in kept(flow)
] + [srb(bytes((0x28, 0, 0, 0, 0, 0, 0, 4, 0, 0)), 1, 512 << 10)]  # a read of 512 KiB
_ADAPTER = [
    seed
    for flow in (
        *("nvsp.init", "nvsp.ndis-version", "nvsp.ndis-config", "nvsp.receive-buffer"),
        *("nvsp.send-buffer", "nvsp.rndis-packet", "nvsp.revoke-receive-buffer"),
        "nvsp.revoke-send-buffer",
    )
    for seed in kept(flow)
]
_RNDIS = [
    seed
    for flow in ("rndis.initialize", "rndis.query", "rndis.set", "rndis.packet", "rndis.halt")
    for seed in kept(flow)
]
_HANDSHAKE = ("storvsp.begin-init", "storvsp.query-protocol-version", "storvsp.query-properties",
              "storvsp.end-init")  # fmt: skip

Item = TypeVar("Item")


class Choices:
    """Choices out of bytes; when they are used up, every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def made(self) -> bool:
        """Whether the bytes are used up."""
        return self._at >= len(self._data)

    def bits(self, count: int) -> int:
        size = count // 8
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little")

    def below(self, limit: int) -> int:
        return self.bits(8 if limit <= 256 else 16) % limit

    def one(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def rarely(self, times: int) -> bool:
        """Once in so many times; never when the bytes are used up."""
        return self.bits(8) % times == times - 1

    def word(self) -> int:
        kind = self.bits(8) % 4
        return self.bits(32) if kind == 3 else self.bits(8) if kind == 2 else self.one(WORDS)


class Hostile:
    """A host with all that it offers, its clients, and the guest."""

    def __init__(self, choices: Choices, held: ExitStack) -> None:
        """`held` takes what must be given back."""
        self.choices = choices
        self.world = World()
        self.loop = Loop()
        self.statuses: list[Status] = []
        self.polite = not choices.rarely(4)
        """Leaves its greeting connection and the whole bus alone: lives long."""
        self.posted = 0
        self.request = 0
        self.wishes: set[int] = set()
        """Requests to power off: until its end a guest may still do so."""
        self.channels: list[Channel] = []
        world = self.world
        self.agent = Agent(
            self.loop, world.sockets, world.counters, self.statuses.append, lambda text: None
        )
        self.agent.listen()
        self.integration = Integration(
            self.loop, world.server, world.counters, world.clock, self.statuses.append
        )
        self.files = [held.enter_context(memory_disk(content)) for content in (b"first", b"second")]
        self.disks = storvsp.Storvsp(
            world.server, world.memory, world.counters, self.files, lambda text: None
        )
        world.server.install(storvsp.OFFER, self.disks)
        near, self.switch = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.port = Port(self.loop, near.detach(), MTU + 14)
        held.callback(self.close)
        self.adapter = network.Network(
            *(world.server, world.memory, world.counters, self.port, bytes(6), MTU),
            lambda text: None,
            world.clock,
        )
        world.server.install(network.OFFER, self.adapter)

    def close(self) -> None:
        self.switch.close()
        if not self.port.closed:
            self.port._close()

    # ---- messages --------------------------------------------------------------------------------

    def post(self, kind: int, body: bytes, connection: int = 1, kind_of_message: int = 1) -> None:
        self.posted += 1
        self.world.server.receive(connection, kind_of_message, HEADER.pack(kind, 0) + body)

    def any_message(self) -> None:
        kind = self.choices.one((*INBOUND, self.choices.bits(8)))
        if kind in (14, 16) and not self.choices.rarely(20):
            return  # else nothing lives long enough to be attacked
        words = [self.choices.word() for _ in range(self.choices.below(12))]
        filled = words + [0] * self.choices.one((0, 8, 46))
        connection = self.choices.one((1, 1, 1, 4))
        kind_of_message = 2 if self.choices.rarely(16) else 1
        body = struct.pack(f"<{len(filled)}I", *filled)
        self.post(kind, body, connection, kind_of_message)

    def right_message(self) -> None:
        """One that makes sense, about a channel that is there."""
        channel = self.channel()
        relid, handle = (channel.relid, channel.gpadl) if channel else (1, 0)
        kind = self.choices.one((22, 11, 11, 7, 13, 22, 8, 9))
        handle = self.choices.one((handle, 1, 2, 3))
        match kind:
            case 8:
                count, lie = 1 + self.choices.below(30), self.choices.rarely(4)
                self.share(self.choices.one((1, 2, 3)), relid, count + lie, count)
            case 9:
                self.post(9, struct.pack("<IIQ", 0, handle, self.page()))
            case _:
                last = handle if kind == 11 else self.choices.one((0, 0, 0, 9))
                self.post(kind, struct.pack("<II", relid, last))

    def share(self, handle: int, relid: int, announced: int, count: int) -> None:
        """Describes memory, perhaps less or more than was announced."""
        pages = [self.page() for _ in range(count)]
        size = announced << 12
        head = struct.pack("<IIHHII", relid, handle, 8 + 8 * announced, 1, size, 0)
        self.post(8, head + struct.pack(f"<{min(count, 26)}Q", *pages[:26]))
        if rest := pages[26:]:
            self.post(9, struct.pack(f"<II{len(rest)}Q", 0, handle, *rest))

    def page(self) -> int:
        if self.choices.rarely(64):
            return self.choices.one((0, MEMORY_SIZE >> 12, 1 << 52, 1 << 63))
        return DATA_PAGE + self.choices.below(64)

    def connect(self) -> None:
        self.posted += 2
        self.world.guest.initiate()
        self.world.guest.post(3)

    def dial(self) -> None:
        self.post(21, service(self.choices.word()) + service(PORT))

    # ---- rings -----------------------------------------------------------------------------------

    def channel(self, interface: bytes | None = None) -> Channel | None:
        """An open channel; three guests of four leave their greeting connection alone."""
        greeting = service(PORT)
        usable = [
            channel
            for channel in self.channels
            if channel.gpadl
            and (channel.from_host or channel.interface != greeting or not self.polite)
            and interface in (None, channel.interface)
        ]
        return self.choices.one(usable) if usable else None

    def open(self) -> None:
        """Opens what is offered, as a driver does."""
        for channel in self.channels:
            if not channel.gpadl:
                self.world.guest.recycle()
                pages = self.world.guest.allocate(2 * HALF_PAGES)
                handle = 0x1_0000 + channel.relid
                self.world.guest.share_as(handle, channel.relid, pages)
                self.post(5, struct.pack("<5I120x", channel.relid, 1, handle, 0, HALF_PAGES))
                self.posted += 1
                channel.gpadl = handle
                channel.out = Half(self.world.memory, pages[:HALF_PAGES])
                channel.inn = Half(self.world.memory, pages[HALF_PAGES:])
                self.world.transport.settle()

    def put(self, channel: Channel, raw: bytes) -> None:
        """Writes, whether there is room or not."""
        start = channel.out.words[0] % channel.out.size & ~7
        channel.out.move(start, raw[: channel.out.size])
        channel.out.words[0] = (start + len(raw)) % channel.out.size
        self.world.transport.signal(channel.relid)

    def damaged(self, raw: bytes) -> bytes:
        """Mostly as it is, else with another word somewhere."""
        if len(raw) < 4 or not self.choices.rarely(3):
            return raw
        at = self.choices.below(len(raw) // 4) * 4
        return raw[:at] + struct.pack("<I", self.choices.word()) + raw[at + 4 :]

    def page_list(self, size: int) -> bytes:
        """Of one range that holds so many bytes."""
        first = DATA_PAGE + self.choices.below(64)
        pages = range(first, first + min(-(-size // 4096), 256))
        return struct.pack(f"<IIII{len(pages)}Q", 0, 1, size, 0, *pages)

    def storage(self) -> None:
        """Requests to the disks."""
        channel = self.channel(storvsp.OFFER.interface)
        if channel is None:
            return
        if self.choices.rarely(3):
            for flow in _HANDSHAKE:
                self.put(channel, packet(kept(flow)[0], flags=1, transaction=1))
                self.world.transport.settle()
        for _ in range(self.choices.one((1, 1, 1, 3, 20))):
            self.request_data(channel)

    def request_data(self, channel: Channel) -> None:
        seed = self.damaged(self.choices.one(_STORAGE)[:64])
        (size,) = struct.unpack_from("<I", seed, 24)
        header = self.damaged(self.page_list(min(size, 1 << 20))) if size else b""
        kind = GPA_DIRECT if header else self.choices.one((IN_BAND, IN_BAND, IN_BAND, COMPLETION))
        flags = 0 if self.choices.rarely(30) else 1
        self.put(channel, packet(seed, kind, header=header, flags=flags, transaction=self.request))

    def network(self) -> None:
        """Messages to the adapter, and frames by it."""
        channel = self.channel(network.OFFER.interface)
        if channel is None:
            return
        if self.choices.rarely(3):
            self.set_up(channel)
        if self.choices.bits(8) % 2:
            self.put(channel, packet(self.damaged(self.choices.one(_ADAPTER)), flags=1))
        else:
            self.rndis(channel, self.choices.one(_RNDIS))

    def rndis(self, channel: Channel, seed: bytes) -> None:
        """An RNDIS message, by a page list or in a section of the send buffer."""
        raw = self.damaged(seed)
        kind = self.choices.one((int(seed[0] != 1), int(seed[0] != 1), self.choices.bits(8)))
        header = self.page_list(1 << 20 if self.choices.rarely(16) else len(raw))
        (page,) = struct.unpack_from("<Q", header, 16)
        self.world.memory.bytes[page << 12 : (page << 12) + len(raw)] = raw
        section, size, packet_kind = 2**32 - 1, 0, GPA_DIRECT
        if self.choices.rarely(3):
            section, size = self.choices.one((0, 0, 1, self.choices.word())), len(raw)
            if not self.choices.rarely(4):
                header, packet_kind = b"", IN_BAND
        message = struct.pack("<4I24x", 107, kind, section, size)
        self.put(channel, packet(message, packet_kind, header=header, flags=1, transaction=5))

    def set_up(self, channel: Channel) -> None:
        """What Linux does with an adapter before the first frame."""
        self.put(channel, packet(kept("nvsp.init")[0], flags=1))
        for kind, handle in ((101, 0x2_0000), (104, 0x2_0001)):
            self.world.guest.recycle()
            pages = self.world.guest.allocate(64 if kind == 101 else 4)
            self.world.guest.share_as(handle, channel.relid, pages)
            self.posted += -(-len(pages) // 28)
            identity = 0xCAFE if kind == 101 else 0
            self.put(channel, packet(struct.pack("<3I28x", kind, handle, identity), flags=1))
        self.world.transport.settle()
        for seed in (kept("rndis.initialize")[0], *kept("rndis.set")):
            self.rndis(channel, seed)
            self.world.transport.settle()
        self.take_packets(channel)

    def service(self) -> None:
        """Answers what an integration service asked last."""
        services = {each.interface for each in self.integration.services}
        channel = next(
            (each for each in self.channels if each.gpadl and each.interface in services), None
        )
        if self.choices.rarely(2):
            channel = self.channel()
        if channel is None or channel.interface not in services:
            return
        for kind, _, payload in self.take_packets(channel):
            if kind != IN_BAND or len(payload) < 36:
                continue
            answer = bytearray(payload)
            answer[25] = 5
            if answer[12:14] == b"\0\0":  # a negotiation: the last version on offer
                (_, versions) = struct.unpack_from("<HH", answer, 28)
                last = answer[28 + 8 + 8 : 28 + 8 + 12] if versions else bytes(4)
                answer[28 : 28 + 16] = struct.pack("<HHI", 1, 1, 0) + answer[36:40] + last
            elif answer[12:14] == b"\x01\0":  # a beat
                (number,) = struct.unpack_from("<Q", answer, 28)
                struct.pack_into("<Q", answer, 28, number + 1)
            self.put(channel, packet(self.damaged(bytes(answer))))

    def stream(self) -> None:
        channel = self.channel()
        if channel is not None:
            count = 1 + self.choices.below(3)
            data = b"".join(self.choices.one(LIKELY) for _ in range(count))
            if self.choices.rarely(5):
                data = self.choices.one(FRAMES)
            size = self.choices.word() if self.choices.rarely(20) else len(data)
            self.put(channel, packet(struct.pack("<II", 1, size) + data))

    def garbage(self) -> None:
        channel = self.channel()
        if channel is not None:
            words = [self.choices.word() for _ in range(4 * (1 + self.choices.below(4)))]
            raw = struct.pack(f"<{len(words)}I", *words)
            self.put(channel, packet(raw) if self.choices.bits(8) % 2 else raw)

    def index(self) -> None:
        """Lies in a control page."""
        channel = self.channel()
        if channel is not None:
            half = self.choices.one((channel.out, channel.inn))
            word = self.choices.one((0, 1, 2, 3, 16))
            value = self.choices.word()
            aligned = value % half.size & ~7
            half.words[word] = self.choices.one((aligned, aligned, value))
            self.world.transport.signal(channel.relid)

    def take_packets(self, channel: Channel) -> list[tuple[int, int, bytes]]:
        """(type, transaction, payload) of what the host sent, as far as it can be read."""
        half = channel.inn
        found: list[tuple[int, int, bytes]] = []
        write, read = (half.words[word] % half.size & ~7 for word in (0, 1))
        while read != write and len(found) < 100:
            kind, offset, length, _, transaction = DESCRIPTOR.unpack(half.take(read, 16))
            if not 2 <= offset <= length or length * 8 >= half.size:
                break
            start = (read + offset * 8) % half.size
            found.append((kind, transaction, half.take(start, (length - offset) * 8)))
            read = (read + length * 8 + 8) % half.size
        half.words[1] = write
        self.world.transport.signal(channel.relid)
        return found

    def drain(self) -> None:
        """Takes what the host sent; gives sections of the receive buffer back."""
        channel = self.channel()
        if channel is not None:
            for kind, transaction, _ in self.take_packets(channel):
                if kind == TRANSFER:
                    answer = self.damaged(struct.pack("<II", 108, 1))
                    self.put(channel, packet(answer, COMPLETION, transaction=transaction))

    def doorbell(self) -> None:
        self.world.server.doorbell(self.choices.below(2048))

    # ---- what others do --------------------------------------------------------------------------

    def ask(self) -> None:
        """A client asks for something."""
        self.request += 1
        null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
        kind = self.choices.below(8)
        if kind >= 4:
            self.agent.handle(Exec(id=self.request, argv=["x"], env={}, cwd="/"), null)
            return
        for descriptor in null[1:]:
            os.close(descriptor)
        if kind == 0:
            os.close(null[0])
            self.wishes.add(self.request)
            self.integration.handle(Shutdown(id=self.request), [])
        elif kind == 1:
            self.integration.handle(Facts(id=self.request), null[:1])
        else:
            self.agent.handle(ReadFile(id=self.request, path="/x"), null[:1])

    def shrink(self) -> None:
        """The host loses the disks' data: reading fails; or gets some back."""
        for disk in self.files:
            os.ftruncate(disk._descriptor, self.choices.one((0, DISK_SIZE)))

    def frames(self) -> None:
        """The switch sends frames, and takes some."""
        for _ in range(1 + self.choices.below(3)):
            size = self.choices.one((60, 14, 1514, 13, 1515))
            try:
                self.switch.send(bytes(size), socket.MSG_DONTWAIT)
                self.switch.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def time(self) -> None:
        self.world.clock.now += self.choices.one((0.1, 4, 40))
        self.expire()

    def expire(self) -> None:
        self.world.sockets.expire()
        self.agent.expire()
        self.integration.expire()

    # ---- a life ----------------------------------------------------------------------------------

    ACTIONS: tuple[Callable[["Hostile"], None], ...] = (
        *(any_message, right_message, dial, open, open, stream, stream, stream, garbage, index),
        *(drain, drain, doorbell, ask, time, storage, storage, storage, network, network, network),
        *(service, service, service, frames, shrink),
    )

    def begin(self) -> None:
        """A guest as it is after its boot."""
        self.connect()
        self.dial()
        self.deliver()
        self.open()
        hello = frame(0x80, u32(1))
        greeting = next(each for each in self.channels if each.interface == service(PORT))
        self.put(greeting, packet(struct.pack("<II", 1, len(hello)) + hello))

    def step(self) -> None:
        self.choices.one(self.ACTIONS)(self)
        self.deliver()
        self.loop.turn(0)
        self.deliver()
        self.judge()

    def deliver(self) -> None:
        self.world.transport.settle()
        for message in self.world.transport.messages():
            if message[0] in (1, 2):
                self.take(message)

    def take(self, message: bytes) -> None:
        kind, _ = HEADER.unpack_from(message)
        if kind == 1:
            self.channels.append(Channel(self.world.guest, message[8:]))
        elif not self.choices.rarely(5):
            relid = struct.unpack("<I", message[8:])[0]
            self.channels = [channel for channel in self.channels if channel.relid != relid]
            self.post(7, struct.pack("<I", relid))
            self.post(13, struct.pack("<I", relid))

    # ---- judgement -------------------------------------------------------------------------------

    def judge(self) -> None:
        """What the guest has made the worker keep is bounded."""
        server = self.world.server
        assert server._gpadls.pages <= gpadl.MAX_TOTAL_PAGES
        assert len(server._channels) < MAX_CHANNELS
        assert len(self.world.sockets._connections) <= hvsock.MAX_CONNECTIONS
        assert len(self.disks._waiting) <= HALF_PAGES << 12 >> 4
        assert len(self.adapter._controls) <= network._CONTROLS_MAX
        assert not server.outbox

    def count(self) -> None:
        """Each message that the guest posted is counted once: taken, or refused for a reason."""
        counts = self.world.counters.snapshot()
        flows = {"vmbus.unknown", *(shape.flow for shape in INBOUND.values())}
        assert sum(counts[flow].count + counts[flow].rejected for flow in flows) == self.posted

    def end(self) -> None:
        """At the end of time, each request has had its answer, and no other."""
        self.world.server.receive(1, 1, HEADER.pack(16, 0))
        for _ in range(5):
            self.world.clock.now += 100
            self.expire()
            self.loop.turn(0)
        other = (StatusKind.READY, StatusKind.HEALTH, StatusKind.STARTED)
        answers = [status.id for status in self.statuses if status.kind not in other]
        assert len(answers) == len(set(answers))
        assert set(range(1, self.request + 1)) - self.wishes <= set(answers)
        assert not self.agent.busy
