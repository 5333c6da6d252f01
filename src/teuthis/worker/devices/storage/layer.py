"""A copy-on-write layer: a base that is only read, and a file of the same size for what is written.

The layer file holds the disk's bytes at the disk's own offsets, sparse; it needs nothing of its
file system but holes, and not even those. Which blocks count is in a map of one byte per block. A
layer that is kept has its map behind the data, and is safe whenever the worker or the host dies:
`flush` syncs the data before it writes the map entries that point at them, and then the map. A
block whose entry was not written reads as it did before, which is what a disk may do with whatever
was not flushed. A layer that is thrown away has no map in its file, and nothing to sync.
"""

import errno
import mmap
from collections.abc import Iterator
from typing import Final

from teuthis.layer import BLOCK, MAP_PAGE, map_offset, map_size
from teuthis.worker.devices.storage.backend import Buffer, File, Memory, Zeros

_BASE, _LAYER, _HOLE = 0, 1, 2
_ENTRIES: Final = bytes((_BASE, _LAYER, _HOLE))
_ZEROS_MAX: Final = 1 << 20


class LayerDamaged(ValueError):
    """A map that no layer of ours can have."""


class LayerFull(OSError):
    """The layer holds as much as it may."""


class Layer:
    """A disk of a base and a layer above it."""

    writable = True

    def __init__(self, base: File, layer: File, *, limit: int, kept: bool) -> None:
        """`limit`: bytes that the layer's data may take; `kept`: whether its file has a map."""
        self.size = base.size
        self.punches = layer.punches
        self._base = base
        self._layer = layer
        self._room = limit // BLOCK
        """Blocks that the layer may still come to hold."""
        self._kept = kept
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, map_size(self.size), flags=flags)  # untouched pages cost nothing
        self._dirty: set[int] = set()
        """Pages of the map that differ from the file's."""

    # ---- reading and writing ---------------------------------------------------------------------

    def read(self, data: Buffer, offset: int, length: int) -> None:
        """As `Backend.read`."""
        for source, at, size in self._runs(offset, length):
            source.read(data, at, size, at - offset)

    def write(self, data: Buffer, offset: int, length: int) -> None:
        """As `Backend.write`."""
        end = offset + length
        first, last = offset // BLOCK, (end - 1) // BLOCK
        self._make_room(first, last + 1)
        partial = {first} if offset % BLOCK else set()
        if end % BLOCK and end != self.size:
            partial.add(last)
        for block in partial:
            self._copy_up(block)
        self._layer.write(data, offset, length)
        self._mark(first, last + 1, _LAYER)

    def zero(self, offset: int, length: int) -> None:
        """As `Backend.zero`: whole blocks become holes of the layer, whatever they were."""
        end = offset + length
        first = -(-offset // BLOCK)
        behind = -(-end // BLOCK) if end == self.size else end // BLOCK
        if not self.punches or first >= behind:
            self._write_zeros(offset, end)
            return
        self._write_zeros(offset, first * BLOCK)
        self._write_zeros(behind * BLOCK, end)
        start, stop = first * BLOCK, min(behind * BLOCK, self.size)
        self._layer.zero(start, stop - start)
        self._mark(first, behind, _HOLE)

    def flush(self) -> None:
        """As `Backend.flush`: the data first, then the map."""
        if not self._kept:
            return
        self._layer.flush()
        if not self._dirty:
            return
        view = memoryview(self._map)
        for page in sorted(self._dirty):
            at = page * MAP_PAGE
            entries = Memory(view[at : at + MAP_PAGE])
            self._layer.write(entries, map_offset(self.size) + at, MAP_PAGE)
        self._layer.flush()
        self._dirty.clear()

    def load(self) -> None:
        """As `Backend.load`: the map, as the last worker left it."""
        if not self._kept:
            return
        piece = bytearray(1 << 20)
        for at in range(0, len(self._map), len(piece)):
            length = min(len(piece), len(self._map) - at)
            self._layer.read(Memory(piece), map_offset(self.size) + at, length)
            entries = piece[:length]
            if entries.translate(None, _ENTRIES):
                raise LayerDamaged("its map holds what no map can hold")
            if any(entries):
                self._map[at : at + length] = bytes(entries)
                self._room -= entries.count(_LAYER)

    # ---- blocks ----------------------------------------------------------------------------------

    def _runs(self, offset: int, length: int) -> Iterator[tuple[File, int, int]]:
        """(file, offset, length) of the pieces of a range that one file holds."""
        end = offset + length
        first = offset // BLOCK
        entries = self._map[first : (end - 1) // BLOCK + 1]
        at = 0
        while at < len(entries):
            if entries[at] == _BASE:
                source = self._base
                behind = len(entries) - len(entries[at:].lstrip(b"\0"))
            else:
                source = self._layer
                found = entries.find(_BASE, at)
                behind = len(entries) if found < 0 else found
            start = max(offset, (first + at) * BLOCK)
            yield source, start, min(end, (first + behind) * BLOCK) - start
            at = behind

    def _copy_up(self, block: int) -> None:
        """Brings a block of the base into the layer, so that a part of it can be written."""
        if self._map[block] != _BASE:
            return
        start = block * BLOCK
        copy = bytearray(min(BLOCK, self.size - start))
        self._base.read(Memory(copy), start, len(copy))
        self._layer.write(Memory(copy), start, len(copy))

    def _make_room(self, first: int, behind: int) -> None:
        new = behind - first - self._map[first:behind].count(_LAYER)
        if new > self._room:
            raise LayerFull(errno.ENOSPC, "the layer has reached its limit")

    def _mark(self, first: int, behind: int, entry: int) -> None:
        before, after = self._map[first:behind], bytes((entry,)) * (behind - first)
        if before == after:
            return
        self._map[first:behind] = after
        self._room += before.count(_LAYER) - after.count(_LAYER)
        if self._kept:
            self._dirty.update(range(first // MAP_PAGE, (behind - 1) // MAP_PAGE + 1))

    def _write_zeros(self, offset: int, end: int) -> None:
        while offset < end:
            length = min(end - offset, _ZEROS_MAX)
            self.write(Zeros(), offset, length)
            offset += length
