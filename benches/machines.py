"""The machines that are measured: what runs in them, and how they are started."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from teuthis.images import packages
from teuthis.images.cpio import Archive
from teuthis.root.loader.boot import command_line

# Ours, but for the serial port, through which QEMU's guest reports.
COMMAND_LINE = command_line().replace("nr_uarts=0", "nr_uarts=1") + " console=ttyS0"
INIT_MARK = "TEUTHIS-BENCH init"
END_MARK = "TEUTHIS-BENCH end"
MEMORY = "256M"
MICROVM = "microvm,acpi=off,rtc=on"
COMMAND_LINE_KVM = (
    command_line(processor="kvm").replace("nr_uarts=0", "nr_uarts=1") + " console=ttyS0"
)
# A module's parameters stand on the kernel's command line: where QEMU's devices are, for instance.
LOAD = (
    "load() { p=; for w in $(cat /proc/cmdline); do "
    'case $w in $1.*) p="$p ${w#$1.}";; esac; done; insmod /$1.ko $p; }'
)


@dataclass
class Machine:
    """What was measured in one machine: seconds to its start, bytes, nanoseconds per item."""

    boot: float
    memory: int
    rates: dict[str, float]


def work_program() -> Path:
    """The static program that does the work in every machine."""
    top = Path(__file__).resolve().parents[1]
    return top / "target/x86_64-unknown-linux-gnu/release/bench-work"


def parse(lines: str) -> dict[str, float]:
    """Nanoseconds per item of each workload, from lines `NAME ITEMS NANOSECONDS`."""
    rates = {}
    for line in lines.splitlines():
        words = line.split()
        if len(words) == 3 and words[1].isdecimal() and words[2].isdecimal():
            rates[words[0]] = int(words[2]) / int(words[1])
    return rates


def resident(*pids: int) -> int:
    """Proportional set size of processes, in bytes. Jailed ones show it to root only."""
    if os.geteuid() != 0:
        return 0
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def children() -> list[int]:
    """Processes that this one has started: a VM's hypervisor and worker."""
    own = str(os.getpid())
    parents = {
        int(stat.parent.name): stat.read_text().rpartition(")")[2].split()[1]
        for stat in Path("/proc").glob("[0-9]*/stat")
    }
    return [pid for pid, parent in parents.items() if parent == own]


def qemu_initrd(path: Path, commands: Iterable[str], drivers: Mapping[str, bytes]) -> Path:
    """An initrd whose init loads drivers (contents by name, in order), then runs commands."""
    busybox = packages.unpacked("busybox-static") / "bin/busybox"
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in ("sh", "mount", "sleep", "echo", "insmod", "cat", "ip"):
        archive.link(f"bin/{applet}", "busybox")
    archive.file("bin/bench-work", work_program().read_bytes(), 0o755)
    for name, content in drivers.items():
        archive.file(f"{name}.ko", content)
    script = [
        "#!/bin/sh",
        f"echo {INIT_MARK}",
        "mount -t proc proc /proc",
        "mount -t devtmpfs dev /dev",
        LOAD,
        *(f"load {name}" for name in drivers),
        *commands,
        f"echo {END_MARK}",
        "sleep 1000",
    ]
    archive.file("init", "".join(f"{line}\n" for line in script).encode(), 0o755)
    path.write_bytes(archive.finish())
    return path


def run_qemu(
    kernel: Path,
    initrd: Path,
    *devices: str,
    machine: str = MICROVM,
    options: str = COMMAND_LINE,
    accelerator: str = "tcg",
    cpu: str = "qemu64,+rdrand",
) -> Machine:
    """One run of QEMU, with devices of its command line."""
    start = time.monotonic()
    process = subprocess.Popen(
        [
            "qemu-system-x86_64", "-accel", accelerator, "-M", machine,
            "-cpu", cpu, "-m", MEMORY, "-smp", "1", "-nodefaults", "-display", "none",
            "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
            "-append", options, *devices,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    )  # fmt: skip
    boot, memory, output = 0.0, 0, ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            if INIT_MARK in line:
                boot = time.monotonic() - start
                memory = resident(process.pid)
            if END_MARK in line:
                break
    finally:
        process.kill()
        process.wait()
    if END_MARK not in output:
        sys.exit(f"QEMU did not get to the end; it said:\n{output[-2000:]}")
    return Machine(boot, memory, parse(output))
