"""Makes images of what others have made: disks, file systems, root directories, containers."""

import os
import re
from pathlib import Path
from typing import IO, Final

from teuthis.errors import ConfigurationError, ImageError
from teuthis.images import disk, ext4, make, oci, store, tar
from teuthis.images.compression import Allowance, is_compressed, unpack
from teuthis.images.debian import Say, epoch
from teuthis.images.kernel import GuestKernel, default_kernel, kernel_from_file
from teuthis.images.layout import Layout
from teuthis.images.store import DISK, Defaults, Image
from teuthis.images.tree import Tree

_MAX_UNPACKED: Final = 16 << 30
_ROOM: Final = 512 << 20
_CHUNK: Final = 64 << 10
_ROOT: Final = re.compile(r"sda\d{0,3}")
_TAR_MARK: Final = (257, b"ustar")


def import_image(
    source: Path,
    *,
    name: str,
    kernel: Path | None = None,
    modules: Path | None = None,
    size: int | None = None,
    root: str | None = None,
    tag: str | None = None,
    say: Say,
) -> Image:
    """An image made of a file or an OCI layout directory.

    Args:
        source: a raw disk, an ext4 file system, a root file system as a tar archive, an OCI image
            layout (archive or directory) or what `docker save` wrote; files may be compressed by
            gzip, xz or zstd.
        name: of the image.
        kernel: a vmlinuz; by default the distribution's cloud kernel.
        modules: its modules, if they do not lie beside it.
        size: of the root disk, and the most that an archive may unpack to, in bytes.
        root: the root device, if the disk does not say it: "sda2".
        tag: which image, if a container archive has several.
        say: told each step.

    Raises:
        ConfigurationError: the name is taken or cannot be, or the arguments do not fit together.
        ImageError: the source is damaged, not safe, or of an unknown kind.
        KernelError, HostError: no kernel is to be had, or this host lacks something.
    """
    _check(source, name, kernel, modules, root)
    guest_kernel = default_kernel() if kernel is None else kernel_from_file(kernel)
    if modules:
        guest_kernel = GuestKernel(guest_kernel.file, modules)
    now = epoch()
    with make.new_image(name) as home:
        allowance = Allowance(size or _MAX_UNPACKED)
        plain = _uncompressed(source, home.parent, allowance, say)
        tree = None
        defaults = Defaults()
        if plain.is_file() and _is_disk(plain):
            say("copying the disk")
            root = _copy_disk(plain, home / DISK, root)
        else:
            say("reading the archive")
            tree, defaults = _tree(plain, home.parent, allowance, tag)
            root = "sda"
        make.add_kernel(home, guest_kernel, tree, now)
        if tree:
            say("writing the root disk")
            ext4.write(tree, home / DISK, size or _fitting(tree), now)
        say("computing checksums")
        packages = make.packages(tree) if tree else {}
        make.finish(
            home, source=source.name, root=root, time=now, packages=packages, defaults=defaults
        )
    return store.find(name)


def _check(
    source: Path, name: str, kernel: Path | None, modules: Path | None, root: str | None
) -> None:
    store.check_new_name(name)
    if (store.directory() / name).exists():
        raise ConfigurationError(
            f"there is an image {name!r} already: give another --name, or remove it first"
        )
    if not source.is_file() and not source.is_dir():
        raise ConfigurationError(f"there is no file {source}: check the path")
    if modules and not kernel:
        raise ConfigurationError("--modules are of a kernel: name that with --kernel")
    if modules and not (modules / "kernel").is_dir():
        raise ConfigurationError(f"{modules} holds no modules: name lib/modules/RELEASE itself")
    if root and not _ROOT.fullmatch(root):
        raise ConfigurationError(f"--root {root}: say sda, sda1, …")


def _uncompressed(source: Path, work: Path, allowance: Allowance, say: Say) -> Path:
    if source.is_dir():
        return source
    with source.open("rb") as file:
        if not is_compressed(file):
            return source
        say("unpacking")
        plain = work / "unpacked"
        unpack(file, plain, allowance)
        return plain


def _is_disk(path: Path) -> bool:
    offset, mark = _TAR_MARK
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(len(mark)) != mark and disk.is_raw(file)


def _tree(path: Path, work: Path, allowance: Allowance, tag: str | None) -> tuple[Tree, Defaults]:
    """The root file system in an archive or a layout directory."""
    tree = Tree()
    layout = Layout(path)
    if oci.is_layout(layout):
        return tree, oci.apply(layout, tree, work, allowance, tag)
    if path.is_dir():
        raise ImageError(f"{path} is not an OCI image layout: it has no file `oci-layout`")
    tar.apply(path, tree, allowance.left)
    return tree, Defaults()


def _copy_disk(source: Path, target: Path, root: str | None) -> str:
    """Copies a raw disk, zeros as holes; returns its root device."""
    with source.open("rb") as file, target.open("xb") as copy:
        size = os.fstat(file.fileno()).st_size
        found = root or disk.root_device(file, size)
        for start, end in _data(file, size):
            file.seek(start)
            copy.seek(start)
            while start < end:
                data = file.read(min(_CHUNK, end - start))
                if not data:
                    raise ImageError(f"{source} became shorter while it was copied")
                if data.count(0) == len(data):
                    copy.seek(len(data), os.SEEK_CUR)  # a hole
                else:
                    copy.write(data)
                start += len(data)
        copy.truncate(-(-size // disk.SECTOR) * disk.SECTOR)
    return found


def _data(file: IO[bytes], size: int) -> list[tuple[int, int]]:
    """The stretches of a sparse file that are not holes."""
    found = []
    end = 0
    while end < size:
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        found.append((start, end))
    return found


def _fitting(tree: Tree) -> int:
    """A size of a root disk with room to work: what is in it and half as much again, or 2 GiB."""
    nodes = {id(node): node for _, node in tree.walk()}.values()
    stored = sum(piece[2] for node in nodes if node.content for piece in node.content.pieces)
    stored += len(nodes) * 4096
    return max(make.DEFAULT_SIZE, (stored * 3 // 2 + _ROOM) >> 20 << 20)
