"""Makes images: a directory that appears in the store complete or not at all."""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from teuthis.errors import ConfigurationError, HostError, ImageError, KernelError
from teuthis.images import cache, debian, ext4, host, store, tar
from teuthis.images.kernel import GuestKernel, default_kernel, release
from teuthis.images.store import DISK, INITRD, KERNEL, MODULES, Defaults, Image, Pin, Record
from teuthis.images.tree import Content, Node, Tree

DEFAULT_SIZE: Final = 2 << 30
_DISK_SPACE: Final = 2 << 30
"""What a Debian image needs while it is made: packages, their archive, the disk."""
_MAX_STATUS: Final = 64 << 20
_MAX_BOOT_FILE: Final = 512 << 20
_CHUNK: Final = 1 << 20


def build(
    flavour: str,
    *,
    name: str | None = None,
    include: Sequence[str] = (),
    size: int = DEFAULT_SIZE,
    mirror: str | None = None,
    update: bool = False,
    say: debian.Say,
) -> Image:
    """A Debian image; the one that is there already, unless `update` asks for a new one.

    Args:
        flavour: a key of `debian.FLAVOURS`.
        name: of the image; the flavour's unless given.
        include: Debian packages beside the flavour's.
        size: of the root disk, in bytes.
        mirror: the URL of an archive instead of Debian's own.
        update: build it anew even if it is there.
        say: told each step.

    Raises:
        ConfigurationError: there is no such flavour, or the name cannot be one.
        HostError: the host lacks something, or the build failed.
        ImageError: the disk is too small, or the image is in use.
    """
    kind = debian.FLAVOURS.get(flavour)
    if kind is None:
        raise ConfigurationError(
            f"there is no image to build called {flavour!r}: {', '.join(debian.FLAVOURS)}"
        )
    name = store.check_new_name(name or flavour)
    with cache.lock(cache.directory("images") / f"{name}.lock"):
        if not update and (found := _present(name, include)):
            return found
        _build(kind, name, include, size, mirror, say)
    return store.find(name)


def _present(name: str, include: Sequence[str]) -> Image | None:
    """The image of that name, if it is there, whole, and has these packages."""
    try:
        image = store.find(name)
    except (ConfigurationError, ImageError):
        return None
    lacking = [each for each in include if image.record and each not in image.record.packages]
    if lacking:
        raise ConfigurationError(
            f"there is an image {name!r} already, without {', '.join(lacking)}: "
            "give another --name, or build it anew with --update"
        )
    return image


def _build(
    kind: debian.Flavour,
    name: str,
    include: Sequence[str],
    size: int,
    mirror: str | None,
    say: debian.Say,
) -> None:
    free = shutil.disk_usage(store.directory()).free
    if free < _DISK_SPACE:
        raise HostError(
            f"only {free >> 20} MiB are free in {store.directory()}; {_DISK_SPACE >> 20} MiB are "
            "needed: make room, or set TEUTHIS_DATA to a directory elsewhere"
        )
    time = debian.epoch()
    kernel = None if kind.own_kernel else default_kernel()
    with new_image(name) as home:
        archive = home.parent / "root.tar"
        debian.bootstrap(kind, include, mirror, archive, time, say)
        tree = Tree()
        tar.apply(archive, tree, size)
        for path, text in kind.files.items():
            content = Content.of(text.encode())
            tree.add(path, Node(stat.S_IFREG | 0o644, mtime=time, content=content))
        if kernel:
            add_kernel(home, kernel, tree, time)
        else:
            _take_kernel(home, tree)
        say("writing the root disk")
        ext4.write(tree, home / DISK, size, time)
        say("computing checksums")
        source = f"Debian {debian.suite()}"
        finish(home, source=source, root="sda", packages=packages(tree), time=time)


def finish(
    home: Path,
    *,
    source: str,
    root: str,
    time: int,
    packages: dict[str, str] | None = None,
    defaults: Defaults | None = None,
) -> None:
    """Pins what is in the directory of a new image and writes its record."""
    for path in (home / part for part in (DISK, KERNEL, INITRD)):
        if path.exists():
            path.chmod(0o444)
    record = Record(
        source=source,
        root=root,
        release=release(home / KERNEL) or "",
        epoch=time,
        files=pins(home),
        modules=tree_digest(home / MODULES),
        packages=packages or {},
        defaults=defaults or Defaults(),
    )
    store.write_record(home, record)


