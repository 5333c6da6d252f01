"""What a disk stores its bytes in: a file of the host's, read from and written to in place.

Data go straight between the file and guest RAM, in one system call. Every error is an `OSError`;
the disk turns it into a SCSI error of its own guest.
"""

import errno
import os
from typing import Final, Protocol

from teuthis.jail.kernel import punch_hole

SECTOR: Final = 512
_ZEROS: Final = memoryview(bytes(1 << 20))


class Source(Protocol):
    """Where data come from: guest memory, mostly."""

    def views(self, start: int, length: int) -> list[memoryview]:
        """The memory of a part of it, for a system call that reads it."""


class Target(Protocol):
    """Where data go to."""

    def targets(self, start: int, length: int) -> list[memoryview]:
        """The memory of a part of it, for a system call that writes it."""


class Zeros:
    """A source of zeros, up to 1 MiB."""

    def views(self, start: int, length: int) -> list[memoryview]:
        """That many zeros."""
        return [_ZEROS[:length]]


class Memory:
    """Memory of our own as a `Source` and a `Target`."""

    def __init__(self, data: bytearray | memoryview) -> None:
        self._view = memoryview(data)

    def views(self, start: int, length: int) -> list[memoryview]:
        """A part of it."""
        return [self._view[start : start + length]]

    targets = views


class Backend(Protocol):
    """The content of one disk. Ranges are inside the disk, in whole sectors; errors `OSError`."""

    size: int
    """Bytes, a multiple of `SECTOR`."""
    writable: bool
    punches: bool
    """Whether `zero` gives space back and takes no time."""

    def read(self, data: Target, offset: int, length: int) -> None:
        """Fills the first `length` bytes of `data`."""

    def write(self, data: Source, offset: int, length: int) -> None:
        """Stores the first `length` bytes of `data`."""

    def zero(self, offset: int, length: int) -> None:
        """Makes a range read as zeros."""

    def flush(self) -> None:
        """Returns once everything written so far would survive a crash of the host."""

    def load(self) -> None:
        """Reads what it needs to know of its own files. Raises `LayerDamaged`."""

    def save(self) -> None:
        """Leaves in its files all that whoever copies them needs to know."""


class File:
    """Part of a file or a block device, from its start."""

    def __init__(self, descriptor: int, size: int, *, writable: bool, punches: bool) -> None:
        self.size = size
        self.writable = writable
        self.punches = punches
        self._descriptor = descriptor
        self._unsynced = False

    def read(self, data: Target, offset: int, length: int, start: int = 0) -> None:
        """As `Backend.read`; from byte `start` of `data` on."""
        while length:
            done = os.preadv(self._descriptor, data.targets(start, length), offset)
            if done == 0:
                raise OSError(errno.EIO, "the file has become shorter")
            start, offset, length = start + done, offset + done, length - done

    def write(self, data: Source, offset: int, length: int, start: int = 0) -> None:
        """As `Backend.write`; from byte `start` of `data` on."""
        self._unsynced = True
        while length:
            done = os.pwritev(self._descriptor, data.views(start, length), offset)
            start, offset, length = start + done, offset + done, length - done

    def zero(self, offset: int, length: int) -> None:
        """As `Backend.zero`: a hole where the file system has holes."""
        if self.punches:
            self._unsynced = True
            punch_hole(self._descriptor, offset, length)
            return
        while length:
            done = min(length, len(_ZEROS))
            self.write(Zeros(), offset, done)
            offset, length = offset + done, length - done

    def flush(self) -> None:
        """As `Backend.flush`."""
        if self._unsynced:
            os.fdatasync(self._descriptor)
            self._unsynced = False

    def load(self) -> None:
        """As `Backend.load`: the file is the disk, there is nothing to know."""

    def save(self) -> None:
        """As `Backend.save`: it is all there."""
