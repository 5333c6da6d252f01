"""hv_sock: byte streams between vsock ports of the guest and of the host, one channel each.

The host always makes the offer and the guest always opens it, whoever connects. A stream is a
series of in-band packets {u32 1, u32 size, data}; size 0 says that the sender is done. Linux frees
a socket only when the host rescinds its channel, so the order of an ending is: the guest's end of
stream (or CLOSE), our RESCIND, then the guest's CLOSE and RELID_RELEASED.

Flow control belongs to the protocol inside the stream. What a guest does not read is kept up to a
limit far above what that protocol needs; then its stream ends.
"""

import struct
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from teuthis.flows import FLOWS, Counters
from teuthis.worker.vmbus.channel import Channel
from teuthis.worker.vmbus.messages import Offer
from teuthis.worker.vmbus.ring import IN_BAND, Outgoing, Packet, RingError
from teuthis.worker.vmbus.server import Server

_HEADER = struct.Struct("<II")
_PACKET_TYPE = FLOWS["hvsock.data"].values["packet_type"]
_MAX_DATA = FLOWS["hvsock.data"].values["data_max"]
_MAX_UNSENT: Final = FLOWS["hvsock.send"].values["unsent_max"]
_ITEM_BYTES: Final = 128
"""About what keeping one more piece of unsent data takes besides its bytes."""
_END_OF_STREAM = _HEADER.pack(_PACKET_TYPE, 0)
MAX_CONNECTIONS: Final = FLOWS["vmbus.tl-connect-request"].values["connections_max"]

_FLAGS = 0x2000  # TLNPI provider: an hv_sock offer
_FROM_GUEST = bytes(5)
_FROM_HOST = bytes(4) + b"\x01"
_SERVICE = struct.Struct("<I12s")
_SERVICE_TAIL = bytes.fromhex("cbfae611bd5864006a7986d3")

_FIRST_HOST_PORT = 0x4000_0000
OPEN_SECONDS: Final = 30.0
"""How long a guest may take to open an offered channel."""
LINGER_SECONDS: Final = 8.0
"""How long a guest may take to end its stream after we ended ours."""
_PIECE = 1024
"""Bytes worth waiting for when the ring is full."""
_PASSES = 8
"""Ring reads in one call before others get their turn."""


def service_id(port: int) -> bytes:
    """The GUID that stands for a vsock port, in wire order."""
    return _SERVICE.pack(port, _SERVICE_TAIL)


def service_port(guid: bytes) -> int | None:
    """The vsock port a GUID stands for, or None."""
    port, tail = _SERVICE.unpack(guid)
    return port if tail == _SERVICE_TAIL else None


class Handler(Protocol):
    """The protocol inside a stream."""

    def opened(self) -> None:
        """The guest has taken the connection."""

    def received(self, data: bytes) -> None:
        """Bytes from the guest, split anyhow."""

    def closed(self) -> None:
        """The connection is over, for whatever reason. Called once."""


Accept = Callable[["Connection"], Handler | None]
"""Makes the handler of a new connection, or refuses it."""


