"""The partition link to the hypervisor process: messages of 272 bytes over a packet socket.

The hypervisor process may have been taken over: whatever is not exactly a message of this
protocol ends the VM. `decode` and `encode` are pure; `Link` is the socket and a bounded queue.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import msgspec

from teuthis.flows import FLOWS, Counters
from teuthis.protocol import Ended
from teuthis.worker.ending import EndVM
from teuthis.worker.outbox import Outbox
from teuthis.worker.sockets import socket

_FRAME = struct.Struct("<HHIQ256s")
MESSAGE_BYTES: Final = _FRAME.size
_VERSION = 1

_POST_MESSAGE = FLOWS["link.post-message"].number
_CONSOLE = FLOWS["link.console"].number
_END = FLOWS["link.end"].number
_NOTE = FLOWS["link.note"].number
_PAUSED = FLOWS["link.paused"].number
_STATE = FLOWS["link.state"].number
_TURN = FLOWS["link.turn"].number
_FLOW_OF = {
    FLOWS[name].number: FLOWS[name]
    for name in (
        "link.post-message",
        "link.console",
        "link.end",
        "link.note",
        "link.paused",
        "link.state",
        "link.turn",
    )
}
_UNKNOWN: Final = "link.unknown-to-worker"
_POST = FLOWS["hypercall.post-message"].values
_CONNECTION_IDS = (_POST["connection"], _POST["initiate_contact_connection"])
_MESSAGE = FLOWS["synic.message"].values
_REASONS = {reason.value: reason for reason in Ended if reason <= Ended.STATE_REFUSED}
_CRASH = struct.Struct("<6Q")

MAX_UNSENT: Final = FLOWS["link.deliver-message"].values["unsent_max"]
"""Messages kept for a guest that does not take them; one more ends the VM."""


class PostMessage(msgspec.Struct, frozen=True):
    """What the guest gave to HvPostMessage."""

    connection_id: int
    message_type: int
    payload: bytes


class ConsoleText(msgspec.Struct, frozen=True):
    """Bytes the guest wrote to its serial port."""

    data: bytes


class Note(msgspec.Struct, frozen=True):
    """A line of the hypervisor's own."""

    text: str


class End(msgspec.Struct, frozen=True):
    """The VM has ended; `crash` is P0 to P4 and the control register when the guest crashed."""

    reason: Ended
    crash: tuple[int, ...] = ()


class Paused(msgspec.Struct, frozen=True):
    """The guest stands still, as was asked."""


class State(msgspec.Struct, frozen=True):
    """A piece of the saved state; so many bytes follow it."""

    piece: bytes
    left: int


class Turn(msgspec.Struct, frozen=True):
    """In lockstep: the guest stands still; nanoseconds that nothing need happen."""

    wait: int


Incoming = PostMessage | ConsoleText | Note | End | Paused | State | Turn


class LinkError(ValueError):
    """A packet that is no message of the hypervisor's: what it pretends to be, and why not."""

    def __init__(self, flow: str, kind: str, why: str) -> None:
        super().__init__(why)
        self.flow = flow
        self.kind = kind


class Outgoing(msgspec.Struct, frozen=True):
    """One message to the hypervisor, not yet encoded."""

    flow: str
    value: int = 0
    payload: bytes = b""


START: Final = Outgoing("link.start")
STOP: Final = Outgoing("link.stop")
PAUSE: Final = Outgoing("link.pause")
RESUME: Final = Outgoing("link.resume")
SAVE: Final = Outgoing("link.save")


def deliver(payload: bytes, vp: int) -> Outgoing:
    """A VMBus message for the guest's SynIC."""
    value = _MESSAGE["sint"] | vp << 8 | _MESSAGE["type_vmbus"] << 32
    return Outgoing("link.deliver-message", value, payload)


def open_port(connection_id: int) -> Outgoing:
    """Lets the guest signal `connection_id`."""
    return Outgoing("link.open-port", connection_id)


def close_port(connection_id: int) -> Outgoing:
    """Takes that back."""
    return Outgoing("link.close-port", connection_id)


WROTE_BYTES: Final = FLOWS["link.wrote"].max_bytes


def wrote(ranges: bytes) -> Outgoing:
    """In lockstep: what we have written in this turn."""
    return Outgoing("link.wrote", 0, ranges)


