"""The file of a copy-on-write layer: the root side makes it, a worker uses it.

First the disk's bytes at the disk's own offsets, sparse; then the map, one byte for each block of
the disk, which says who has it; in a layer that is kept, a page that says of which base this is the
layer, written once by the root side. In a layer that is thrown away with its VM the map is written
only when the VM is saved.

Below the layer of a restored VM lies the one that was saved with it, which is only read.
"""

import struct
from typing import Final

BLOCK: Final = 4096
BASE, OWN, HOLE, LOWER = range(4)
"""Entries of the map: the base has the block, this layer, nobody (zeros), the layer below."""
MAP_PAGE: Final = 4096
"""Entries of the map that are written together."""
MAX_DISK: Final = 1 << 40
"""Bytes of the largest disk that may have a layer: its map is kept in memory while it is used."""

_IDENTITY = struct.Struct("<24sQQQ")
_MAGIC: Final = b"teuthis layer, format 1\n"


def map_offset(size: int) -> int:
    """Where the map of a kept layer for a disk of `size` bytes begins."""
    return -(-size // BLOCK) * BLOCK


def map_size(size: int) -> int:
    """Bytes of the map of a disk of `size` bytes, in whole pages."""
    return -(-size // BLOCK // MAP_PAGE) * MAP_PAGE


def identity_offset(size: int) -> int:
    """Where the last page of a kept layer begins."""
    return map_offset(size) + map_size(size)


def file_size(size: int) -> int:
    """Bytes of the whole file."""
    return identity_offset(size) + MAP_PAGE


def identity(size: int, modified_ns: int) -> bytes:
    """The last page of a layer over a base of that size and time of last change."""
    return _IDENTITY.pack(_MAGIC, size, modified_ns, BLOCK).ljust(MAP_PAGE, b"\0")