class Connection:
    """One stream; the device behind its channel."""

    handler: Handler

    def __init__(self, sockets: "HvSock") -> None:
        self.deadline: float | None = None
        self._sockets = sockets
        self._channel: Channel | None = None
        self._unsent: deque[bytes | memoryview] = deque()
        self._unsent_size = 0
        self._waiting = False
        """Whether the guest is to signal when it has made room."""
        self._closing = False
        self._end_unsent = False
        self._over = False

    @property
    def relid(self) -> int | None:
        """Of its channel."""
        return None if self._channel is None else self._channel.relid

    @property
    def settled(self) -> bool:
        """Whether the guest has been given all that was sent, and more may be sent."""
        return not (self._unsent or self._closing or self._over)

    def attach(self, channel: Channel, deadline: float | None) -> None:
        """Binds the channel that was offered for this connection."""
        self._channel = channel
        self.deadline = deadline

    # ---- what the handler does -------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Sends bytes, now or when the ring has room."""
        if self._over or self._closing or not data:
            return
        self._unsent.append(data)
        self._unsent_size += len(data) + _ITEM_BYTES
        self._write()
        if self._unsent_size > _MAX_UNSENT:
            self._sockets.counters.reject("hvsock.send", "unread")
            self.abort()

    def close(self) -> None:
        """Ends our direction once all is sent; the guest is given time to end its own."""
        if self._over or self._closing:
            return
        self._closing = self._end_unsent = True
        self.deadline = self._sockets.clock() + LINGER_SECONDS
        self._write()

    def abort(self) -> None:
        """Takes the connection away at once."""
        if self._channel is not None:
            self._sockets.server.rescind(self._channel)

    # ---- what the server does --------------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        """The guest has opened the channel."""
        self.deadline = None
        self.handler.opened()
        self._write()

    def ready(self, channel: Channel) -> bool:
        """Writes what waited for room and reads what the guest sent."""
        if self._waiting:
            self._write()
        for _ in range(_PASSES):
            packets = self._sockets.server.take(channel)
            if not packets:
                return False
            data, ended = self._unwrap(packets)
            if data:
                self.handler.received(data)
            if ended:
                self.abort()
                return False
        return True

    def closed(self, channel: Channel) -> None:
        """The channel is gone; a CLOSE of the guest's own is answered by our RESCIND."""
        if not self._over:
            self._over = True
            self.deadline = None
            self._unsent.clear()
            self._unsent_size = 0
            self._sockets.forget(self)
            self.handler.closed()
        self._sockets.server.rescind(channel)

    # ---- packets ---------------------------------------------------------------------------------

    def _unwrap(self, packets: list[Packet]) -> tuple[bytes, bool]:
        """The bytes in `packets`, and whether the stream ends there. Raises `RingError`."""
        counters = self._sockets.counters
        pieces: list[memoryview] = []
        for packet in packets:
            payload = packet.payload
            if packet.type != IN_BAND or len(payload) < _HEADER.size:
                counters.reject("hvsock.data", "type")
                raise RingError("not an hv_sock packet")
            kind, size = _HEADER.unpack_from(payload)
            padding = len(payload) - _HEADER.size - size
            if kind != _PACKET_TYPE or size > _MAX_DATA or not 0 <= padding < 8:
                counters.reject("hvsock.data", "type" if kind != _PACKET_TYPE else "size")
                raise RingError("an hv_sock packet that lies")
            counters.accept("hvsock.data", size)
            if size == 0:
                return b"".join(pieces), True
            pieces.append(payload[_HEADER.size : _HEADER.size + size])
        return b"".join(pieces), False

    def _write(self) -> None:
        channel = self._channel
        if channel is None or channel.writer is None:
            return
        try:
            self._fill(channel)
        except RingError:
            self.abort()

    def _fill(self, channel: Channel) -> None:
        """Moves what is unsent into the ring, as far as there is room."""
        writer = channel.writer
        while writer is not None and (self._unsent or self._end_unsent):
            room = min(writer.room(), _HEADER.size + _MAX_DATA)
            wanted = _HEADER.size + (min(len(self._unsent[0]), _PIECE) if self._unsent else 0)
            wanted += -wanted % 8
            if room < wanted:
                self._waiting = True
                if not writer.wait_for(wanted):
                    return
                continue
            packet = self._packet(room)
            self._end_unsent = self._end_unsent and packet is not _END_OF_STREAM
            self._sockets.counters.accept("hvsock.send", len(packet))
            if writer.write((Outgoing(packet),)):
                self._sockets.server.interrupt(channel)
        if self._waiting and writer is not None:
            self._waiting = False
            writer.stop_waiting()

    def _packet(self, room: int) -> bytes:
        """The next packet, of at most `room` bytes."""
        if not self._unsent:
            return _END_OF_STREAM
        pieces = []
        room -= _HEADER.size
        while self._unsent and room:
            data = self._unsent.popleft()
            if len(data) > room:
                view = memoryview(data)
                self._unsent.appendleft(view[room:])
                data = view[:room]
            else:
                self._unsent_size -= _ITEM_BYTES
            self._unsent_size -= len(data)
            pieces.append(data)
            room -= len(data)
        body = b"".join(pieces)
        return _HEADER.pack(_PACKET_TYPE, len(body)) + body


