"""Disks of a VM: what a user says, checked; their files opened, locked and handed to the worker.

A disk of a saved machine is opened again from what was said about its base then, which must not
have changed; what the guest had written lies in a layer that is only read from then on.
"""

import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from teuthis import layer
from teuthis.errors import ConfigurationError, HostError, SnapshotError
from teuthis.flows import FLOWS
from teuthis.images import cache
from teuthis.jail.kernel import punch_hole
from teuthis.protocol import DiskConfig, LayerConfig
from teuthis.root.descriptors import Descriptors
from teuthis.root.saved import Identity, SavedDisk
from teuthis.root.settings import byte_count

_SECTOR: Final = 512
_MAX_DISKS: Final = FLOWS["storvsp.execute-srb"].values["luns_max"]


class Disk(msgspec.Struct, frozen=True):
    """A disk of a VM: a raw disk image or a block device of this host.

    Attributes:
        path: the file. What is in it is never looked at; its format is always raw.
        read_only: the guest cannot write to it.
        copy_on_write: the file is only read; what the guest writes goes into a layer above it
            that is thrown away when the VM ends.
        layer: a file that keeps that layer, made if it is missing; it may be given again with the
            same disk.
        layer_limit: bytes, or a text such as "2G", that the guest may have in the layer; what it
            writes beyond that fails in the guest. At most the size of the disk in any case.
    """

    path: str | os.PathLike[str]
    read_only: bool = False
    copy_on_write: bool = False
    layer: str | os.PathLike[str] | None = None
    layer_limit: int | str | None = None


class OpenDisk(msgspec.Struct, frozen=True):
    """A disk of a running VM: what its worker is given, and what saving it takes.

    Attributes:
        layer: descriptor of its layer's file, if it has one.
        lower: that of the layer below.
    """

    path: str
    base: Identity
    config: DiskConfig
    layer: int | None = None
    lower: int | None = None

    def check_saveable(self) -> None:
        """Raises `SnapshotError` when the disk can be no part of a saved machine."""
        if self.config.writable and self.config.layer is None:
            raise SnapshotError(
                f"the guest writes to {self.path} itself: only disks that are read only or have a "
                "layer (copy_on_write) can be saved with a VM"
            )
        if not Path(self.path).is_file():
            raise SnapshotError(
                f"{self.path} is no regular file: nobody could tell later whether it has changed"
            )


def open_disks(
    disks: Sequence[Disk | SavedDisk], given: Descriptors, held: Descriptors
) -> tuple[OpenDisk, ...]:
    """Opens and locks the files of a VM's disks.

    The descriptors for the worker belong to `given`, those for saving the VM to `held`. A file that
    is written to is locked for its one writer, all others against writers. The locks are the
    descriptors' own and end with the last process that has them: the worker, or for a layer us.

    Raises:
        ConfigurationError: a disk that cannot be used, or is in use.
        SnapshotError: a saved disk whose base is not there any more as it was.
        HostError: this host cannot keep a layer.
    """
    if len(disks) > _MAX_DISKS:
        raise ConfigurationError(f"{len(disks)} disks: a VM can have up to {_MAX_DISKS}")
    opened = []
    for disk in disks:
        config = _open_saved(disk, given) if isinstance(disk, SavedDisk) else _open(disk, given)
        top = lower = None
        if config.layer is not None:
            top = held.own(os.dup(config.layer.file))
            if config.layer.lower is not None:
                lower = held.own(os.dup(config.layer.lower))
        path = str(Path(disk.path).absolute())
        opened.append(OpenDisk(path, Identity.of(config.file), config, top, lower))
    return tuple(opened)


def _open_saved(disk: SavedDisk, given: Descriptors) -> DiskConfig:
    try:
        file = _open_file(Path(disk.path), given, os.O_RDONLY)
    except ConfigurationError as error:
        raise SnapshotError(f"the saved VM needs its disk: {error}") from error
    if Identity.of(file) != disk.base:
        raise SnapshotError(
            f"the saved VM needs {disk.path} as it was when it was saved; the file has changed"
        )
    if disk.limit is None:
        return DiskConfig(file=file, size=disk.base.size, writable=False, punches=False)
    top = given.own(temporary(disk.base.size))
    lower = None if disk.layer is None else given.own(os.dup(disk.layer))
    return _layered(file, disk.base.size, LayerConfig(top, disk.limit, kept=False, lower=lower))


