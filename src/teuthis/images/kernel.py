"""Guest kernels: the distribution's cloud kernel, or a file that the user names."""

import re
from pathlib import Path

import msgspec

from teuthis.errors import KernelError
from teuthis.images import cache, packages

PACKAGE = "linux-image-cloud-amd64"
_RELEASE = re.compile(rb"(?:Linux version )?(\d+\.\d+\.[\w.+~-]+)")


class GuestKernel(msgspec.Struct, frozen=True):
    """A kernel file and its modules (`kernel/…`, `modules.builtin`); None if all is built in."""

    file: Path
    modules: Path | None


def default_kernel(*, update: bool = False) -> GuestKernel:
    """The distribution's cloud kernel; downloaded when the cache has none.

    Args:
        update: ask the distribution for its newest one even if the cache has one.

    Raises:
        HostError: apt is missing, or the download failed.
        KernelError: the package holds no kernel.
    """
    name = cache.directory("packages") / f"{PACKAGE}.name"
    if update:
        packages.refresh_lists()
    if update or not name.exists():
        images = [p for p in packages.dependencies(PACKAGE) if p.startswith("linux-image-")]
        if not images:
            raise KernelError(f"the package {PACKAGE} depends on no kernel: use --kernel")
        with cache.new_file(name) as file:
            file.write(images[0].encode())
    top = packages.unpacked(name.read_text())
    files = sorted((top / "boot").glob("vmlinuz-*"))
    if not files:
        raise KernelError(f"the package {name.read_text()} holds no kernel: use --kernel")
    version = files[-1].name.removeprefix("vmlinuz-")
    found = (top / place / "lib/modules" / version for place in ("", "usr"))
    return GuestKernel(files[-1], next((path for path in found if path.is_dir()), None))


def kernel_from_file(path: Path) -> GuestKernel:
    """A kernel file with its modules, if they lie where modules usually lie.

    That is: `modules` or `lib/modules/RELEASE` beside it, `../lib/modules/RELEASE` or
    `../usr/lib/modules/RELEASE` as in a package, or `/lib/modules/RELEASE`.

    Raises:
        KernelError: there is no such file.
    """
    path = path.expanduser()
    if not path.is_file():
        raise KernelError(f"there is no kernel file {path}: check the path")
    here = path.resolve().parent
    places = [here / "modules"]
    if name := release(path):
        tops = (here, here.parent, here.parent / "usr", Path("/"))
        places += [top / "lib/modules" / name for top in tops]
    return GuestKernel(path, next((place for place in places if place.is_dir()), None))


def release(path: Path) -> str | None:
    """The kernel's release: named in a bzImage's header, else by the file's name."""
    with path.open("rb") as file:
        header = file.read(1 << 16)
    if header[0x202:0x206] == b"HdrS":
        start = int.from_bytes(header[0x20E:0x210], "little") + 0x200
        if match := _RELEASE.match(header[start : start + 128]):
            return match[1].decode("ascii", "replace")
    match = _RELEASE.search(path.name.encode())
    return match[1].decode("ascii", "replace") if match else None