class Dropped:
    """What answers for a stream that a restored machine does not go on with."""

    def opened(self) -> None:
        """Never called: the channel goes away first."""

    def received(self, data: bytes) -> None:
        """What the guest may still have sent is of no use."""

    def closed(self) -> None:
        """As it should be."""


class HvSock:
    """All streams of one VM."""

    def __init__(self, server: Server, counters: Counters, clock: Callable[[], float]) -> None:
        """`clock`: seconds, monotonic."""
        self.server = server
        self.counters = counters
        self.clock = clock
        self._connections: set[Connection] = set()
        self._listeners: dict[int, Accept] = {}
        self._last_host_port = _FIRST_HOST_PORT
        server.on_connect_request = self._connect_request

    def listen(self, port: int, accept: Accept) -> None:
        """Lets `accept` answer each guest that connects to host port `port`."""
        self._listeners[port] = accept

    def connect(self, port: int, accept: Accept) -> bool:
        """Connects to a port of the guest; False when the guest takes no offers now.

        A guest without a listener there says nothing: the connection closes after `OPEN_SECONDS`.
        """
        self._last_host_port = max((self._last_host_port + 1) & 0xFFFF_FFFF, _FIRST_HOST_PORT)
        instance = service_id(self._last_host_port)
        return self._offer(Offer(service_id(port), instance, _FLAGS, _FROM_HOST), accept)

    def _connect_request(self, endpoint: bytes, service: bytes) -> str | None:
        """None: accepted; else the kind of bad input, as the register names it."""
        port = service_port(service)
        accept = self._listeners.get(port) if port is not None else None
        if accept is None or service_port(endpoint) is None:
            return "service"
        offered = self._offer(Offer(service, endpoint, _FLAGS, _FROM_GUEST), accept)
        return None if offered else "limit"

    def _offer(self, offer: Offer, accept: Accept) -> bool:
        # Asked first: a handler that was made for nothing would wait for ever to be closed.
        if len(self._connections) >= MAX_CONNECTIONS or not self.server.takes_offers:
            return False
        connection = Connection(self)
        handler = accept(connection)
        if handler is None:
            return False
        connection.handler = handler
        channel = self.server.offer(offer, connection)
        assert channel is not None
        connection.attach(channel, self.clock() + OPEN_SECONDS)
        self._connections.add(connection)
        return True

    @property
    def last_host_port(self) -> int:
        """The port of the last connection that the host made."""
        return self._last_host_port

    def relid(self, connection: Connection) -> int | None:
        """The channel of a connection, while it lives."""
        return connection.relid if connection in self._connections else None

    def restore(self, last_host_port: int) -> None:
        """Goes on with the host's port numbers of a saved machine."""
        if not _FIRST_HOST_PORT <= last_host_port < 1 << 32:
            raise ValueError("a port that the host does not use")
        self._last_host_port = last_host_port

    def restored(self, accept: Accept | None) -> Connection:
        """A connection of a saved machine, to be attached to its channel.

        Without `accept` there is nobody who goes on with it.
        """
        connection = Connection(self)
        handler = accept(connection) if accept is not None else None
        connection.handler = handler if handler is not None else Dropped()
        self._connections.add(connection)
        return connection

    def forget(self, connection: Connection) -> None:
        """Called by a connection that is over."""
        self._connections.discard(connection)

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return min((c.deadline for c in self._connections if c.deadline is not None), default=None)

    def expire(self) -> None:
        """Takes away the connections whose guest has let its time pass."""
        now = self.clock()
        for connection in list(self._connections):
            if connection.deadline is not None and connection.deadline <= now:
                connection.abort()