def turn_over(slept: int) -> Outgoing:
    """In lockstep: the guest goes on, after it slept for so many nanoseconds."""
    return Outgoing("link.turn-over", slept)


def encode(message: Outgoing) -> bytes:
    """The 272 bytes of a message to the hypervisor."""
    flow = FLOWS[message.flow]
    length = len(message.payload)
    if length > flow.max_bytes:
        raise ValueError(f"{message.flow} with {length} bytes")
    return _FRAME.pack(_VERSION, flow.number, length, message.value, message.payload)


def decode(packet: bytes) -> tuple[str, Incoming]:
    """The flow and the message in a packet from the hypervisor. Raises `LinkError`."""
    if len(packet) != MESSAGE_BYTES:
        raise LinkError(_UNKNOWN, "message", "wrong size")
    version, kind, length, value, payload = _FRAME.unpack(packet)
    flow = _FLOW_OF.get(kind)
    if version != _VERSION or flow is None:
        raise LinkError(_UNKNOWN, "message", "wrong version or type")
    if length > flow.max_bytes or payload.count(0, length) != len(payload) - length:
        raise LinkError(flow.id, "malformed", "wrong length")
    return flow.id, _message(flow.id, kind, value, payload[:length])


def _message(flow: str, kind: int, value: int, payload: bytes) -> Incoming:
    if kind == _POST_MESSAGE:
        message = PostMessage(value & 0xFFFF_FFFF, value >> 32, payload)
        if message.connection_id not in _CONNECTION_IDS:
            raise LinkError(flow, "connection", "unknown connection")
        return message
    if kind == _END:
        reason = _REASONS.get(value)
        if reason is None:
            raise LinkError(flow, "reason", "unknown reason")
        crashed = reason is Ended.GUEST_CRASH
        if len(payload) != (_CRASH.size if crashed else 0):
            raise LinkError(flow, "malformed", "wrong length")
        return End(reason, _CRASH.unpack(payload) if crashed else ())
    if kind == _STATE:
        return State(payload, value)
    if kind == _TURN:
        return Turn(value)
    if value != 0:
        raise LinkError(flow, "malformed", "a value where none belongs")
    if kind == _CONSOLE:
        return ConsoleText(payload)
    if kind == _PAUSED:
        return Paused()
    try:
        return Note(payload.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LinkError(flow, "text", "not UTF-8") from error


class Link:
    """The socket, and the messages it could not take yet."""

    def __init__(self, link: socket, counters: Counters, attend: Callable[[], None]) -> None:
        """`attend` makes a running hypervisor look at the link."""
        link.setblocking(False)
        self._socket = link
        self._counters = counters
        self._attend = attend
        self._outbox = Outbox(link)

    def fileno(self) -> int:
        """Descriptor to wait on."""
        return self._socket.fileno()

    @property
    def blocked(self) -> bool:
        """Whether messages wait for the socket to become writable."""
        return len(self._outbox) > 0

    def receive(self, limit: int = 64) -> Iterator[Incoming]:
        """At most `limit` messages that are there now. Raises `EndVM`."""
        for _ in range(limit):
            try:
                # One byte more than a message: a longer one is then seen as such.
                packet = self._socket.recv(MESSAGE_BYTES + 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # told once, when it left messages unread; what it sent is still there
            except OSError:
                packet = b""
            if not packet:
                raise EndVM(Ended.HYPERVISOR_DIED)
            try:
                flow, message = decode(packet)
            except LinkError as error:
                self._counters.reject(error.flow, error.kind)
                raise EndVM(Ended.LINK_VIOLATION) from error
            self._counters.accept(flow, int.from_bytes(packet[4:8], "little"))
            yield message

    def send(self, message: Outgoing) -> None:
        """Sends or queues a message. Raises `EndVM` when too many wait."""
        if len(self._outbox) >= MAX_UNSENT:
            raise EndVM(Ended.MESSAGES_NOT_TAKEN)
        self._outbox.add(encode(message))

    def flush(self) -> None:
        """Sends what the socket takes."""
        if not self._outbox:
            return
        with suppress(OSError):  # it is gone; reading tells how: by its END, or by the stream's end
            self._outbox.flush()
        self._attend()  # after sending: the hypervisor lowers the flag before it looks
