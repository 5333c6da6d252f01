"""What a disk says of itself: INQUIRY with its vital product data, and mode pages. Pure data.

Nothing in here comes from the host: all disks say the same but for their number and size.
References: SPC-3 (INQUIRY, mode parameters), SBC-3 (block limits, provisioning).
"""

import struct
from typing import Final

from teuthis.flows import FLOWS
from teuthis.worker.devices.storage.backend import SECTOR

MAX_TRANSFER: Final = FLOWS["storvsp.query-properties"].values["transfer_max"]
"""Bytes that one command may move."""
MAX_UNMAP_RANGES: Final = FLOWS["scsi.unmap"].values["ranges_max"]
MAX_UNMAP_SECTORS: Final = FLOWS["scsi.unmap"].values["sectors_max"]
MAX_ZERO_SECTORS: Final = FLOWS["scsi.write-same"].values["sectors_max"]
"""Where zeros have to be written; where they are a hole, `MAX_UNMAP_SECTORS`."""

_NO_DEVICE: Final = 0x7F
_SPC_3: Final = 5
_VENDOR, _PRODUCT, _REVISION = b"Msft    ", b"Virtual Disk    ", b"1.0 "
_PHYSICAL_EXPONENT: Final = 3
"""Physical blocks of 4 KiB: 2 to the power of this many sectors."""
_PHYSICAL_SECTORS: Final = 1 << _PHYSICAL_EXPONENT

_ALIGNMENT_VALID: Final = 1 << 31

_ALL_PAGES, _CACHING, _CONTROL = 0x3F, 0x08, 0x0A
_WRITE_PROTECTED: Final = 0x80
_WRITE_CACHE: Final = 0x04
_CHANGEABLE_VALUES: Final = 1
_BLOCK_LIMITS = struct.Struct(">BBH7IQ20x")


def inquiry(present: bool) -> bytes:
    """Standard INQUIRY data; vendor and version are those that make Linux trust the rest."""
    head = bytes((0 if present else _NO_DEVICE, 0, _SPC_3 if present else 0, 2, 31, 0, 0, 2))
    return head + _VENDOR + _PRODUCT + _REVISION


def vital_product_data(page: int, lun: int, punches: bool) -> bytes | None:
    """One page of vital product data, or None."""
    body = _vital_product_data(page, lun, punches)
    return None if body is None else struct.pack(">BBH", 0, page, len(body)) + body


def _vital_product_data(page: int, lun: int, punches: bool) -> bytes | None:
    match page:
        case 0x00:
            return bytes((0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2))
        case 0x80:  # serial number
            return f"teuthis-{lun:03}".encode()
        case 0x83:  # one designator: binary, of the logical unit, NAA locally assigned
            return struct.pack(">BBxBQ", 1, 3, 8, 3 << 60 | int.from_bytes(b"squid") << 16 | lun)
        case 0xB0:  # block limits
            zero_sectors = MAX_UNMAP_SECTORS if punches else MAX_ZERO_SECTORS
            return _BLOCK_LIMITS.pack(
                1,  # WRITE SAME of zero sectors, which would mean all, is refused
                0,
                _PHYSICAL_SECTORS,
                MAX_TRANSFER // SECTOR,
                MAX_TRANSFER // SECTOR,
                0,
                MAX_UNMAP_SECTORS if punches else 0,
                MAX_UNMAP_RANGES if punches else 0,
                _PHYSICAL_SECTORS,
                _ALIGNMENT_VALID,
                zero_sectors,
            )
        case 0xB1:  # no rotation
            return struct.pack(">H58x", 1)
        case 0xB2:  # thin: UNMAP and WRITE SAME(16) give space back, which then reads as zeros
            return bytes((0, 0xC4, 2, 0)) if punches else bytes(4)
    return None


def capacity_10(size: int) -> bytes:
    """READ CAPACITY(10): the last sector, or all ones where 32 bits do not hold it."""
    return struct.pack(">II", min(size // SECTOR - 1, 0xFFFF_FFFF), SECTOR)


def capacity_16(size: int, punches: bool) -> bytes:
    """READ CAPACITY(16)."""
    provisioning = 0xC000 if punches else 0
    return struct.pack(">QIBBH16x", size // SECTOR - 1, SECTOR, 0, _PHYSICAL_EXPONENT, provisioning)


def mode_pages(page: int, control: int, writable: bool) -> bytes | None:
    """MODE SENSE(6) data of one page or all of them, or None; `control`: which values."""
    caching = bytearray(20)
    caching[0], caching[1] = _CACHING, 18
    caching[2] = 0 if control == _CHANGEABLE_VALUES else _WRITE_CACHE
    pages = {_CACHING: bytes(caching), _CONTROL: bytes((_CONTROL, 10, *bytes(10)))}
    if page == _ALL_PAGES:
        body = b"".join(pages.values())
    elif page in pages:
        body = pages[page]
    else:
        return None
    return bytes((3 + len(body), 0, 0 if writable else _WRITE_PROTECTED, 0)) + body
