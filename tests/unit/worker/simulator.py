"""A small VMBus guest in Python: it does to the worker what a Linux kernel does.

It has RAM of its own, posts messages, shares rings and speaks hv_sock, over any `Transport`: into a
`Server` in this process or to a worker process through a link and doorbells.
"""

import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from teuthis.worker.memory import PAGE_SIZE, GuestMemory

VERSION = 0x0005_0003
HEADER = struct.Struct("<II")
DESCRIPTOR = struct.Struct("<HHHHQ")
PATIENCE = 300.0
"""Seconds to wait for the host, which may be another process on a busy machine."""
TAIL = bytes.fromhex("cbfae611bd5864006a7986d3")


def service(port: int) -> bytes:
    return struct.pack("<I", port) + TAIL


class Transport(Protocol):
    def post(self, connection_id: int, payload: bytes) -> None: ...

    def signal(self, relid: int) -> None: ...

    def messages(self) -> list[bytes]: ...

    def settle(self) -> None:
        """Lets the host do what it has to do now."""


class Half:
    """One ring half as the guest uses it."""

    def __init__(self, memory: GuestMemory, pages: list[int]) -> None:
        self.memory = memory
        self.pages = pages
        self.size = (len(pages) - 1) * PAGE_SIZE
        self.words = memory.words[pages[0] * 1024 : pages[0] * 1024 + 1024]
        self.words[16] = 1

    def move(self, position: int, data: bytes) -> None:
        """Copies into the ring, page by page."""
        at = 0
        while at < len(data):
            logical = (position + at) % self.size
            piece = min(PAGE_SIZE - logical % PAGE_SIZE, len(data) - at)
            address = self.pages[1 + logical // PAGE_SIZE] * PAGE_SIZE + logical % PAGE_SIZE
            self.memory.bytes[address : address + piece] = data[at : at + piece]
            at += piece

    def take(self, position: int, size: int) -> bytes:
        """Copies out of the ring, page by page."""
        out = []
        while size:
            logical = position % self.size
            piece = min(PAGE_SIZE - logical % PAGE_SIZE, size)
            address = self.pages[1 + logical // PAGE_SIZE] * PAGE_SIZE + logical % PAGE_SIZE
            out.append(self.memory.bytes[address : address + piece])
            position += piece
            size -= piece
        return b"".join(out)

    def free(self) -> int:
        return self.size - (self.words[0] - self.words[1]) % self.size


def packet(
    payload: bytes,
    kind: int = 6,
    position: int = 0,
    *,
    header: bytes = b"",
    transaction: int = 0,
    flags: int = 0,
) -> bytes:
    """One packet as Linux writes it."""
    payload += bytes(-len(payload) % 8)
    offset = (DESCRIPTOR.size + len(header)) // 8
    length = offset + len(payload) // 8
    descriptor = DESCRIPTOR.pack(kind, offset, length, flags, transaction)
    return descriptor + header + payload + struct.pack("<Q", position << 32)


class Channel:
    """An offered channel, and the hv_sock stream in it once it is open."""

    def __init__(self, guest: "Guest", offer: bytes) -> None:
        self.guest = guest
        self.interface, self.instance = offer[:16], offer[16:32]
        self.from_host = bool(offer[56])
        self.relid = struct.unpack_from("<I", offer, 176)[0]
        self.connection_id = struct.unpack_from("<I", offer, 184)[0]
        self.gpadl = 0
        self.open = False
        self.rescinded = False
        self.received = bytearray()
        self.ended = False
        self.signals_received = 0
        self.outgoing: deque[bytes] = deque()
        self.gone = False

    def share_ring(self, pages_each: int = 7, split: int | None = None) -> list[int]:
        """GPADL for a ring of `pages_each` pages per half."""
        pages = self.guest.allocate(2 * pages_each)
        self.gpadl = self.guest.share(self.relid, pages)
        half = split if split is not None else pages_each
        self.out = Half(self.guest.memory, pages[:half])
        self.inn = Half(self.guest.memory, pages[half:])
        return pages

    def do_open(self, pages_each: int = 7) -> None:
        self.share_ring(pages_each)
        self.guest.post(5, struct.pack("<5I120x", self.relid, 1, self.gpadl, 0, pages_each))
        result = self.guest.expect(6)
        assert struct.unpack("<III", result) == (self.relid, 1, 0)
        self.open = True

    def write(self, raw: bytes, *, signal: bool | None = None) -> bool:
        """Puts raw bytes into the ring as one or more packets; False: no room."""
        if self.out.free() <= len(raw):
            self.out.words[3] = len(raw)
            return False
        start = self.out.words[0]
        self.out.move(start, raw)
        self.out.words[0] = (start + len(raw)) % self.out.size
        if signal is None:
            signal = self.out.words[1] == start
        if signal:
            self.guest.transport.signal(self.relid)
        return True

    def send(self, data: bytes, piece: int = 4072) -> None:
        """Sends stream bytes, as far as the ring has room; the rest goes with `poll`."""
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            self.outgoing.append(packet(struct.pack("<II", 1, len(part)) + part))
        self.flush()

    def finish(self) -> None:
        """End of stream."""
        self.outgoing.append(packet(struct.pack("<II", 1, 0)))
        self.flush()

    def flush(self) -> None:
        while self.outgoing and self.write(self.outgoing[0]):
            self.outgoing.popleft()

    def poll(self) -> bool:
        """Reads the stream, flushes; True: something moved."""
        if not self.open or self.gone:
            return False
        pending = len(self.outgoing)
        self.flush()
        moved = len(self.outgoing) != pending
        while True:
            write, read = self.inn.words[0], self.inn.words[1]
            if write == read:
                return moved
            moved = True
            before = self.inn.free()
            kind, offset, length, _, _ = DESCRIPTOR.unpack(self.inn.take(read, 16))
            assert kind == 6
            payload = self.inn.take((read + offset * 8) % self.inn.size, (length - offset) * 8)
            tag, size = struct.unpack_from("<II", payload)
            assert tag == 1
            assert size <= 16384
            if size == 0:
                self.ended = True
            self.received += payload[8 : 8 + size]
            self.inn.words[1] = (read + length * 8 + 8) % self.inn.size
            pending_size = self.inn.words[3]
            if pending_size and before <= pending_size < self.inn.free():
                self.guest.transport.signal(self.relid)

    def close(self) -> None:
        """What Linux does once the host has rescinded."""
        if self.open:
            self.guest.post(7, struct.pack("<I", self.relid))
            self.open = False
        self.guest.post(13, struct.pack("<I", self.relid))
        self.gone = True


class Guest:
    """The kernel."""

    def __init__(self, memory: GuestMemory, transport: Transport) -> None:
        self.memory = memory
        self.transport = transport
        self.channels: dict[int, Channel] = {}
        self.inbox: deque[tuple[int, bytes]] = deque()
        self._next_page = 16
        self._next_gpadl = 0xE1E10
        self.on_offer: Callable[[Channel], None] = lambda channel: None

    def allocate(self, count: int) -> list[int]:
        pages = list(range(self._next_page, self._next_page + count))
        self._next_page += count
        for page in pages:
            self.memory.bytes[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = bytes(PAGE_SIZE)
        return pages

    def recycle(self) -> None:
        """Uses old pages again, whoever still uses them."""
        self._next_page = 16 + self._next_page % 1024

    def post(self, kind: int, body: bytes = b"", connection_id: int = 1) -> None:
        self.transport.post(connection_id, HEADER.pack(kind, 0) + body)

    def pump(self) -> None:
        """Takes messages and stream bytes until nothing moves any more."""
        while True:
            self.transport.settle()
            moved = False
            for message in self.transport.messages():
                moved = True
                self._take(message)
            for channel in list(self.channels.values()):
                moved |= channel.poll()
            if not moved:
                return

    def _take(self, message: bytes) -> None:
        kind, _ = HEADER.unpack_from(message)
        body = message[8:]
        if kind == 1:
            channel = Channel(self, body)
            self.channels[channel.relid] = channel
            self.on_offer(channel)
        elif kind == 2:
            relid = struct.unpack("<I", body)[0]
            self.channels[relid].poll()
            self.channels[relid].rescinded = True
            self.channels.pop(relid).close()
        else:
            self.inbox.append((kind, body))

    def expect(self, kind: int) -> bytes:
        """The next message of that kind; others stay."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for index, (found, body) in enumerate(self.inbox):
                if found == kind:
                    del self.inbox[index]
                    return body
            self.transport.settle()
            for message in self.transport.messages():
                self._take(message)
        raise AssertionError(f"no message {kind}; there are {[k for k, _ in self.inbox]}")

    def connect(self, version: int = VERSION) -> bool:
        """Negotiates and asks for offers."""
        self.initiate(version)
        supported, _, connection = struct.unpack("<BBxxI", self.expect(15))
        if not supported:
            return False
        assert connection == 1
        self.post(3)
        self.expect(4)
        return True

    def initiate(self, version: int = VERSION) -> None:
        modern = version >= 5 << 16
        body = struct.pack("<IIBB6xQQ", version, 0, 2 if modern else 0, 0, 0x1000, 0x2000)
        self.post(14, body, 4 if modern else 1)

    def share(self, relid: int, pages: list[int]) -> int:
        """Makes a GPADL as Linux does, with bodies where needed."""
        self._next_gpadl += 1
        handle = self._next_gpadl
        self.share_as(handle, relid, pages)
        assert struct.unpack("<III", self.expect(10)) == (relid, handle, 0)
        return handle

    def share_as(self, handle: int, relid: int, pages: list[int]) -> None:
        count = len(pages)
        head = struct.pack("<IIHHII", relid, handle, 8 + 8 * count, 1, count * PAGE_SIZE, 0)
        self.post(8, head + struct.pack(f"<{min(count, 26)}Q", *pages[:26]))
        for at in range(26, count, 28):
            part = pages[at : at + 28]
            self.post(9, struct.pack("<II", 0, handle) + struct.pack(f"<{len(part)}Q", *part))

    def dial(self, port: int, own_port: int = 0x5000) -> Channel:
        """Connects to a port of the host and opens the channel."""
        offered: list[Channel] = []
        previous, self.on_offer = self.on_offer, offered.append
        self.post(21, service(own_port) + service(port))
        deadline = time.monotonic() + PATIENCE
        while not offered and time.monotonic() < deadline:
            self.pump()
        self.on_offer = previous
        (channel,) = offered
        assert not channel.from_host
        assert channel.interface == service(port)
        assert channel.instance == service(own_port)
        channel.do_open()
        return channel
