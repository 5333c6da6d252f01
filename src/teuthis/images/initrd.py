"""The initrd: our agent as `/init`, a static busybox, the modules, and just enough of `/etc`.

Uncompressed, as unpacking costs the guest more than the host saves, and reproducible: the same
parts give the same bytes.
"""

import hashlib
import struct
import subprocess
from pathlib import Path

from teuthis import programs
from teuthis.errors import ConfigurationError, HostError
from teuthis.images import cache, packages
from teuthis.images.cpio import Archive
from teuthis.images.kernel import GuestKernel
from teuthis.images.modules import INTEGRATION, TRANSPORT, ModuleTree

_DIRECTORIES = (
    "bin",
    "dev",
    "etc",
    "lib",
    "lib/modules",
    "mnt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "usr",
    "var",
)
_LINKS = {"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin"}
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hostname": "teuthis\n",
    "hosts": "127.0.0.1 localhost teuthis\n::1 localhost\n",
    "profile": "export PATH=/bin:/sbin:/usr/bin:/usr/sbin\n",
}
_BUSYBOX = "bin/busybox"
_KEPT = 8
"""Initrds that stay in the cache, a few MB each: kernels and agents in use side by side."""
LOAD_ORDER = "lib/modules/load-order"
"""Names of module files beside it, one a line; the agent loads them in this order."""
LOAD_LATE = "lib/modules/load-late"
"""The same for those that the agent loads when the host has its first answers."""


def build(kernel: GuestKernel, modules: tuple[str, ...] = TRANSPORT) -> Path:
    """The initrd for a kernel, from the cache if it has been built before.

    Raises:
        KernelError: the kernel's modules lack one that is needed.
        HostError: busybox could not be downloaded.
        ConfigurationError: the guest agent is not built, or not static.
    """
    agent = programs.find(programs.GUEST_AGENT).read_bytes()
    if not _is_static(agent):
        raise ConfigurationError(
            "the guest agent needs shared libraries, which a guest does not have: "
            "build it with `make programs`"
        )
    busybox = packages.unpacked("busybox-static")
    drivers = (
        ModuleTree(kernel.modules).load_order((*modules, *INTEGRATION)) if kernel.modules else {}
    )
    content = _archive(agent, busybox, drivers, late=INTEGRATION)
    path = cache.directory("initrds") / f"{hashlib.sha256(content).hexdigest()}.cpio"
    if not path.exists():
        with cache.new_file(path) as file:
            file.write(content)
    return cache.used(path, keep=_KEPT)


def _archive(
    agent: bytes, busybox: Path, drivers: dict[str, bytes], late: tuple[str, ...]
) -> bytes:
    archive = Archive()
    for name in _DIRECTORIES:
        archive.directory(name)
    archive.directory("tmp", 0o1777)
    for name, target in _LINKS.items():
        archive.link(name, target)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("init", agent, 0o755)
    archive.file("bin/busybox", (busybox / _BUSYBOX).read_bytes(), 0o755)
    for applet in _applets(busybox):
        archive.link(f"bin/{applet}", "busybox")
    for name, text in _ETC.items():
        archive.file(f"etc/{name}", text.encode())
    for name, content in drivers.items():
        archive.file(f"lib/modules/{name}.ko", content)
    for path, names in (
        (LOAD_ORDER, [name for name in drivers if name not in late]),
        (LOAD_LATE, [name for name in late if name in drivers]),
    ):
        archive.file(path, "".join(f"{name}.ko\n" for name in names).encode())
    return archive.finish()


def _is_static(program: bytes) -> bool:
    """Whether an ELF-64 file asks for no interpreter (a program header of type PT_INTERP, 3)."""
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    offsets = range(table, table + size * count, size)
    return all(struct.unpack_from("<I", program, offset)[0] != 3 for offset in offsets)


def _applets(busybox: Path) -> list[str]:
    """Names of the programs that busybox is.

    It is asked once, by running it here; its answer is kept beside it.
    """
    answer = busybox.with_name(f"{busybox.name}.applets")
    if not answer.exists():
        program = busybox / _BUSYBOX
        try:
            done = subprocess.run([program, "--list"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostError(f"busybox does not run on this host: {error}") from error
        with cache.new_file(answer) as file:
            file.write(done.stdout)
    return [name for name in answer.read_text().split() if name != "busybox"]
