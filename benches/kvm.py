"""The kvm processor: what each way out costs, and speed beside QEMU/KVM. `make bench-kvm` runs it.

A host without a usable KVM measures in the nested machine of `tests/nested`: a genuine `kvm_amd`
on a processor that QEMU emulates. All that is measured there is some twenty times slower than on
hardware, exits most of all: compare the two columns, not the values with another machine's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

from bench import UNITS, WORKLOADS, median, run_teuthis  # noqa: E402
from machines import COMMAND_LINE_KVM, parse, qemu_initrd, run_qemu, work_program  # noqa: E402
from tests.nested import machine  # noqa: E402

from teuthis.images.boot import boot_files  # noqa: E402
from teuthis.root import processor  # noqa: E402
from teuthis.root.loader.kernel import open_kernel  # noqa: E402

WAYS = {
    "cpuid": "CPUID (on KVM: answered by the kernel)",
    "msr-own": "RDMSR of EFER (the processor's own)",
    "msr-read": "RDMSR of the partition's",
    "msr-write": "WRMSR of the partition's",
    "port-read": "IN, serial port",
    "port-write": "OUT, serial port",
    "hypercall": "hypercall that there is not",
    "signal": "HvSignalEvent, the worker's doorbell",
    "hole": "load from a hole in memory",
    "halt-local-timer": "local APIC timer, HLT, interrupt, its end",
    "halt-synthetic-timer": "synthetic timer, HLT, interrupt, its end",
}


def costs(conformance: Path, kind: str) -> dict[str, float]:
    """Nanoseconds of each way out, on this machine's processor or in the nested machine."""
    command = [str(conformance), "what_each_way_out_costs", "--ignored", "--nocapture"]
    variables = {"TEUTHIS_TEST_PROCESSOR": kind}
    if kind == "kvm" and not processor.kvm().usable:
        result = machine.run(command, timeout=900, environment=variables)
        output = result.output
    else:
        done = subprocess.run(
            command, env=variables, check=True, capture_output=True, text=True, cwd=ROOT
        )
        output = done.stdout
    lines = [line.split("cost ")[1].split() for line in output.splitlines() if "cost " in line]
    found = {name: float(cost) for name, cost in lines}
    nothing = found.pop("nothing")
    return {name: max(cost - nothing, 0) for name, cost in found.items()}


def built() -> Path:
    """The conformance tests, as they are released."""
    command = ["cargo", "test", "--release", "--locked", "--no-run", "--message-format=json"]
    command += ["-p", "teuthis-hypervisor", "--test", "conformance"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    for message in map(json.loads, output.splitlines()):
        if message.get("executable") and message["target"]["name"] == "conformance":
            return Path(message["executable"])
    raise LookupError("cargo built no conformance tests")


def beside(rounds: int) -> None:
    """Teuthis and QEMU on the KVM of this machine, in turn; prints the medians as JSON."""
    files = boot_files()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kernel = directory / "vmlinux"
        kernel.write_bytes(open_kernel(files.kernel).data)
        works = [f"/bin/bench-work {work}" for work in WORKLOADS]
        initrd = qemu_initrd(directory / "initrd", works, {})
        native = parse(
            "".join(
                subprocess.run([work_program(), work], check=True, stdout=-1, text=True).stdout
                for work in WORKLOADS
            )
        )
        run_teuthis()  # what is made once is made now
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(run_teuthis())
            theirs.append(run_qemu(kernel, initrd, options=COMMAND_LINE_KVM, accelerator="kvm"))
    figures = {"teuthis": vars(median(ours)), "qemu": vars(median(theirs)), "native": native}
    print("figures", json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each machine (2)")
    parser.add_argument("--beside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.beside:
        beside(options.rounds)
        return
    nested = not processor.kvm().usable
    print("KVM:", "a genuine one in an emulated machine" if nested else "this host's")

    conformance = built()
    soft, kvm = costs(conformance, "soft"), costs(conformance, "kvm")
    print(f"\n{'ns':44}{'soft':>10}{'kvm':>10}")
    for name, what in WAYS.items():
        print(f"{what:44}{soft[name]:10.0f}{kvm[name]:10.0f}")

    command = [sys.executable, __file__, "--beside", "--rounds", str(options.rounds)]
    if nested:
        output = machine.run(command, timeout=1800).output
    else:
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    line = next((line for line in output.splitlines() if line.startswith("figures ")), None)
    if line is None:
        sys.exit(f"the comparison did not come to its end:\n{output}")
    figures = json.loads(line.removeprefix("figures "))
    ours, theirs, native = figures["teuthis"], figures["qemu"], figures["native"]
    print(f"\n{'':12}{'native':>12}{'teuthis':>12}{'QEMU/KVM':>12}{'ours/QEMU':>12}")
    print(f"{'start, s':24}" + _pair(ours["boot"], theirs["boot"]))
    mib = ours["memory"] / 2**20, theirs["memory"] / 2**20
    print(f"{'PSS, MiB':24}" + _pair(*mib))
    for work in WORKLOADS:
        rates = [1e3 / each[work] for each in (native, ours["rates"], theirs["rates"])]
        row = f"{work:12}{rates[0]:12.4g}" + _pair(rates[1], rates[2], rates[2] / rates[1])
        print(f"{row}   M {UNITS[work]}/s; ratio of times")


def _pair(ours: float, theirs: float, ratio: float | None = None) -> str:
    return f"{ours:12.4g}{theirs:12.4g}{ours / theirs if ratio is None else ratio:12.2f}"


if __name__ == "__main__":
    main()
