"""Speed, side by side in one run: native, Teuthis, QEMU TCG. `make bench` runs it.

The same kernel, the same static program (`benches/work`) and the same command line in both
machines. Single values vary by a factor of two on a shared host: read the ratios, and the medians.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machines import (
    MEMORY,
    Machine,
    children,
    parse,
    qemu_initrd,
    resident,
    run_qemu,
    work_program,
)

import teuthis
from teuthis.images.boot import boot_files
from teuthis.root.loader.kernel import open_kernel

UNITS = {
    "integer": "instructions",
    "hash": "bytes",
    "copy": "bytes",
    "syscall": "calls",
    "spawn": "processes",
}
WORKLOADS = tuple(UNITS)


def native() -> dict[str, float]:
    output = ""
    for work in WORKLOADS:
        output += subprocess.run(
            [work_program(), work], check=True, capture_output=True, text=True
        ).stdout
    return parse(output)


def run_teuthis() -> Machine:
    start = time.monotonic()
    with teuthis.VM(memory=MEMORY, cold=True) as vm:
        boot = time.monotonic() - start
        memory = resident(*children())
        vm.write_file("/bin/bench-work", work_program().read_bytes(), mode=0o755)
        output = b""
        for work in WORKLOADS:
            output += vm.run(["/bin/bench-work", work], timeout=300, check=True).stdout
    return Machine(boot, memory, parse(output.decode()))


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

    files = boot_files()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kernel = directory / "vmlinux"
        kernel.write_bytes(open_kernel(files.kernel).data)
        works = [f"/bin/bench-work {work}" for work in WORKLOADS]
        initrd = qemu_initrd(directory / "initrd", works, {})
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
