"""What all integration services share: framing, negotiation, one question at a time.

A packet is a pipe header {u32 1, u32 size of the rest} and a message: {u16 framework major, minor,
u16 type, u16 version major, minor, u16 size of the body, u32 status, u8 transaction, u8 flags,
u16 0} and its body. The host speaks first, and the guest answers in place: the same message, its
body changed. Reference: Linux `drivers/hv/hv_util.c`, `include/linux/hyperv.h`.
"""

import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.worker.vmbus.channel import Channel, Saveable
from teuthis.worker.vmbus.messages import Offer
from teuthis.worker.vmbus.ring import IN_BAND, Outgoing, Packet, RingError
from teuthis.worker.vmbus.server import Server

HEADER: Final = struct.Struct("<IIHHHHHHIBBxx")
_PIPE_HEADER: Final = 8
_DATA: Final = 1
_NEGOTIATION: Final = "integration.negotiation"
_FRAMEWORKS: Final = ((3, 0), (1, 0))
_COUNTS: Final = struct.Struct("<HHI")
_VERSION: Final = struct.Struct("<HH")

_TRANSACTION, _REQUEST, _RESPONSE = 1, 2, 4

_PIPE_OFFER: Final = 0x10
_MESSAGE_MODE: Final = struct.pack("<I", 4)

Version = tuple[int, int]
Clock = Callable[[], float]
"""Seconds, monotonic."""


class Malformed(RingError):
    """Not an answer to what was asked; the channel ends."""

    def __init__(self, kind: str, why: str) -> None:
        """`kind`: why, as the register names it."""
        super().__init__(why)
        self.kind = kind


class Answer(msgspec.Struct, frozen=True):
    """A guest's answer, its frame checked: `status` 0 is success."""

    status: int
    body: bytes


