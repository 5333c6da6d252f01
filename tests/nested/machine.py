"""A machine inside QEMU's emulator (L1) whose kernel has a genuine `kvm_amd`: our VMs are its L2.

QEMU emulates AMD's SVM with nested paging, so neither root nor virtualization hardware is needed.
L1 boots Debian's ordinary kernel with an initrd made here; its programs are this host's own `/usr`,
this checkout, the cache and the images, all shared read-only through virtio-9p. Kernel code of an
L2 guest runs at some 200 MIPS; an exit to user space costs 100 to 500 µs.
"""

import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from teuthis.images import cache, packages, store
from teuthis.images.cpio import Archive
from teuthis.images.modules import ModuleTree
from teuthis.root.loader.kernel import open_kernel

ROOT: Final = Path(__file__).parents[2]
QEMU: Final = "qemu-system-x86_64"
_PACKAGE = "linux-image-amd64"
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "kvm_amd")
_BOOT = 600.0
"""Seconds that L1's own boot may take; 5 or 6 on an idle host."""

_FIRST_INIT: Final = """#!/busybox sh
# The initial file system cannot be left by pivot_root, as a jail must leave its root.
/busybox mount -t devtmpfs dev /dev
while read module; do /busybox insmod /modules/$module.ko; done < /modules/load-order
/busybox mount -t tmpfs root /root
/busybox cp -a /busybox /bin /lib /lib64 /sbin /etc /init.second /shares /command /root/
cd /root
/busybox mkdir -p dev proc root run sys tmp/cache usr var
/busybox mount -o move /dev dev
exec /busybox switch_root /root /init.second < /root/dev/console > /root/dev/console 2>&1
"""
_INIT: Final = """#!/busybox sh
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sys /sys
/busybox mkdir -m 1777 /dev/shm
# As `teuthis doctor` advises; what KVM backs with small pages here costs an exit for each.
echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled
/busybox chmod 1777 /tmp
while read tag path; do
    /busybox mkdir -p "$path"
    /busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose "$tag" "$path"
done < /shares
/busybox ip link set lo up
/busybox stty -opost
/busybox ln -s "$TEUTHIS_HOST_CACHE/packages" /tmp/cache/
/busybox mkdir /tmp/data # for TEUTHIS_DATA
/busybox ln -s "$TEUTHIS_HOST_IMAGES" /tmp/data/images
echo "$TEUTHIS_MARK begin"
{ /bin/sh /command < /dev/null; echo "$TEUTHIS_MARK end $?"; } 2>&1 | /busybox cat
/busybox poweroff -f
"""


class NestedError(Exception):
    """L1 did not come to the end of the command."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in L1 left: its exit code, and stdout and stderr in one text."""

    exit_code: int
    output: str


