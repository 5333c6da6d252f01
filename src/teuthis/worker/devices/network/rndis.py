"""RNDIS: the adapter as the guest's driver asks about it, and frames in their envelopes.

Sans-I/O: bytes of one message in, an answer or a frame out. Offsets inside a message count from
its byte 8, as the specification wants; each is checked against the message's own length, and the
length against what was really sent. Reference: Linux `include/linux/rndis.h`, [MS-RNDIS].
"""

import enum
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from teuthis.flows import FLOWS, Counters

HEADER: Final = struct.Struct("<II")
_WORD = struct.Struct("<I")
_PACKET = struct.Struct("<9I")
_PPI = struct.Struct("<III")
_INITIALIZE = struct.Struct("<4I")
_REQUEST = struct.Struct("<5I")
ETHERNET_HEADER: Final = 14
PACKET_OVERHEAD: Final = HEADER.size + _PACKET.size
"""Bytes of an envelope around a frame of ours."""

_NUMBERS = {
    FLOWS[f"rndis.{name}"].number: f"rndis.{name}"
    for name in ("packet", "initialize", "halt", "query", "set", "keepalive")
}
_PACKET_NUMBER = FLOWS["rndis.packet"].number
MAX_MESSAGE: Final = FLOWS["rndis.packet"].max_bytes
MAX_CONTROL: Final = FLOWS["rndis.query"].max_bytes
MAX_BATCH: Final = FLOWS["rndis.packet"].values["batch_max"]
"""Messages that one NVSP packet may carry."""
_MAX_PPI = FLOWS["rndis.packet"].values["ppi_max"]
_PPI_HASH_VALUE = 9
_ALIGNMENT_SHIFT = 3

_COMPLETE = 0x8000_0000
_INDICATE_STATUS = FLOWS["rndis.indicate-status"].number

SUCCESS: Final = 0
FAILURE: Final = 0xC000_0001
INVALID_DATA: Final = 0xC001_0015
NOT_SUPPORTED: Final = 0xC000_00BB

_MEDIA_CONNECT = 0x4001_000B
_MEDIA_DISCONNECT = 0x4001_000C
_CONNECTED, _DISCONNECTED = 0, 1
_CONNECTIONLESS = 1

_LINK_SPEED = 100_000_000
"""10 Gbit/s in units of 100 bit/s: what the guest shows, not what it gets."""


class _Object(enum.IntEnum):
    """Object identifiers: what can be asked or set."""

    MAXIMUM_FRAME_SIZE = 0x0001_0106
    LINK_SPEED = 0x0001_0107
    PACKET_FILTER = 0x0001_010E
    MEDIA_STATUS = 0x0001_0114
    FRIENDLY_NAME = 0x0002_0216
    PERMANENT_ADDRESS = 0x0101_0101
    CURRENT_ADDRESS = 0x0101_0102
    OFFLOAD_PARAMETERS = 0xFC01_020C
    OFFLOAD_CAPABILITIES = 0xFC01_020D


_OFFLOAD_OBJECT = 0xA7
_OFFLOAD_BYTES = {1: 112, 2: 144, 3: 156}
_OBJECT_HEADER = struct.Struct("<BBH")
_NAME = "teuthis".encode("utf-16-le")


class RndisError(ValueError):
    """A message that contradicts itself; `flow` is where it is counted."""

    def __init__(self, flow: str, kind: str, why: str) -> None:
        super().__init__(why)
        self.flow = flow
        self.kind = kind


