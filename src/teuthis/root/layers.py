"""What a guest has written to its disks, copied when its VM is saved.

A layer and the one below it become one, which is only read from then on. Their maps were written by
a worker that a guest may have taken over: each entry is judged, and says only which blocks to copy.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from teuthis import layer
from teuthis.errors import SnapshotError
from teuthis.flows import Counters
from teuthis.layer import BLOCK, LOWER, OWN
from teuthis.root.disks import OpenDisk, temporary
from teuthis.root.saved import SavedDisk

_ENTRIES: Final = bytes((layer.BASE, OWN, layer.HOLE, LOWER))
_AS_OWN: Final = bytes.maketrans(bytes((LOWER,)), bytes((OWN,)))
_HELD: Final = re.compile(rb"%c+|%c+" % (OWN, LOWER))
_CHUNK: Final = 1 << 20
_CANNOT_COPY: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""What `copy_file_range` says of files that it cannot copy between."""


def save(disks: Sequence[OpenDisk], counters: Counters) -> tuple[SavedDisk, ...]:
    """The disks of a VM that stands still, with copies of their layers.

    Raises:
        SnapshotError: a map that no worker of ours writes.
        HostError, OSError: there is no room.
    """
    with ExitStack() as undo:
        saved = []
        for disk in disks:
            config, size, copied = disk.config.layer, disk.base.size, None
            if disk.layer is not None:
                target = temporary(size)
                try:
                    _copy_counted(disk.layer, disk.lower, size, target, counters)
                    copied = os.open(f"/proc/self/fd/{target}", os.O_RDONLY | os.O_CLOEXEC)
                    undo.callback(os.close, copied)
                finally:
                    os.close(target)
            limit = config.limit if config else None
            saved.append(SavedDisk(disk.path, disk.base, limit, copied))
        undo.pop_all()
    return tuple(saved)


def _copy_counted(
    source: int, lower: int | None, size: int, target: int, counters: Counters
) -> None:
    try:
        copy(source, lower, size, target)
    except SnapshotError:
        counters.reject("state.layer-map", "damaged")
        raise
    counters.accept("state.layer-map", layer.map_size(size))


def copy(source: int, lower: int | None, size: int, target: int) -> None:
    """Copies a layer of a disk of `size` bytes, and what is in the one below, into `target`.

    Raises:
        SnapshotError: a map that no layer can have.
        OSError: there is no room.
    """
    os.ftruncate(target, layer.file_size(size))
    for at, entries in _map(source, size):
        for entry, start, end in _held(at, entries, size):
            below = lower if entry == LOWER else source
            if below is None:
                raise SnapshotError("the map of a disk's layer is damaged")
            _copy_range(below, target, start, end)
        _write(target, entries.translate(_AS_OWN), layer.map_offset(size) + at)


def digest(file: int, size: int) -> str:
    """SHA-256 of the map and the data of a saved layer. Raises `SnapshotError`, `OSError`."""
    found = hashlib.sha256()
    for at, entries in _map(file, size):
        found.update(at.to_bytes(8) + entries)
        for _, start, end in _held(at, entries, size):
            while start < end:
                data = os.pread(file, min(end - start, _CHUNK), start)
                if not data:
                    raise SnapshotError("the layer of a saved disk is cut off")
                found.update(data)
                start += len(data)
    return found.hexdigest()


def _map(file: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The map in pieces that say something: (number of the first block, entries)."""
    begin, whole = layer.map_offset(size), layer.map_size(size)
    for at in range(0, whole, _CHUNK):
        entries = os.pread(file, min(_CHUNK, whole - at), begin + at)
        if len(entries) != min(_CHUNK, whole - at) or entries.translate(None, _ENTRIES):
            raise SnapshotError("the map of a disk's layer is damaged: make the snapshot anew")
        if entries.count(layer.BASE) != len(entries):
            yield at, entries


def _held(first: int, entries: bytes, size: int) -> Iterator[tuple[int, int, int]]:
    """(entry, start, end) of the runs of blocks that one of two layers holds."""
    for run in _HELD.finditer(entries):
        start, end = (first + run.start()) * BLOCK, min((first + run.end()) * BLOCK, size)
        yield entries[run.start()], start, end


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copies a range to the same place in another file; where it can, the file system shares it."""
    while start < end:
        try:
            copied = os.copy_file_range(source, target, end - start, start, start)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            copied = _write(target, os.pread(source, min(end - start, _CHUNK), start), start)
        if not copied:
            raise SnapshotError("a disk's layer is cut off")
        start += copied


def _write(target: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
    return len(data)
