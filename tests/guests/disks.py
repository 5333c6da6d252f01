"""Disk images made on the host, and a small root file system to boot from."""

import hashlib
import os
import subprocess
from pathlib import Path

from tests.guests.processes import alive, await_true, kill
from teuthis import VM
from teuthis.images import packages, store
from teuthis.images.kernel import default_kernel
from teuthis.images.store import Pin, Record

MIB = 1 << 20


def sparse(path: Path, size: int = 64 * MIB) -> Path:
    path.write_bytes(b"")
    os.truncate(path, size)
    return path


def ext4(path: Path, size: int = 64 * MIB, content: Path | None = None) -> Path:
    """An ext4 file system in a sparse file."""
    source = [] if content is None else ["-d", str(content)]
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *source, sparse(path, size)], check=True)
    return path


def check(path: Path) -> None:
    """Demands that a file system needs no repair but the replay of its journal."""
    replayed = subprocess.run(["e2fsck", "-p", path], capture_output=True, check=False)
    assert replayed.returncode in (0, 1), replayed.stdout
    checked = subprocess.run(["e2fsck", "-fn", path], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def used(path: Path) -> int:
    """Bytes that a file takes on the host."""
    return path.stat().st_blocks * 512


def make_image(name: str, work: Path) -> None:
    """An image whose root file system has busybox and nothing else."""
    root = work / "root"
    for place in ("bin", "etc", "root"):
        (root / place).mkdir(parents=True)
    busybox = (packages.unpacked("busybox-static") / "bin/busybox").read_bytes()
    (root / "bin/busybox").write_bytes(busybox)
    (root / "bin/busybox").chmod(0o755)
    for applet in ("sh", "cat", "ls", "sync", "mount", "hostname", "df", "dd", "touch", "ifconfig"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/hostname").write_text("on-a-disk\n")
    home = store.directory() / name
    home.mkdir(parents=True)
    kernel = default_kernel()
    ext4(home / store.DISK, 32 * MIB, root)
    (home / store.KERNEL).symlink_to(kernel.file)
    if kernel.modules is not None:
        (home / store.MODULES).symlink_to(kernel.modules)
    pins = {part: Pin(0, "") for part in (store.DISK, store.KERNEL)}
    store.write_record(
        home, Record(source="a test", epoch=0, root="sda", release="", files=pins, modules="linked")
    )


def kill_worker(vm: VM) -> None:
    """Kills a VM's worker, and awaits the VM's end."""
    pids = vm.machine.processes
    kill(pids["worker"])
    await_true(lambda: not alive(pids.values()))
