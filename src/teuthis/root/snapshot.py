"""Snapshots on disk: a directory that a VM can be started from again, any number of times.

snapshot.json   format, memory size, SHA-256 of the other files; written last
memory          the guest's memory, sparse; restored VMs map it and never write it
pages           one byte per page: 0 in `memory`, 1 nothing but zeros
hypervisor      the state of processor and partition, opaque to the root side
worker          the state of the worker, opaque to the root side
disk-0 …        what the guest had written to a disk that has a layer (`teuthis.layer`), sparse

The disks themselves are not part of it: they stay where they were, and must not change.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from teuthis.errors import ConfigurationError, SnapshotError
from teuthis.protocol import MAX_USER
from teuthis.root import first_pages
from teuthis.root.processor import MAX_CPUS, Processor
from teuthis.root.saved import PAGE, Identity, Saved, SavedDisk, runs

if TYPE_CHECKING:
    from teuthis.root.network import Wanted

FORMAT: Final = 8
_MANIFEST: Final = "snapshot.json"
_PARTS: Final = ("pages", "hypervisor", "worker")
_MAX_STATE: Final = 64 << 20
_CHUNK: Final = 1 << 20

Stamp = tuple[int, ...]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class ManifestDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `SavedDisk`; `layer` is the digest of its layer."""

    path: str
    base: Identity
    limit: Annotated[int, msgspec.Meta(ge=0)] | None
    layer: Digest | None


class ManifestNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network as it was asked for: see `VM`."""

    network: str
    publish: list[str]
    host_ports: list[int]
    mtu: int
    rate: int

    @classmethod
    def of(cls, wanted: Wanted | None) -> ManifestNetwork | None:
        """From what a machine is on."""
        if wanted is None:
            return None
        return cls(
            "user" if wanted.name is None else f"switch:{wanted.name}",
            [str(each) for each in wanted.publish],
            list(wanted.host_ports),
            wanted.mtu,
            wanted.bytes_rate,
        )

    def wanted(self) -> Wanted | None:
        """What a machine is to be on. Raises `ConfigurationError`."""
        from teuthis.root.network.wanted import wanted

        return wanted(
            self.network,
            publish=self.publish,
            host_ports=self.host_ports,
            mtu=self.mtu,
            rate=self.rate,
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `snapshot.json` says."""

    format: Literal[8]
    memory_size: Annotated[int, msgspec.Meta(ge=PAGE, le=1 << 46, multiple_of=PAGE)]
    env: dict[str, str]
    """Environment variables of all programs."""
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_USER)]
    """Who they run as."""
    processor: Processor
    cpus: Annotated[int, msgspec.Meta(ge=1, le=MAX_CPUS)]
    memory: Digest
    pages: Digest
    hypervisor: Digest
    worker: Digest
    disks: list[ManifestDisk]
    network: ManifestNetwork | None
    agent: bool
    end_when_hung: bool


class _Format(msgspec.Struct):
    format: int