def run(
    command: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    processors: int = 1,
    echo: Callable[[str], None] | None = None,
) -> Result:
    """Runs `command` in a fresh L1, as root, in this checkout.

    Args:
        command: the program and its arguments, as on this host.
        timeout: seconds that the command may take, without L1's own boot.
        environment: variables of the command.
        processors: how many L1 has; more than one is slower.
        echo: called with each line of output as it comes.

    Raises:
        NestedError: L1 did not boot, or the command did not end in time; with all it wrote.
    """
    mark = f"teuthis-{secrets.token_hex(8)}"
    shares = _shares()
    kernel, modules = _kernel()
    with tempfile.TemporaryDirectory(prefix="teuthis-nested-") as directory:
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(
            _initrd(modules, shares, _script(command, environment or {}, mark), mark)
        )
        arguments = [
            *(QEMU, "-M", "pc", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt"),
            *("-smp", str(processors), "-m", "2048", "-nodefaults", "-display", "none"),
            *("-serial", "stdio", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off rdinit=/init"),
        ]
        for tag, path in shares.items():
            options = f"mount_tag={tag},security_model=none,readonly=on,multidevs=remap"
            arguments += "-virtfs", f"local,path={path},{options}"
        return _watch(arguments, mark, timeout, echo)


def _watch(
    arguments: Sequence[str], mark: str, timeout: float, echo: Callable[[str], None] | None
) -> Result:
    """Runs QEMU to its end, taking what lies between the two marks."""
    log: list[str] = []
    begin: int | None = None
    with subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        limit = threading.Timer(_BOOT, process.kill)
        limit.start()
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                before, found, word = line.partition(f"{mark} ")
                if found and word == "begin":
                    begin = len(log)
                    limit.cancel()
                    limit = threading.Timer(timeout, process.kill)
                    limit.start()
                elif found and begin is not None:
                    output = "\n".join([*log[begin:], before] if before else log[begin:])
                    return Result(int(word.removeprefix("end ")), output)
                else:
                    log.append(line)
                    if echo and begin is not None:
                        echo(line)
        finally:
            limit.cancel()
            process.kill()
    what = "boot" if begin is None else f"end the command within {timeout:g} s"
    raise NestedError(f"the nested machine did not {what}:\n" + "\n".join(log))


def _shares() -> dict[str, Path]:
    """What L1 sees of this host, by 9p tag; each under the same path."""
    paths = [Path("/usr"), ROOT, Path(sys.base_prefix), cache.directory("packages").parent]
    paths.append(store.directory())
    target = os.environ.get("CARGO_TARGET_DIR")
    if target:
        paths.append(Path(target))
    outermost: list[Path] = []
    for path in map(Path.resolve, paths):
        if not any(path.is_relative_to(other) for other in outermost):
            outermost.append(path)
    return {f"share{number}": path for number, path in enumerate(outermost)}


def _kernel() -> tuple[Path, Path]:
    """L1's kernel, uncompressed (it boots three times faster), and its modules."""
    images = [name for name in packages.dependencies(_PACKAGE) if name.startswith("linux-image-")]
    top = packages.unpacked(images[0])
    (modules,) = (top / "lib/modules").iterdir()
    vmlinux = cache.directory("nested") / f"vmlinux-{modules.name}"
    if not vmlinux.exists():
        content = open_kernel(top / "boot" / f"vmlinuz-{modules.name}").data
        with cache.new_file(vmlinux) as file:
            file.write(content)
    return vmlinux, modules


def _initrd(modules: Path, shares: Mapping[str, Path], script: str, mark: str) -> bytes:
    archive = Archive()
    for name in ("dev", "etc", "modules", "proc", "root", "run", "sys", "tmp", "usr", "var"):
        archive.directory(name)
    for name in ("bin", "lib", "lib64", "sbin"):
        archive.link(name, f"usr/{name}")
    archive.character_device("dev/console", 5, 1)
    archive.file(
        "busybox", (packages.unpacked("busybox-static") / "bin/busybox").read_bytes(), 0o755
    )
    drivers = ModuleTree(modules).load_order(_MODULES)
    for name, content in drivers.items():
        archive.file(f"modules/{name}.ko", content)
    archive.file("modules/load-order", "".join(f"{name}\n" for name in drivers).encode())
    archive.file("shares", "".join(f"{tag} {path}\n" for tag, path in shares.items()).encode())
    archive.file(
        "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    )
    archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    init = _INIT.replace("$TEUTHIS_MARK", mark)
    init = init.replace("$TEUTHIS_HOST_CACHE", str(cache.directory("packages").parent.resolve()))
    init = init.replace("$TEUTHIS_HOST_IMAGES", str(store.directory().resolve()))
    archive.file("init", _FIRST_INIT.encode(), 0o755)
    archive.file("init.second", init.encode(), 0o755)
    archive.file("command", script.encode())
    return archive.finish()


def _script(command: Sequence[str], environment: Mapping[str, str], mark: str) -> str:
    variables = {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/usr/sbin",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TEUTHIS_CACHE": "/tmp/cache",
        **environment,
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*lines, f"cd {shlex.quote(str(ROOT))}", f"exec {shlex.join(command)}", ""])
