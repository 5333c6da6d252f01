"""Speed, side by side in one run: native, Teuthis, QEMU TCG. `make bench` runs it.

The same kernel, the same static program (`benches/work`) and the same command line in both
machines. Single values vary by a factor of two on a shared host: read the ratios, and the medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import teuthis
from teuthis import images
from teuthis.images import packages
from teuthis.images.cpio import Archive
from teuthis.root.loader.boot import command_line
from teuthis.root.loader.kernel import open_kernel

WORKLOADS = ("integer", "hash", "copy", "syscall", "spawn")
UNITS = {
    "integer": "instructions",
    "hash": "bytes",
    "copy": "bytes",
    "syscall": "calls",
    "spawn": "processes",
}
# Ours, but for the serial port, through which QEMU's guest reports.
COMMAND_LINE = command_line().replace("nr_uarts=0", "nr_uarts=1") + " console=ttyS0"
INIT_MARK = "TEUTHIS-BENCH init"
MEMORY = "256M"

QEMU_INIT = """#!/bin/sh
echo {mark}
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for work in {works}; do /bin/bench-work $work; done
echo TEUTHIS-BENCH end
sleep 1000
"""


@dataclass
class Machine:
    """What was measured in one machine: seconds to its start, bytes, nanoseconds per item."""

    boot: float
    memory: int
    rates: dict[str, float]


def work_program() -> Path:
    top = Path(__file__).resolve().parents[1]
    return top / "target/x86_64-unknown-linux-gnu/release/bench-work"


def parse(lines: str) -> dict[str, float]:
    """Nanoseconds per item of each workload, from lines `NAME ITEMS NANOSECONDS`."""
    rates = {}
    for line in lines.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in WORKLOADS:
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


def native() -> dict[str, float]:
    output = ""
    for work in WORKLOADS:
        output += subprocess.run(
            [work_program(), work], check=True, capture_output=True, text=True
        ).stdout
    return parse(output)


def run_teuthis() -> Machine:
    start = time.monotonic()
    with teuthis.VM(memory=MEMORY) as vm:
        boot = time.monotonic() - start
        memory = resident(*children())
        vm.write_file("/bin/bench-work", work_program().read_bytes(), mode=0o755)
        output = b""
        for work in WORKLOADS:
            output += vm.run(["/bin/bench-work", work], timeout=300, check=True).stdout
    return Machine(boot, memory, parse(output.decode()))


def qemu_initrd(directory: Path) -> Path:
    busybox = packages.unpacked("busybox-static") / "bin/busybox"
    archive = Archive()
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in ("sh", "mount", "sleep", "echo"):
        archive.link(f"bin/{applet}", "busybox")
    archive.file("bin/bench-work", work_program().read_bytes(), 0o755)
    script = QEMU_INIT.format(mark=INIT_MARK, works=" ".join(WORKLOADS))
    archive.file("init", script.encode(), 0o755)
    path = directory / "initrd"
    path.write_bytes(archive.finish())
    return path


def run_qemu(kernel: Path, initrd: Path) -> Machine:
    start = time.monotonic()
    process = subprocess.Popen(
        [
            "qemu-system-x86_64", "-accel", "tcg", "-M", "microvm,acpi=off,rtc=on",
            "-cpu", "qemu64,+rdrand", "-m", MEMORY, "-smp", "1", "-nodefaults", "-display", "none",
            "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
            "-append", COMMAND_LINE,
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
            if "TEUTHIS-BENCH end" in line:
                break
    finally:
        process.kill()
        process.wait()
    if not boot:
        sys.exit(f"QEMU did not reach init; it said:\n{output[-2000:]}")
    return Machine(boot, memory, parse(output))


def median(machines: list[Machine]) -> Machine:
    return Machine(
        statistics.median(machine.boot for machine in machines),
        int(statistics.median(machine.memory for machine in machines)),
        {
            work: statistics.median(machine.rates[work] for machine in machines)
            for work in WORKLOADS
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each machine (3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if not shutil.which("qemu-system-x86_64"):
        sys.exit("qemu-system-x86_64 is missing: `make bench` installs it by apt")

    files = images.boot_files()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kernel = directory / "vmlinux"
        kernel.write_bytes(open_kernel(files.kernel).data)
        initrd = qemu_initrd(directory)
        host = native()
        ours, theirs = [], []
        for turn in range(options.rounds):
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
            ours.append(run_teuthis())
            theirs.append(run_qemu(kernel, initrd))
    teuthis_, qemu = median(ours), median(theirs)

    print(f"{'':12}{'native':>12}{'teuthis':>12}{'QEMU TCG':>12}{'ours/QEMU':>12}")
    boot = "start, s"
    print(
        f"{boot:12}{'':12}{teuthis_.boot:12.2f}{qemu.boot:12.2f}{teuthis_.boot / qemu.boot:12.2f}"
    )
    if qemu.memory:
        mib = [teuthis_.memory / 2**20, qemu.memory / 2**20]
        print(f"{'PSS, MiB':12}{'':12}{mib[0]:12.0f}{mib[1]:12.0f}{mib[0] / mib[1]:12.2f}")
    for work in WORKLOADS:
        rates = host[work], teuthis_.rates[work], qemu.rates[work]
        print(
            f"{work:12}"
            + "".join(f"{1e3 / rate:12.4g}" for rate in rates)
            + f"{rates[1] / rates[2]:12.2f}   M {UNITS[work]}/s; ratio of times"
        )
    if options.json:
        figures = {"native": host, "teuthis": vars(teuthis_), "qemu": vars(qemu)}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