def write(directory: Path, saved: Saved, env: dict[str, str], user: str) -> None:
    """Writes a saved machine to `directory`, which appears complete or not at all.

    Raises:
        SnapshotError: it is there already, or cannot be written.
    """
    import shutil
    import tempfile

    if directory.exists():
        raise SnapshotError(f"{directory} exists: choose another name, or remove it")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".new-"))
        try:
            _copy_memory(saved, new / "memory")
            parts = {"pages": saved.pages, "hypervisor": saved.hypervisor, "worker": saved.worker}
            for name, content in parts.items():
                (new / name).write_bytes(content)
            disks = [_write_disk(disk, _layer(new, lun)) for lun, disk in enumerate(saved.disks)]
            manifest = Manifest(
                format=FORMAT,
                memory_size=saved.memory_size,
                env=env,
                user=user,
                processor=saved.processor,
                cpus=saved.cpus,
                memory=memory_digest(saved.template, saved.pages),
                **{name: hashlib.sha256(content).hexdigest() for name, content in parts.items()},
                disks=disks,
                network=ManifestNetwork.of(saved.network),
                agent=saved.agent,
                end_when_hung=saved.end_when_hung,
            )
            (new / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
            new.rename(directory)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    except OSError as error:
        raise SnapshotError(f"could not write the snapshot {directory}: {error}") from error


def _layer(directory: Path, lun: int) -> Path:
    return directory / f"disk-{lun}"


def _write_disk(disk: SavedDisk, path: Path) -> ManifestDisk:
    from teuthis.root import layers

    found = None
    if disk.layer is not None:
        with path.open("wb") as file:
            layers.copy(disk.layer, None, disk.base.size, file.fileno())
        found = layers.digest(disk.layer, disk.base.size)
    return ManifestDisk(disk.path, disk.base, disk.limit, found)


def _copy_memory(saved: Saved, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(saved.memory_size)
        for start, end in runs(saved.pages):
            while start < end:
                data = os.pread(saved.template, min(end - start, _CHUNK), start)
                start += os.pwrite(file.fileno(), data, start)


def memory_digest(memory: int, pages: bytes) -> str:
    """SHA-256 of the pages that a memory file holds, in their order."""
    digest = hashlib.sha256()
    for start, end in runs(pages):
        while start < end:
            data = os.pread(memory, min(end - start, _CHUNK), start)
            if not data:
                raise SnapshotError("the snapshot's memory file is cut off: make the snapshot anew")
            digest.update(data)
            start += len(data)
    return digest.hexdigest()


def read(
    directory: Path, *, trusted: Callable[[str, int], bool] = lambda name, file: False
) -> tuple[Saved, Manifest]:
    """Opens a snapshot and checks all of it but the disks, which are checked when they are opened.

    `trusted` may answer for a large file, by its name and descriptor, that it is unchanged since it
    was checked.

    Raises:
        SnapshotError: it is not there, damaged, cut off, newer, or no snapshot at all.
    """
    try:
        unchanged = tuple(_stamp(directory / name) for name in (_MANIFEST, *_PARTS))
        manifest, parts = _judged(directory, unchanged)
        network = manifest.network.wanted() if manifest.network else None
        with ExitStack() as undo:
            memory = _open(directory / "memory", undo)
            if os.fstat(memory).st_size != manifest.memory_size:
                raise _damaged(directory / "memory")
            if not trusted("memory", memory) and (
                memory_digest(memory, parts["pages"]) != manifest.memory
            ):
                raise _damaged(directory / "memory")
            disks = []
            for lun, disk in enumerate(manifest.disks):
                file, path = None, _layer(directory, lun)
                if disk.layer is not None:
                    file = _open(path, undo)
                    if not trusted(path.name, file) and (
                        _layer_digest(file, disk.base.size) != disk.layer
                    ):
                        raise _damaged(path)
                disks.append(SavedDisk(disk.path, disk.base, disk.limit, file))
            undo.pop_all()
    except (OSError, ConfigurationError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise SnapshotError(f"{directory} cannot be read as a snapshot: {what}") from error
    saved = Saved(
        manifest.memory_size,
        memory,
        parts["pages"],
        parts["hypervisor"],
        parts["worker"],
        tuple(disks),
        network,
        manifest.agent,
        manifest.end_when_hung,
        manifest.processor,
        manifest.cpus,
        first_pages.read(directory, memory, parts["pages"]),
    )
    return saved, manifest


@functools.lru_cache(maxsize=4)
def _judged(directory: Path, _: tuple[Stamp | None, ...]) -> tuple[Manifest, dict[str, bytes]]:
    """The small files of a snapshot, as long as they are the same. Raises `SnapshotError`."""
    manifest = _manifest((directory / _MANIFEST).read_bytes(), directory)
    parts = {name: _part(directory / name, getattr(manifest, name)) for name in _PARTS}
    pages = parts["pages"]
    if len(pages) != manifest.memory_size // PAGE or pages.translate(None, b"\0\1"):
        raise _damaged(directory / "pages")
    return manifest, parts


def _stamp(path: Path) -> Stamp | None:
    """What tells whether a file is the same, unchanged: the time of a change nobody can set."""
    try:
        at = path.stat()
    except OSError:
        return None  # who reads it will say so
    return at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns


def describe(directory: Path) -> Manifest:
    """What a snapshot says of itself; nothing else of it is looked at. Raises `SnapshotError`."""
    try:
        return _manifest((directory / _MANIFEST).read_bytes(), directory)
    except OSError as error:
        raise SnapshotError(
            f"{directory} cannot be read as a snapshot: {error.strerror}"
        ) from error


def _layer_digest(file: int, size: int) -> str:
    from teuthis.root import layers

    return layers.digest(file, size)


def _open(path: Path, undo: ExitStack) -> int:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, file)
    return file


def _manifest(content: bytes, directory: Path) -> Manifest:
    try:
        version = msgspec.json.decode(content, type=_Format).format
        if version > FORMAT:
            raise SnapshotError(
                f"{directory} is a snapshot of format {version}, which is newer than this program: "
                "update it"
            )
        if version < FORMAT:
            raise SnapshotError(
                f"{directory} is a snapshot of format {version}, which an older program wrote: "
                "make it anew"
            )
        return msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as error:
        raise SnapshotError(
            f"{directory} is no snapshot, or is damaged: {_MANIFEST}: {error}"
        ) from error


def _part(path: Path, digest: str) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_STATE + 1)
    if len(content) > _MAX_STATE or hashlib.sha256(content).hexdigest() != digest:
        raise _damaged(path)
    return content


def _damaged(path: Path) -> SnapshotError:
    return SnapshotError(f"{path} is not what was saved: the snapshot is damaged, make it anew")