def pins(home: Path) -> dict[str, Pin]:
    """The size and SHA-256 of each file of an image."""
    return {part: _pin(home / part) for part in (DISK, KERNEL, INITRD) if (home / part).exists()}


def tree_digest(top: Path) -> str | None:
    """One SHA-256 for a directory: over its sorted paths and their files' digests."""
    if not top.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in top.rglob("*") if path.is_file()):
        digest.update(f"{_pin(path).sha256}  {path.relative_to(top)}\n".encode())
    return digest.hexdigest()


def verify(image: Image) -> list[str]:
    """Compares every file of an image with its pin; returns the names of those that differ."""
    record = image.record
    if record is None:
        return []
    home = store.directory() / image.name
    found = pins(home)
    wrong = [
        part for part in {**record.files, **found} if record.files.get(part) != found.get(part)
    ]
    if tree_digest(home / MODULES) != record.modules:
        wrong.append(MODULES)
    return wrong


def add_kernel(home: Path, kernel: GuestKernel, tree: Tree | None, time: int) -> None:
    """Puts a kernel and its modules into an image's directory, and the modules into its tree.

    Raises:
        KernelError: the kernel's release is not known, so its modules have no place in the tree.
        HostError: depmod is missing, or failed.
    """
    shutil.copyfile(kernel.file, home / KERNEL)
    if kernel.modules is None:
        return
    shutil.copytree(
        kernel.modules, home / MODULES, ignore=shutil.ignore_patterns("build", "source")
    )
    if tree is None:
        return
    name = release(home / KERNEL)
    if not name:
        raise KernelError(f"{kernel.file} does not say its release: its modules have no place")
    base = home.parent / "depmod"
    lists = base / "lib/modules" / name
    lists.mkdir(parents=True)
    for path in (home / MODULES).iterdir():
        if path.is_dir():
            (lists / path.name).symlink_to(path)
        else:
            shutil.copyfile(path, lists / path.name)
    host.run(["depmod", "-b", str(base), name], "listing the modules' dependencies failed")
    contents: dict[Path, Path | bytes] = {
        path.relative_to(home / MODULES): path
        for path in (home / MODULES).rglob("*")
        if path.is_file()
    }
    contents |= {Path(path.name): path.read_bytes() for path in lists.iterdir() if path.is_file()}
    shutil.rmtree(base)
    for place, source in contents.items():
        node = Node(stat.S_IFREG | 0o644, mtime=time, content=Content.of(source))
        tree.add(f"lib/modules/{name}/{place}", node)


def _take_kernel(home: Path, tree: Tree) -> None:
    """The kernel and initrd that a root file system brings along, as files of the image."""
    boot = tree.file("boot")
    for prefix, part in (("vmlinuz-", KERNEL), ("initrd.img-", INITRD)):
        names = sorted(name for name in (boot.entries if boot else ()) if name.startswith(prefix))
        node = tree.file(f"boot/{names[-1]}") if names else None
        if node is None or node.content is None:
            raise ImageError(f"the root file system has no /boot/{prefix}*")
        (home / part).write_bytes(node.content.read(_MAX_BOOT_FILE))


def packages(tree: Tree) -> dict[str, str]:
    """Names and versions of the Debian packages in a root file system (dpkg's status file)."""
    status = tree.file("var/lib/dpkg/status")
    if status is None or status.content is None:
        return {}
    found = {}
    for paragraph in status.content.read(_MAX_STATUS).decode("utf-8", "replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and line[0] != " "
        )
        if fields.get("Status", "").endswith(" installed"):
            found[fields.get("Package", "")] = fields.get("Version", "")
    return dict(sorted(found.items()))


@contextmanager
def new_image(name: str) -> Iterator[Path]:
    """A directory for a new image; takes its place in the store only at the end of the block.

    Its parent is for what is needed in between, and goes with the block.
    """
    store.sweep()
    with (
        tempfile.TemporaryDirectory(dir=store.directory(), prefix=f".new-{name}-") as work,
        store.claim(Path(work)),
    ):
        home = Path(work) / "image"
        home.mkdir()
        home.chmod(0o755)
        yield home
        for path in home.iterdir():
            _sync(path)
        if (store.directory() / name).exists():
            store.remove(name)
        try:
            home.rename(store.directory() / name)
        except OSError as error:
            raise ImageError(f"the image {name!r} was made twice at once: {error}") from error


def _sync(path: Path) -> None:
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _pin(path: Path) -> Pin:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return Pin(path.stat().st_size, digest.hexdigest())