def _open(disk: Disk, given: Descriptors) -> DiskConfig:
    layered = disk.copy_on_write or disk.layer is not None
    if disk.read_only and layered:
        raise ConfigurationError(
            f"disk {disk.path}: either read_only or with a layer for what is written, not both"
        )
    if disk.layer_limit is not None and not layered:
        raise ConfigurationError(
            f"disk {disk.path}: layer_limit is for disks with copy_on_write or a layer"
        )
    writes = not (disk.read_only or layered)
    file = _open_file(Path(disk.path), given, os.O_RDWR if writes else os.O_RDONLY)
    size = _size(Path(disk.path), file)
    if not layered:
        punches = writes and _punches(file, size)
        return DiskConfig(file=file, size=size, writable=writes, punches=punches)
    if size > layer.MAX_DISK:
        raise ConfigurationError(f"disk {disk.path} is larger than 1 TiB: it cannot have a layer")
    if disk.layer is None:
        top = given.own(temporary(size))
    else:
        top = _kept(Path(disk.layer), Path(disk.path), file, size, given)
    limit = size + layer.BLOCK if disk.layer_limit is None else byte_count(disk.layer_limit)
    return _layered(file, size, LayerConfig(top, limit, kept=disk.layer is not None))


def _layered(file: int, size: int, own: LayerConfig) -> DiskConfig:
    punches = _punches(own.file, layer.file_size(size))
    return DiskConfig(file=file, size=size, writable=True, punches=punches, layer=own)


def _open_file(path: Path, given: Descriptors, flags: int) -> int:
    """A locked descriptor of a regular file or a block device."""
    try:
        # Not blocking: opening a pipe would wait for its other end.
        descriptor = given.own(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    except OSError as error:
        raise ConfigurationError(f"disk {path}: {error.strerror}") from error
    kind = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise ConfigurationError(f"disk {path} is neither a file nor a block device")
    writes = bool(flags & os.O_RDWR)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if writes else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"disk {path} is in use: a disk has one writer or many readers; "
            "end the other VM, or give both a layer of their own (copy_on_write)"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"disk {path} cannot be locked: {error.strerror}") from error
    return descriptor


def _size(path: Path, descriptor: int) -> int:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0 or size % _SECTOR:
        raise ConfigurationError(
            f"disk {path} has {size} bytes: a raw disk has a number of sectors of {_SECTOR} bytes"
        )
    return size


def _punches(descriptor: int, end: int) -> bool:
    """Whether holes can be punched into a file: asked behind its end, where nothing is."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    try:
        punch_hole(descriptor, -(-end // layer.BLOCK) * layer.BLOCK, layer.BLOCK)
    except OSError:
        return False
    return True


def temporary(size: int) -> int:
    """A file for a layer to be thrown away: it has no name, so nothing can leave it behind.

    Raises:
        HostError: this host cannot keep it.
    """
    try:
        import tempfile

        with tempfile.TemporaryFile(dir=cache.directory("layers")) as file:
            os.ftruncate(file.fileno(), layer.file_size(size))
            return os.dup(file.fileno())
    except OSError as error:
        raise HostError(
            f"no place for what the guest writes ({error.strerror}): "
            "TEUTHIS_CACHE names a directory on a file system with sparse files"
        ) from error


def _kept(path: Path, base: Path, base_descriptor: int, size: int, given: Descriptors) -> int:
    """A layer's own file: a new one, or one that was made for this very base."""
    descriptor = _open_file(path, given, os.O_RDWR | os.O_CREAT)
    # Compared, not parsed: a worker that was taken over could have written anything there.
    identity = layer.identity(size, os.fstat(base_descriptor).st_mtime_ns)
    whole = layer.file_size(size)
    at = layer.identity_offset(size)
    found = os.fstat(descriptor).st_size
    if found == 0:
        try:
            os.ftruncate(descriptor, whole)
            os.pwrite(descriptor, identity, at)
            os.fsync(descriptor)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise HostError(f"layer {path} cannot be made: {error.strerror}") from error
    elif found != whole or os.pread(descriptor, len(identity), at) != identity:
        raise ConfigurationError(
            f"{path} is not a layer of {base} as it is now: a layer fits only the disk that it was "
            "made for, unchanged since"
        )
    return descriptor