def split(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """The messages in what one packet carries: (type, message). Raises `RndisError`."""
    view = memoryview(data)
    for _ in range(MAX_BATCH):
        if len(view) < HEADER.size:
            raise RndisError("rndis.unknown", "header", "no whole header")
        number, length = HEADER.unpack_from(view)
        if not HEADER.size <= length <= len(view):
            raise RndisError("rndis.unknown", "header", "a length that lies")
        yield number, view[:length]
        view = view[-(-length // (1 << _ALIGNMENT_SHIFT)) << _ALIGNMENT_SHIFT :]
        if not view:
            return
    raise RndisError("rndis.unknown", "batch", "too many messages in one packet")


def frame(message: memoryview, max_frame: int) -> memoryview:
    """The Ethernet frame in a PACKET message. Raises `RndisError`.

    Refused: any offload or tag that we never offered. A frame with a checksum left open must not
    leave here as if it were complete.
    """
    if len(message) < PACKET_OVERHEAD:
        raise RndisError("rndis.packet", "fields", "shorter than its fields")
    offset, length, oob_offset, oob_bytes, oob_count, ppi_offset, ppi_bytes, circuit, reserved = (
        _PACKET.unpack_from(message, HEADER.size)
    )
    body = message[HEADER.size :]
    if oob_bytes or oob_count or oob_offset or circuit or reserved:
        raise RndisError("rndis.packet", "fields", "out-of-band data or a circuit")
    if not ETHERNET_HEADER <= length <= max_frame:
        raise RndisError("rndis.packet", "size", "a frame of impossible size")
    if offset < _PACKET.size or offset + length > len(body):
        raise RndisError("rndis.packet", "bounds", "a frame outside the message")
    if ppi_bytes:
        if ppi_offset < _PACKET.size or ppi_offset + ppi_bytes > offset:
            raise RndisError("rndis.packet", "information", "packet information outside its place")
        _check_information(body[ppi_offset : ppi_offset + ppi_bytes])
    return body[offset : offset + length]


def _check_information(information: memoryview) -> None:
    for _ in range(_MAX_PPI):
        if len(information) < _PPI.size:
            raise RndisError("rndis.packet", "information", "packet information cut short")
        size, kind, offset = _PPI.unpack_from(information)
        if not _PPI.size <= offset <= size <= len(information) or size % 4:
            raise RndisError("rndis.packet", "information", "packet information that lies")
        if kind != _PPI_HASH_VALUE:
            raise RndisError(
                "rndis.packet", "information", "an offload or a tag that was not offered"
            )
        information = information[size:]
        if not information:
            return
    raise RndisError("rndis.packet", "information", "too much packet information")


def envelope(length: int) -> bytes:
    """What stands before a frame of `length` bytes on its way to the guest."""
    return HEADER.pack(_PACKET_NUMBER, PACKET_OVERHEAD + length) + _PACKET.pack(
        _PACKET.size, length, 0, 0, 0, 0, 0, 0, 0
    )


class _Request(msgspec.Struct, frozen=True):
    """QUERY or SET."""

    id: int
    object: int
    data: bytes


class Adapter:
    """What the guest can ask of its adapter, and what it has set."""

    def __init__(self, mac: bytes, mtu: int, counters: Counters) -> None:
        """`mac`: 6 bytes; `mtu`: largest payload of a frame."""
        self.mac = mac
        self.mtu = mtu
        self.connected = True
        """Whether frames go anywhere: the link's state."""
        self._counters = counters
        self.initialized = False
        self.packet_filter = 0

    @property
    def receiving(self) -> bool:
        """Whether the guest wants frames now."""
        return self.initialized and self.packet_filter != 0

    def reset(self) -> None:
        """Forgets what the guest has set."""
        self.initialized = False
        self.packet_filter = 0

    def status_change(self) -> bytes:
        """Tells the guest that the link has come up or gone down."""
        status = _MEDIA_CONNECT if self.connected else _MEDIA_DISCONNECT
        return _message(_INDICATE_STATUS, status, 0, 0)

    def control(self, number: int, message: memoryview) -> bytes | None:
        """Handles one control message; the answer, if there is one. Raises `RndisError`."""
        flow = _NUMBERS.get(number, "rndis.unknown")
        entry = FLOWS[flow]
        if flow == "rndis.packet":
            raise RndisError(flow, "control", "not a control message")
        if flow == "rndis.unknown":
            raise RndisError(flow, "type", "unknown message type")
        if not entry.min_bytes <= len(message) <= entry.max_bytes:
            raise RndisError(flow, "size", "a message of impossible size")
        answer: bytes | None = None
        match flow:
            case "rndis.initialize":
                answer = self._initialize(message)
            case "rndis.query":
                answer = self._query(_request(flow, message))
            case "rndis.set":
                answer = self._set(_request(flow, message))
            case "rndis.keepalive":
                (request,) = _WORD.unpack_from(message, HEADER.size)
                answer = _message(number | _COMPLETE, request, SUCCESS)
            case "rndis.halt":
                self.reset()
        self._counters.accept(flow, len(message))
        return answer

    def _initialize(self, message: memoryview) -> bytes:
        request, major, minor, _ = _INITIALIZE.unpack_from(message, HEADER.size)
        self.reset()
        self.initialized = (major, minor) == (1, 0)
        if not self.initialized:
            self._counters.reject("rndis.initialize", "version")
        status = SUCCESS if self.initialized else NOT_SUPPORTED
        return _message(
            FLOWS["rndis.initialize"].number | _COMPLETE,
            request,
            status,
            1,
            0,
            _CONNECTIONLESS,
            0,  # medium: Ethernet
            MAX_BATCH,
            MAX_MESSAGE,
            _ALIGNMENT_SHIFT,
            0,
            0,
        )

    def _query(self, request: _Request) -> bytes:
        number = FLOWS["rndis.query"].number | _COMPLETE
        data = self._value(request) if self.initialized else None
        if data is None:
            self._counters.reject("rndis.query", "object")
            return _message(number, request.id, NOT_SUPPORTED, 0, 0)
        return _message(number, request.id, SUCCESS, len(data), 16, tail=data)

    def _value(self, request: _Request) -> bytes | None:
        match request.object:
            case _Object.PERMANENT_ADDRESS | _Object.CURRENT_ADDRESS:
                return self.mac
            case _Object.MAXIMUM_FRAME_SIZE:
                return _WORD.pack(self.mtu)
            case _Object.LINK_SPEED:
                return _WORD.pack(_LINK_SPEED)
            case _Object.MEDIA_STATUS:
                return _WORD.pack(_CONNECTED if self.connected else _DISCONNECTED)
            case _Object.PACKET_FILTER:
                return _WORD.pack(self.packet_filter)
            case _Object.FRIENDLY_NAME:
                return _NAME
            case _Object.OFFLOAD_CAPABILITIES:
                return _no_offloads(request.data)
        return None

    def _set(self, request: _Request) -> bytes:
        status = self._change(request) if self.initialized else NOT_SUPPORTED
        if status != SUCCESS:
            self._counters.reject("rndis.set", "object")
        return _message(FLOWS["rndis.set"].number | _COMPLETE, request.id, status)

    def _change(self, request: _Request) -> int:
        match request.object:
            case _Object.PACKET_FILTER:
                if len(request.data) != _WORD.size:
                    return INVALID_DATA
                (self.packet_filter,) = _WORD.unpack(request.data)
                return SUCCESS
            case _Object.OFFLOAD_PARAMETERS:
                # It chooses among what we offered, which is nothing: all its choices mean "off".
                return SUCCESS
        return NOT_SUPPORTED


def _request(flow: str, message: memoryview) -> _Request:
    """The fields of a QUERY or SET. Raises `RndisError`."""
    identity, wanted, length, offset, circuit = _REQUEST.unpack_from(message, HEADER.size)
    body = message[HEADER.size :]
    if circuit or (length and (offset < _REQUEST.size or offset + length > len(body))):
        raise RndisError(flow, "bounds", "information outside the message")
    return _Request(identity, wanted, bytes(body[offset : offset + length]) if length else b"")


def _no_offloads(asked: bytes) -> bytes | None:
    """The offload structure in the revision asked for, saying no to all; None: no such revision."""
    if len(asked) < _OBJECT_HEADER.size:
        return None
    kind, revision, _ = _OBJECT_HEADER.unpack_from(asked)
    size = _OFFLOAD_BYTES.get(revision)
    if kind != _OFFLOAD_OBJECT or size is None:
        return None
    return _OBJECT_HEADER.pack(kind, revision, size).ljust(size, b"\0")


def _message(number: int, *words: int, tail: bytes = b"") -> bytes:
    length = HEADER.size + _WORD.size * len(words) + len(tail)
    return HEADER.pack(number, length) + struct.pack(f"<{len(words)}I", *words) + tail
