"""A copy-on-write layer: a base that is only read, and a file of the same size for what is written.

The layer file holds the disk's bytes at the disk's own offsets, sparse; it needs nothing of its
file system but holes, and not even those. Which blocks count is in a map of one byte per block. A
layer that is kept is safe whenever the worker or the host dies: `flush` syncs the data before it
writes the map entries that point at them, behind the data, and then the map. A block whose entry
was not written reads as it did before, which is what a disk may do with whatever was not flushed. A
layer that is thrown away has nothing to sync, and its map in its file only when the VM is saved.

A restored VM has the layer of the saved machine between the base and its own, and only reads it.
"""

import errno
import mmap
import re
from collections.abc import Iterator
from typing import Final

from teuthis.layer import BASE, BLOCK, HOLE, LOWER, MAP_PAGE, OWN, map_offset, map_size
from teuthis.worker.devices.storage.backend import File, Memory, Source, Target, Zeros

_IN_FILES: Final = bytes((BASE, OWN, HOLE))
"""Entries of a map that another machine may go on with."""
_AS_LOWER: Final = bytes.maketrans(bytes((OWN,)), bytes((LOWER,)))
_SAME_FILE: Final = re.compile(rb"%c+|[%c%c]+|%c+" % (BASE, OWN, HOLE, LOWER))
_ZEROS_MAX: Final = 1 << 20


class LayerDamaged(ValueError):
    """A map that no layer of ours can have."""


class LayerFull(OSError):
    """The layer holds as much as it may."""


class Layer:
    """A disk of a base and a layer above it, or two."""

    writable = True

    def __init__(
        self, base: File, layer: File, lower: File | None = None, *, limit: int, kept: bool
    ) -> None:
        """`lower`: the layer below; `limit`: bytes that the data of both may take.

        `kept`: the layer is to be used again.
        """
        self.size = base.size
        self.punches = layer.punches
        self._base = base
        self._layer = layer
        self._lower = lower
        self._room = limit // BLOCK
        """Blocks that the layer may still come to hold."""
        self._kept = kept
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, map_size(self.size), flags=flags)  # untouched pages cost nothing
        self._dirty: set[int] = set()
        """Pages of the map that differ from the file's."""

    # ---- reading and writing ---------------------------------------------------------------------

    def read(self, data: Target, offset: int, length: int) -> None:
        """As `Backend.read`."""
        for source, at, size in self._runs(offset, length):
            source.read(data, at, size, at - offset)

    def write(self, data: Source, offset: int, length: int) -> None:
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
        self._mark(first, last + 1, OWN)

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
        self._mark(first, behind, HOLE)

    def flush(self) -> None:
        """As `Backend.flush`: the data first, then the map."""
        if not self._kept:
            return
        self._layer.flush()
        self._write_map()
        self._layer.flush()

    def load(self) -> None:
        """As `Backend.load`: the map, as the last worker left it."""
        if self._kept:
            self._load_map(self._layer)
        elif self._lower is not None:
            self._load_map(self._lower, _AS_LOWER)

    def save(self) -> None:
        """As `Backend.save`: the map."""
        self.flush()
        self._write_map()

    # ---- the map ---------------------------------------------------------------------------------

    def _load_map(self, file: File, meaning: bytes | None = None) -> None:
        piece = bytearray(1 << 20)
        for at in range(0, len(self._map), len(piece)):
            length = min(len(piece), len(self._map) - at)
            file.read(Memory(piece), map_offset(self.size) + at, length)
            entries = bytes(piece[:length])
            if entries.translate(None, _IN_FILES):
                raise LayerDamaged("its map holds what no map can hold")
            if entries.count(BASE) == length:
                continue
            self._map[at : at + length] = entries.translate(meaning)
            self._room -= entries.count(OWN)
            if meaning is not None:
                self._dirty.update(range(at // MAP_PAGE, (at + length) // MAP_PAGE))

    def _write_map(self) -> None:
        view = memoryview(self._map)
        for page in sorted(self._dirty):
            at = page * MAP_PAGE
            entries = Memory(view[at : at + MAP_PAGE])
            self._layer.write(entries, map_offset(self.size) + at, MAP_PAGE)
        self._dirty.clear()

    # ---- blocks ----------------------------------------------------------------------------------

    def _runs(self, offset: int, length: int) -> Iterator[tuple[File, int, int]]:
        """(file, offset, length) of the pieces of a range that one file holds."""
        end = offset + length
        first = offset // BLOCK
        entries = self._map[first : (end - 1) // BLOCK + 1]
        for run in _SAME_FILE.finditer(entries):
            start = max(offset, (first + run.start()) * BLOCK)
            stop = min(end, (first + run.end()) * BLOCK)
            yield self._file(entries[run.start()]), start, stop - start

    def _file(self, entry: int) -> File:
        """Where a block with that entry is; holes are the layer's own."""
        if entry == BASE:
            return self._base
        if entry == LOWER and self._lower is not None:
            return self._lower
        return self._layer

    def _copy_up(self, block: int) -> None:
        """Brings a block of the base into the layer, so that a part of it can be written."""
        source = self._file(self._map[block])
        if source is self._layer:
            return
        start = block * BLOCK
        copy = bytearray(min(BLOCK, self.size - start))
        source.read(Memory(copy), start, len(copy))
        self._layer.write(Memory(copy), start, len(copy))

    def _make_room(self, first: int, behind: int) -> None:
        if behind - first - _held(self._map[first:behind]) > self._room:
            raise LayerFull(errno.ENOSPC, "the layer has reached its limit")

    def _mark(self, first: int, behind: int, entry: int) -> None:
        before, after = self._map[first:behind], bytes((entry,)) * (behind - first)
        if before == after:
            return
        self._map[first:behind] = after
        self._room += _held(before) - _held(after)
        self._dirty.update(range(first // MAP_PAGE, (behind - 1) // MAP_PAGE + 1))

    def _write_zeros(self, offset: int, end: int) -> None:
        while offset < end:
            length = min(end - offset, _ZEROS_MAX)
            self.write(Zeros(), offset, length)
            offset += length


def _held(entries: bytes) -> int:
    """How many blocks of these the layers hold."""
    return entries.count(OWN) + entries.count(LOWER)
