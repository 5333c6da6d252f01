"""The images on this machine: root disks with the kernels that boot them, one directory each.

    <data>/images/NAME/
        image.json      what it is made of, with the SHA-256 of every file that a guest starts from
        disk.img        a raw disk or file system; read only, never written
        vmlinuz         the kernel
        initrd          only for guests that boot by themselves, without our agent
        modules/        the kernel's modules, from which an initrd around our agent is made

A directory appears complete or not at all. Whoever runs a VM from an image holds a shared lock on
its disk (`teuthis.root.disks`), which ends with the last process that has the descriptor; removal
needs the lock for itself alone.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from teuthis import data
from teuthis.errors import ConfigurationError, HostError, ImageError
from teuthis.images.kernel import default_kernel

TINY: Final = "tiny"
"""The built-in image: busybox in memory on the distribution's cloud kernel, no disk."""
DISK: Final = "disk.img"
KERNEL: Final = "vmlinuz"
INITRD: Final = "initrd"
MODULES: Final = "modules"
_RECORD: Final = "image.json"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_STALE: Final = 3600
_MAX_RECORD: Final = 16 << 20


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an image: its size in bytes and its SHA-256, as hexadecimal digits."""

    size: int
    sha256: str


class Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the image's maker wants a program in it to be started (OCI image configuration)."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    workdir: str = "/"
    user: str = ""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `image.json`.

    `files` has a pin for `disk.img`, `vmlinuz`, `initrd` (each if there is one); the modules are
    pinned as one, by the digest of the sorted list of their paths and digests.
    """

    format: Literal[1] = 1
    source: str
    """What it was made from: "Debian bookworm", the name of an imported file."""
    root: str
    """The root file system as the guest sees it: "sda", or "sda1" on a disk with partitions."""
    release: str
    """The kernel's release, such as "6.1.0-56-cloud-amd64"; empty if it is not known."""
    epoch: int
    """Seconds since 1970: the time of files that the build made (SOURCE_DATE_EPOCH)."""
    files: dict[str, Pin]
    modules: str | None = None
    packages: dict[str, str] = {}
    """Debian packages in the root file system, with their versions."""
    defaults: Defaults = Defaults()


class Image(msgspec.Struct, frozen=True):
    """An image that a VM can boot.

    Attributes:
        name: its name.
        disk: raw disk or file system, read only and never written; None for "tiny".
        root: the root device as the guest sees it, such as "sda"; empty without a disk.
        kernel: a `vmlinuz`.
        modules: the kernel's modules (`kernel/…`, `modules.builtin`), if it has any.
        initrd: None: one is made around our agent. A file: the image's own, whose guest boots by
            itself, without our agent.
        record: what it is made of; None for "tiny".
    """

    name: str
    disk: Path | None
    root: str
    kernel: Path
    modules: Path | None
    initrd: Path | None = None
    record: Record | None = None

    @property
    def defaults(self) -> Defaults:
        """What runs in it, and how, if its user names nothing else."""
        return self.record.defaults if self.record else Defaults()


def directory() -> Path:
    """Where the images are: `images` in the user's data directory, which `TEUTHIS_DATA` moves."""
    return data.directory("images")


def check_name(name: str) -> str:
    """The name, if an image may have it.

    Raises:
        ConfigurationError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name[:80]!r} is no name for an image: use up to 63 of a-z, 0-9, '.', '_' and '-', "
            "with a letter or digit first"
        )
    return name


def check_new_name(name: str) -> str:
    """The name, if an image that is made may have it.

    Raises:
        ConfigurationError: it may not.
    """
    if name == TINY:
        raise ConfigurationError(f"{TINY!r} is built in: give the image another --name")
    return check_name(name)


def find(name: str) -> Image:
    """The image with this name.

    Raises:
        ConfigurationError: there is none, or the name cannot be one.
        ImageError: it is damaged.
        KernelError, HostError: "tiny" has no kernel yet, and none could be fetched.
    """
    if name == TINY:
        kernel = default_kernel()
        return Image(TINY, None, "", kernel.file, kernel.modules)
    home = directory() / check_name(name)
    try:
        record = _read(home)
    except FileNotFoundError:
        raise _absent(name) from None

    def part(part_name: str, *, pinned: bool) -> Path | None:
        return home / part_name if pinned else None

    return Image(
        name=name,
        disk=part(DISK, pinned=DISK in record.files),
        root=record.root,
        kernel=home / KERNEL,
        modules=part(MODULES, pinned=record.modules is not None),
        initrd=part(INITRD, pinned=INITRD in record.files),
        record=record,
    )


def list_images() -> list[Image]:
    """All images but "tiny", by name; what is damaged or not an image is left out."""
    images = []
    for home in sorted(directory().iterdir()):
        if _NAME.fullmatch(home.name) and (home / _RECORD).is_file():
            try:
                images.append(find(home.name))
            except (ImageError, ConfigurationError):
                continue
    return images


def remove(name: str) -> None:
    """Removes an image.

    Raises:
        ConfigurationError: there is none with this name, or it is the built-in one.
        ImageError: a VM uses it.
    """
    if name == TINY:
        raise ConfigurationError(f"{TINY!r} is built in and cannot be removed")
    home = directory() / check_name(name)
    if not home.is_dir():
        raise _absent(name)
    try:
        descriptor = os.open(home / DISK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        _discard(home)  # what is left of an image; nobody can run it
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _discard(home)
    except BlockingIOError:
        raise ImageError(f"the image {name!r} is in use by a VM: stop it first") from None
    finally:
        os.close(descriptor)


def _discard(home: Path) -> None:
    """Out of sight in one step, so that no half of it is ever found."""
    import shutil

    grave = home.with_name(f".removed-{home.name}-{os.getpid()}")
    try:
        home.rename(grave)
    except FileNotFoundError:
        raise _absent(home.name) from None  # another process was faster
    except OSError as error:
        raise HostError(f"the image {home.name!r} cannot be removed: {error.strerror}") from error
    shutil.rmtree(grave, ignore_errors=True)


@contextmanager
def claim(work: Path) -> Iterator[None]:
    """Keeps `sweep` of other processes away from a directory in which an image is made."""
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sweep() -> None:
    """Removes what builds and removals left behind that were killed, an hour after that."""
    import shutil

    for path in directory().glob(".*"):
        with suppress(OSError):  # claimed, or another process does the same
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if time.time() - os.fstat(descriptor).st_mtime > _STALE:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)


def write_record(home: Path, record: Record) -> None:
    """Puts `image.json` into the directory of a new image, its last file."""
    content = msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=2)
    (home / _RECORD).write_bytes(content + b"\n")


def _read(home: Path) -> Record:
    with (home / _RECORD).open("rb") as file:
        content = file.read(_MAX_RECORD)
    try:
        return msgspec.json.decode(content, type=Record)
    except msgspec.DecodeError as error:
        raise ImageError(
            f"the image {home.name!r} is damaged ({_RECORD}: {error}): "
            f"remove it with `teuthis image rm {home.name}` and make it again"
        ) from error


def _absent(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no image {name!r}: `teuthis image ls` lists what there is, "
        "`teuthis image build debian` makes one"
    )
