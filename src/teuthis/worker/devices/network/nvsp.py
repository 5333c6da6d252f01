"""NVSP: how a guest's network driver sets its adapter up over VMBus, and hands RNDIS over.

Every message is 40 bytes: a 32-bit type and a union. Pure functions; numbers and sizes come from
the register. Reference: Linux `drivers/net/hyperv/hyperv_net.h`.
"""

import struct
from typing import Any, Final

import msgspec

from teuthis.flows import FLOWS

MESSAGE_BYTES: Final = FLOWS["nvsp.init"].max_bytes
_TYPE = struct.Struct("<I")

VERSIONS: Final = (0x2, 0x3_0002, 0x4_0000, 0x5_0000, 0x6_0000, 0x6_0001)
"""Protocol versions 1 to 6.1 but the first, as Linux and Windows name them."""

_VALUES = FLOWS["nvsp.receive-buffer"].values
RECEIVE_BUFFER: Final = _VALUES["id"]
"""The id that a guest gives its receive buffer; transfer-page packets carry it."""
SEND_BUFFER: Final = 0
NO_SECTION: Final = 0xFFFF_FFFF
"""A packet whose data is in none of the send buffer's sections."""

DATA: Final = 0
CONTROL: Final = 1

SUCCESS: Final = 1
FAILURE: Final = 2


class Init(msgspec.Struct, frozen=True):
    """Offers a range of protocol versions; Linux offers one at a time."""

    oldest: int
    newest: int


class NdisVersion(msgspec.Struct, frozen=True):
    """The version of NDIS that the guest claims to follow."""

    major: int
    minor: int


class ReceiveBuffer(msgspec.Struct, frozen=True):
    """Memory into which the host puts what it sends."""

    gpadl: int
    id: int


class RevokeReceiveBuffer(msgspec.Struct, frozen=True):
    """Takes it back."""

    id: int


class SendBuffer(msgspec.Struct, frozen=True):
    """Memory in whose sections the guest puts small messages."""

    gpadl: int
    id: int


class RevokeSendBuffer(msgspec.Struct, frozen=True):
    """Takes it back."""

    id: int


class RndisPacket(msgspec.Struct, frozen=True):
    """An RNDIS message: in a section of the send buffer, in the packet's page ranges, or both."""

    channel: int
    section: int
    section_bytes: int


class NdisConfig(msgspec.Struct, frozen=True):
    """The largest frame the guest wants, and what it could do."""

    frame_bytes: int
    reserved: int
    capabilities: int


Record = (
    Init
    | NdisVersion
    | ReceiveBuffer
    | RevokeReceiveBuffer
    | SendBuffer
    | RevokeSendBuffer
    | RndisPacket
    | NdisConfig
)


class _Shape(msgspec.Struct, frozen=True):
    flow: str
    body: struct.Struct
    record: Any


_INBOUND: Final = {
    FLOWS[flow].number: _Shape(flow, struct.Struct("<" + layout), record)
    for flow, layout, record in (
        ("nvsp.init", "II", Init),
        ("nvsp.ndis-version", "II", NdisVersion),
        ("nvsp.receive-buffer", "IH", ReceiveBuffer),
        ("nvsp.revoke-receive-buffer", "H", RevokeReceiveBuffer),
        ("nvsp.send-buffer", "IH", SendBuffer),
        ("nvsp.revoke-send-buffer", "H", RevokeSendBuffer),
        ("nvsp.rndis-packet", "III", RndisPacket),
        ("nvsp.ndis-config", "IIQ", NdisConfig),
    )
}
_TAKEN = FLOWS["nvsp.taken"].number
_ANSWERS = {
    FLOWS[flow].number: flow
    for flow in (
        "nvsp.init-complete",
        "nvsp.receive-buffer-complete",
        "nvsp.send-buffer-complete",
        "nvsp.rndis-complete",
    )
}


class UnknownMessage(ValueError):
    """A message of no type that a guest may send, or too short to be one."""


def decode(message: bytes | memoryview) -> tuple[str, Record]:
    """The flow and the record of an in-band message. Raises `UnknownMessage`."""
    if len(message) < MESSAGE_BYTES:
        raise UnknownMessage("message too short")
    shape = _INBOUND.get(_TYPE.unpack_from(message)[0])
    if shape is None:
        raise UnknownMessage("unknown message type")
    return shape.flow, shape.record(*shape.body.unpack_from(message, _TYPE.size))


def answer_flow(answer: bytes) -> str:
    """The flow of an answer of ours."""
    return _ANSWERS[_TYPE.unpack_from(answer)[0]]


def is_taken(message: bytes | memoryview) -> bool:
    """Whether a completion packet of the guest's says that it has taken what we sent.

    Its status is of no interest: the sections are free either way.
    """
    return len(message) >= 8 and _TYPE.unpack_from(message)[0] == _TAKEN


def _pack(flow: str, layout: str, *fields: int) -> bytes:
    number = FLOWS[flow].number
    return struct.pack("<I" + layout, number, *fields).ljust(MESSAGE_BYTES, b"\0")


def init_complete(version: int, status: int) -> bytes:
    """Answers `Init`: the agreed version, at most one page list in a chain."""
    return _pack("nvsp.init-complete", "III", version, 1, status)


def receive_buffer_complete(section_bytes: int, sections: int) -> bytes:
    """Answers `ReceiveBuffer`: how it is divided; zero sections refuse it."""
    if not sections:
        return _pack("nvsp.receive-buffer-complete", "II", FAILURE, 0)
    end = section_bytes * sections
    return _pack(
        "nvsp.receive-buffer-complete", "IIIIII", SUCCESS, 1, 0, section_bytes, sections, end
    )


def send_buffer_complete(section_bytes: int) -> bytes:
    """Answers `SendBuffer`: the size of its sections; zero refuses it."""
    status = SUCCESS if section_bytes else FAILURE
    return _pack("nvsp.send-buffer-complete", "II", status, section_bytes)


def rndis_complete(status: int) -> bytes:
    """Answers `RndisPacket`, and every packet that asks for an answer and has no other."""
    return _pack("nvsp.rndis-complete", "I", status)


def rndis_packet(channel: int) -> bytes:
    """Announces RNDIS messages in the receive buffer."""
    return _pack("nvsp.deliver", "III", channel, NO_SECTION, 0)
