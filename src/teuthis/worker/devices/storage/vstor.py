"""Packets of the storage channel (storvsc and storvsp): 64 bytes, the same layout both ways.

u32 operation, u32 flags, u32 status, then 52 bytes by operation. An SRB: u16 length, u8 SRB status,
u8 SCSI status, u8 port, path, target, LUN, CDB length, sense length, direction, 0, u32 data length,
20 bytes of CDB (in an answer: of sense data), 16 bytes of queueing that nobody here needs.
Reference: Linux `drivers/scsi/storvsc_drv.c`; the names are those of Windows' `SCSI_REQUEST_BLOCK`.
"""

import enum
import struct
from typing import Final

import msgspec

from teuthis.flows import FLOWS

PACKET_BYTES: Final = FLOWS["storvsp.execute-srb"].max_bytes

_HEAD = struct.Struct("<III")
_SRB = struct.Struct("<H10BI20s16x")
_VERSION = struct.Struct("<H")
_PROPERTIES = struct.Struct("<IHHIIQ")
_BODY_BYTES = PACKET_BYTES - _HEAD.size

_COMPLETE_IO: Final = FLOWS["storvsp.completion"].number
_MAX_CDB: Final = 16

SUCCESS: Final = 0
INVALID_DEVICE_STATE: Final = 0xC000_0184
NOT_SUPPORTED: Final = 0xC000_00BB
REVISION_MISMATCH: Final = 0xC000_0059


class Direction(enum.IntEnum):
    """Which way the data of a command go."""

    OUT = 0
    """From the guest to the disk."""
    IN = 1
    NONE = 2


class SrbStatus(enum.IntEnum):
    """How a request ended."""

    SUCCESS = 0x01
    ERROR = 0x04
    INVALID_REQUEST = 0x06


_SENSE_VALID: Final = 0x80
_CHECK_CONDITION: Final = 2


class Srb(msgspec.Struct, frozen=True):
    """A SCSI request."""

    port: int
    path: int
    target: int
    lun: int
    direction: Direction
    data_length: int
    cdb: bytes


class SrbError(ValueError):
    """A request that contradicts itself."""

    def __init__(self, kind: str, why: str) -> None:
        """`kind`: why, as the register names it."""
        super().__init__(why)
        self.kind = kind


def operation(packet: bytes) -> int:
    """What a packet asks for."""
    number: int = _HEAD.unpack_from(packet)[0]
    return number


def version(packet: bytes) -> int:
    """The protocol version that QUERY_PROTOCOL_VERSION asks about."""
    number: int = _VERSION.unpack_from(packet, _HEAD.size)[0]
    return number


def srb(packet: bytes) -> Srb:
    """The request of EXECUTE_SRB. Raises `SrbError`."""
    length, _, _, port, path, target, lun, cdb_length, _, direction, _, data_length, cdb = (
        _SRB.unpack_from(packet, _HEAD.size)
    )
    if length != _SRB.size or not 1 <= cdb_length <= _MAX_CDB or direction > Direction.NONE:
        raise SrbError("request", "a request of impossible shape")
    way = Direction(direction)
    if (way is Direction.NONE) != (data_length == 0):
        raise SrbError("request", "a length without a direction, or the reverse")
    return Srb(port, path, target, lun, way, data_length, cdb[:cdb_length])


def answer(status: int, body: bytes = b"") -> bytes:
    """The completion of anything but a request."""
    return _HEAD.pack(_COMPLETE_IO, 0, status) + body.ljust(_BODY_BYTES, b"\0")


def properties(max_transfer: int) -> bytes:
    """The body that answers QUERY_PROPERTIES: one channel, `max_transfer` bytes a request."""
    return _PROPERTIES.pack(0, 0, 0, 0, max_transfer, 0)


def srb_answer(packet: bytes, status: SrbStatus, transferred: int = 0, sense: bytes = b"") -> bytes:
    """The completion of the request in `packet`; `sense` makes it a CHECK CONDITION."""
    _, _, _, port, path, target, lun, cdb_length, _, direction, _, _, _ = _SRB.unpack_from(
        packet, _HEAD.size
    )
    return _HEAD.pack(_COMPLETE_IO, 0, SUCCESS) + _SRB.pack(
        _SRB.size,
        status | _SENSE_VALID if sense else status,
        _CHECK_CONDITION if sense else 0,
        port,
        path,
        target,
        lun,
        cdb_length,
        len(sense),
        direction,
        0,
        transferred,
        sense,
    )
