"""VMBus channel messages: one declarative table each way, and the pure functions that use it.

Numbers and sizes come from the register. Every message has an 8-byte header {u32 type, u32 0}.
Guests may send more bytes than a message's fields need, never fewer.
"""

import struct
from typing import Any, Final

import msgspec

from teuthis.flows import FLOWS

HEADER: Final = struct.Struct("<II")
MAX_MESSAGE: Final = FLOWS["hypercall.post-message"].values["payload_max"]
"""Largest payload of a SynIC message, hence of a VMBus message, in bytes."""

VERSION_4_1: Final = FLOWS["vmbus.initiate-contact"].values["version_oldest"]
VERSION_5_0: Final = 5 << 16
VERSION_5_3: Final = FLOWS["vmbus.initiate-contact"].values["version_newest"]
VERSIONS: Final = (VERSION_4_1, VERSION_5_0, VERSION_5_0 + 1, VERSION_5_0 + 2, VERSION_5_3)

SUCCESS: Final = 0
INVALID_PARAMETER: Final = 0xC000_000D
INSUFFICIENT_RESOURCES: Final = 0xC000_009A
CONNECTION_REFUSED: Final = 0xC000_0236


# ---- guest to host -------------------------------------------------------------------------------


class RequestOffers(msgspec.Struct, frozen=True):
    """Asks for all offers."""


class OpenChannel(msgspec.Struct, frozen=True):
    """Opens an offered channel over a ring buffer the guest has described before."""

    relid: int
    open_id: int
    ring_gpadl: int
    target_vp: int
    downstream_page: int


class CloseChannel(msgspec.Struct, frozen=True):
    """Stops the use of a channel's rings."""

    relid: int


class GpadlHeader(msgspec.Struct, frozen=True):
    """Describes guest memory; the page numbers follow in the message and in bodies."""

    relid: int
    gpadl: int
    range_bytes: int
    range_count: int
    byte_count: int
    byte_offset: int


class GpadlBody(msgspec.Struct, frozen=True):
    """More page numbers of the description."""

    number: int
    gpadl: int


class GpadlTeardown(msgspec.Struct, frozen=True):
    """Takes a description back."""

    relid: int
    gpadl: int


class RelidReleased(msgspec.Struct, frozen=True):
    """The guest has forgotten a rescinded channel."""

    relid: int


class InitiateContact(msgspec.Struct, frozen=True):
    """Starts a connection; from version 5.0 on, the SINT and VTL stand where a page address was."""

    version: int
    target_vp: int
    sint: int
    vtl: int


class Unload(msgspec.Struct, frozen=True):
    """Ends the connection."""


class TlConnectRequest(msgspec.Struct, frozen=True):
    """Asks the host to offer a channel for a new hv_sock connection."""

    endpoint: bytes
    service: bytes


class ModifyChannel(msgspec.Struct, frozen=True):
    """Moves a channel's interrupt to another processor."""

    relid: int
    target_vp: int


Record = (
    RequestOffers
    | OpenChannel
    | CloseChannel
    | GpadlHeader
    | GpadlBody
    | GpadlTeardown
    | RelidReleased
    | InitiateContact
    | Unload
    | TlConnectRequest
    | ModifyChannel
)


class Shape(msgspec.Struct, frozen=True):
    """How a message's body is laid out, and the first VMBus version that has it (0: any)."""

    flow: str
    minimum_version: int
    body: struct.Struct
    record: Any


def _shape(name: str, minimum_version: int, layout: str, record: Any) -> tuple[int, Shape]:
    flow = FLOWS[name]
    shape = Shape(flow.id, minimum_version, struct.Struct("<" + layout), record)
    return flow.number, shape


INBOUND: Final[dict[int, Shape]] = dict(
    [
        _shape("vmbus.request-offers", VERSION_4_1, "", RequestOffers),
        _shape("vmbus.open-channel", VERSION_4_1, "5I", OpenChannel),
        _shape("vmbus.close-channel", VERSION_4_1, "I", CloseChannel),
        _shape("vmbus.gpadl-header", VERSION_4_1, "IIHHII", GpadlHeader),
        _shape("vmbus.gpadl-body", VERSION_4_1, "II", GpadlBody),
        _shape("vmbus.gpadl-teardown", VERSION_4_1, "II", GpadlTeardown),
        _shape("vmbus.relid-released", VERSION_4_1, "I", RelidReleased),
        _shape("vmbus.initiate-contact", 0, "IIBB", InitiateContact),
        _shape("vmbus.unload", VERSION_4_1, "", Unload),
        _shape("vmbus.tl-connect-request", VERSION_4_1, "16s16s", TlConnectRequest),
        _shape("vmbus.modify-channel", VERSION_4_1, "II", ModifyChannel),
    ]
)


class UnknownMessage(ValueError):
    """A message type that nobody offers, or a message shorter than its type wants."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def decode(payload: bytes) -> tuple[Shape, Record, bytes]:
    """Shape, record and the bytes behind the record. Raises `UnknownMessage`."""
    if not HEADER.size <= len(payload) <= MAX_MESSAGE:
        raise UnknownMessage("size", "a message of impossible size")
    shape = INBOUND.get(HEADER.unpack_from(payload)[0])
    if shape is None:
        raise UnknownMessage("type", "unknown message type")
    if len(payload) < FLOWS[shape.flow].min_bytes:
        raise UnknownMessage("size", "message too short")
    record = shape.record(*shape.body.unpack_from(payload, HEADER.size))
    return shape, record, payload[HEADER.size + shape.body.size :]


# ---- host to guest -------------------------------------------------------------------------------

_OFFER = struct.Struct("<16s16s16xHH120sHxxIBBHI")

_OUTBOUND: Final[dict[str, struct.Struct]] = {
    f"vmbus.{name}": struct.Struct("<" + layout)
    for name, layout in {
        "rescind-channel-offer": "I",
        "all-offers-delivered": "",
        "open-channel-result": "III",
        "gpadl-created": "III",
        "gpadl-torndown": "I",
        "version-response": "BBxxI",
        "unload-response": "",
        "tl-connect-result": "16s16sI",
        "modify-channel-response": "II",
    }.items()
}


def encode(flow: str, *fields: int | bytes) -> bytes:
    """A message to the guest; the fields are those the register's entry names, in its order."""
    return HEADER.pack(FLOWS[flow].number, 0) + _OUTBOUND[flow].pack(*fields)


def guid(text: str) -> bytes:
    """A GUID in wire order: its first three groups are little-endian numbers."""
    groups = [bytes.fromhex(group) for group in text.split("-")]
    return b"".join([group[::-1] for group in groups[:3]] + groups[3:])


class Offer(msgspec.Struct, frozen=True):
    """What a channel is offered as."""

    interface: bytes
    """GUID of the class of device, 16 bytes in wire order."""
    instance: bytes
    flags: int
    user_defined: bytes = b""


_FIRST_CONNECTION = FLOWS["hypercall.signal-event"].values["first_connection"]


def connection_id(relid: int) -> int:
    """The id that the guest signals for channel `relid` (SINT 2)."""
    return _FIRST_CONNECTION | relid


def encode_offer(offer: Offer, relid: int) -> bytes:
    """OFFERCHANNEL: no monitor page, a dedicated interrupt."""
    return HEADER.pack(FLOWS["vmbus.offer-channel"].number, 0) + _OFFER.pack(
        offer.interface,
        offer.instance,
        offer.flags,
        0,
        offer.user_defined,
        0,
        relid,
        0xFF,
        0,
        1,
        connection_id(relid),
    )