class Service(Saveable):
    """The device behind one service's channel. Subclasses ask and judge the bodies of answers."""

    flow: ClassVar[str]
    """The register's entry for its answers; its number is the type of its messages."""
    versions: ClassVar[tuple[Version, ...]]
    interface: ClassVar[bytes]
    """GUIDs in wire order."""
    instance: ClassVar[bytes]

    def __init__(self, server: Server, counters: Counters, clock: Clock) -> None:
        self._server = server
        self._counters = counters
        self._clock = clock
        self._channel: Channel | None = None
        self._framework: Version = (0, 0)
        self._version: Version | None = None
        self._transaction = 0
        self.sequence = 0
        """What a subclass counts, if it counts anything."""
        self._asked: str | None = None
        """The flow of the answer that is awaited."""
        offer = Offer(self.interface, self.instance, _PIPE_OFFER, _MESSAGE_MODE)
        server.install(offer, self)

    # ---- what subclasses do and are told ---------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether the service is agreed upon and may be asked something."""
        return self._version is not None and self._asked is None

    def ask(self, body: bytes) -> None:
        """Asks the guest; `answered` or `lost` follows. Only when `idle`."""
        self._send(self.flow, body)

    def negotiated(self) -> None:
        """The guest offers the service: `ask` may be called."""

    def answered(self, answer: Answer) -> None:
        """The guest's answer to the last `ask`. Raises `Malformed` when its body is none."""

    def lost(self) -> None:
        """The guest does not offer the service any more; nothing will be answered."""

    def resumed(self) -> None:
        """The guest goes on after it stood still; called only when the service is agreed upon."""

    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        return None

    def expire(self) -> None:
        """Does what is due by now."""

    # ---- what the server does --------------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        """The guest has opened the channel: agree on versions."""
        self._channel = channel
        versions = b"".join(_VERSION.pack(*each) for each in (*_FRAMEWORKS, *self.versions))
        body = _COUNTS.pack(len(_FRAMEWORKS), len(self.versions), 0) + versions
        self._send(_NEGOTIATION, body)

    def ready(self, channel: Channel) -> bool:
        """Reads the guest's answer. Raises `RingError` for anything else."""
        packets = self._server.take(channel)
        for packet in packets:
            self._receive(packet)
        return bool(packets)

    def closed(self, channel: Channel) -> None:
        """The channel is gone; the guest may open it again when it is offered anew."""
        self._channel = None
        self._version = self._asked = None
        self.lost()

    # ---- saved machines --------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """What was agreed upon, and what the guest still has to answer."""
        return {
            "framework": self._framework,
            "version": self._version,
            "transaction": self._transaction,
            "asked": self._asked,
            "sequence": self.sequence,
        }

    def restore(self, state: dict[str, Any], channel: Channel | None) -> None:
        """Goes on from there; who had asked is gone.

        Raises:
            ValueError, KeyError, TypeError: no service can have that state.
        """
        framework = tuple(state["framework"])
        version = None if state["version"] is None else tuple(state["version"])
        transaction, asked, sequence = state["transaction"], state["asked"], state["sequence"]
        if framework not in (*_FRAMEWORKS, (0, 0)) or version not in (*self.versions, None):
            raise ValueError("versions that were never on offer")
        if asked not in (None, _NEGOTIATION, self.flow) or transaction not in range(256):
            raise ValueError("a question that was never asked")
        if not isinstance(sequence, int) or not 0 <= sequence < 1 << 62:
            raise ValueError("a number that was never counted to")
        self._framework, self._version = framework, version
        self._transaction, self._asked, self.sequence = transaction, asked, sequence
        self._channel = None if channel is None or channel.reader is None else channel

    def go_on(self) -> None:
        """The guest goes on after it stood still."""
        if self._version is not None:
            self.resumed()

    # ---- messages --------------------------------------------------------------------------------

    def _send(self, flow: str, body: bytes) -> None:
        channel = self._channel
        if channel is None or channel.writer is None:
            return
        self._transaction = (self._transaction + 1) & 0xFF
        message = HEADER.pack(
            _DATA,
            HEADER.size - _PIPE_HEADER + len(body),
            *self._framework,
            FLOWS[flow].number,
            *(self._version or (0, 0)),
            len(body),
            0,
            self._transaction,
            _TRANSACTION | _REQUEST,
        )
        message += body
        try:
            if channel.writer.room() < len(message) + -len(message) % 8:
                raise RingError("no room in a ring that must be empty")
            self._asked = flow
            self._counters.accept("integration.request", len(message))
            if channel.writer.write((Outgoing(message),)):
                self._server.interrupt(channel)
        except RingError:
            self._server.rescind(channel)

    def _receive(self, packet: Packet) -> None:
        flow, self._asked = self._asked, None
        try:
            answer = self._checked(packet, flow)
            if flow == _NEGOTIATION:
                self._negotiate(answer)
            else:
                self.answered(answer)
        except Malformed as error:
            self._counters.reject(flow or self.flow, error.kind)
            raise
        self._counters.accept(flow or self.flow, len(packet.payload))

    def _checked(self, packet: Packet, flow: str | None) -> Answer:
        """The answer in a packet, to what was asked. Raises `Malformed`."""
        payload = packet.payload
        if flow is None:
            raise Malformed("unasked", "an answer that nobody awaits")
        if packet.type != IN_BAND or not HEADER.size <= len(payload) <= FLOWS[flow].max_bytes:
            raise Malformed("frame", "not a message")
        pipe, rest, _, _, kind, _, _, size, status, transaction, flags = HEADER.unpack_from(payload)
        if pipe != _DATA or not HEADER.size <= _PIPE_HEADER + rest <= len(payload):
            raise Malformed("frame", "a message that lies about its size")
        if size > _PIPE_HEADER + rest - HEADER.size:
            raise Malformed("frame", "a body that reaches past its message")
        if kind != FLOWS[flow].number or transaction != self._transaction:
            raise Malformed("frame", "an answer to something else")
        if flags & (_REQUEST | _RESPONSE) != _RESPONSE:
            raise Malformed("frame", "not an answer")
        return Answer(status, bytes(payload[HEADER.size : HEADER.size + size]))

    def _negotiate(self, answer: Answer) -> None:
        if len(answer.body) < _COUNTS.size:
            raise Malformed("choice", "a negotiation without counts")
        frameworks, versions, _ = _COUNTS.unpack_from(answer.body)
        if not frameworks and not versions:
            return  # it knows none of ours: the service is not there
        if (frameworks, versions) != (1, 1) or len(answer.body) < _COUNTS.size + 2 * _VERSION.size:
            raise Malformed("choice", "a choice of several versions")
        framework = _VERSION.unpack_from(answer.body, _COUNTS.size)
        version = _VERSION.unpack_from(answer.body, _COUNTS.size + _VERSION.size)
        if framework not in _FRAMEWORKS or version not in self.versions:
            raise Malformed("choice", "a version that was not on offer")
        self._framework, self._version = framework, version
        self.negotiated()
