"""What a start costs, beside QEMU TCG in the same run: boot, template, copies; memory of idle VMs.

.venv/bin/python -m benches.start [ROUNDS]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benches.machines import resident
from benches.restore import Template

import teuthis
from teuthis.images.boot import boot_files
from teuthis.root.loader.kernel import open_kernel

_RUN = [str(Path(sys.executable).with_name("teuthis")), "run"]
# Where Python may not keep compiled code, a start is mostly compiling.
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
_COPIES = 100
_SUSTAINED_SECONDS = 10.0
_PYTHON = ["--", "python3", "-c", "print(1)"]


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median time of `work`."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _start() -> teuthis.VM:
    return teuthis.VM(processor="soft")


def _boot() -> teuthis.VM:
    return teuthis.VM(processor="soft", cold=True)


def first_output(make: Callable[[], teuthis.VM]) -> None:
    """A VM, and one program in it."""
    with make() as vm:
        vm.run(["true"], check=True)


def shell(*options: str) -> None:
    """`teuthis run`, from the shell's view."""
    subprocess.run([*_RUN, *options], check=True, env=_ENVIRONMENT, stdout=subprocess.DEVNULL)


def copies() -> tuple[float, float]:
    """Seconds until copies of a VM are there, and until each has run a program."""
    with teuthis.VM(processor="soft") as vm:
        start = time.perf_counter()
        found = vm.fork(_COPIES)
        there = time.perf_counter() - start
        try:
            for each in found:
                each.run(["true"], check=True)
            return there, time.perf_counter() - start
        finally:
            for each in found:
                each.close()


def sustained() -> float:
    """VMs a second: started, used, closed; two at once for each processor, so that none idles."""
    end = time.perf_counter() + _SUSTAINED_SECONDS

    def work() -> int:
        count = 0
        while time.perf_counter() < end:
            first_output(_start)
            count += 1
        return count

    at_once = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(lambda _: work(), range(at_once))) / _SUSTAINED_SECONDS


def taken() -> float:
    """Median seconds from `Pool.take` to a program's end."""
    with teuthis.Pool(4) as pool:
        times = []
        for _ in range(8):
            pool.wait()
            start = time.perf_counter()
            with pool.take() as vm:
                vm.run(["true"], check=True)
                times.append(time.perf_counter() - start)
    return statistics.median(times)


def idle(count: int, *, used: bool) -> dict[str, float]:
    """Proportional memory of an idle VM, in MiB: guest RAM that it touched, and all else."""
    vms = [teuthis.VM(processor="soft") for _ in range(count)]
    try:
        if used:
            for vm in vms:
                vm.run(["true"], check=True)
        time.sleep(12)  # until they rest
        pids = [pid for vm in vms for pid in vm.machine.processes.values()]
        guest = sum(_of_guests(pid) for pid in pids)
        return {
            "guest RAM": guest / count / 2**20,
            "all else": (resident(*pids) - guest) / count / 2**20,
        }
    finally:
        for vm in vms:
            vm.close()


def _of_guests(pid: int) -> int:
    """Proportional size of the mappings of guest RAM and of the template."""
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            counts = "memfd:teuthis-ram" in line or line.endswith("/memory")
        elif counts and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    """Prints a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    teuthis.VM(processor="soft").close()

    def say(what: str, figure: float, unit: str = "s") -> None:
        print(f"{what:62}{figure:10.3f} {unit}", flush=True)

    print(f"medians of {rounds} rounds; load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        kernel = Path(name, "vmlinux")
        kernel.write_bytes(open_kernel(boot_files().kernel).data)
        qemu = Template(Path(name), kernel)
        say("QEMU TCG: boot to a program's end", statistics.median(qemu.boot() for _ in range(3)))
        restored = [qemu.restore() for _ in range(rounds)]
        say("QEMU TCG: restored (-incoming) to a program's end", statistics.median(restored))
    say("teuthis run --cold -- true", seconds(lambda: shell("--cold", "--", "true"), rounds))
    say("teuthis run -- true", seconds(lambda: shell("--", "true"), rounds))
    for options in (["--image", "debian"], ["--image", "debian", "--warm", "python"]):
        shell(*options, *_PYTHON)  # its template is there from now on
        name = " ".join(["... run", *options, "-- python3 -c 'print(1)'"])
        say(name, seconds(lambda options=options: shell(*options, *_PYTHON), rounds))
    say("VM(cold=True) and a program", seconds(lambda: first_output(_boot), rounds))
    say("VM() and a program", seconds(lambda: first_output(_start), 4 * rounds))
    say("Pool.take() and a program", taken())
    with teuthis.VM(processor="soft") as vm:
        vm.run(["true"])
        say("a further program", seconds(lambda: vm.run(["true"], check=True), 4 * rounds))
        say("pause and resume", 1000 * seconds(lambda: (vm.pause(), vm.resume()), 20), "ms")
    there, answered = copies()
    say(f"fork({_COPIES})", there)
    say(f"fork({_COPIES}), until each has run a program", answered)
    say("VMs a second, each with a program, sustained", sustained(), "VMs/s")
    for used, what in ((False, "an idle VM"), (True, "an idle VM that ran a program")):
        for part, size in idle(10, used=used).items():
            say(f"{what}: PSS, {part}", size, "MiB")


if __name__ == "__main__":
    main()
