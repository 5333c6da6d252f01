"""Many idle VMs at once: that all answer, and the memory and processor time they take.

.venv/bin/python -m benches.many [NUMBER]
"""

import os
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import teuthis

IDLE = 30
"""Seconds over which the processor time of VMs that idle is taken."""


def available() -> int:
    """Bytes of memory that the host has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def processor_time(vms: Sequence[teuthis.VM]) -> float:
    """Seconds that the processes of these VMs have run so far."""
    pids = [pid for vm in vms for pid in vm.machine.processes.values()]
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def main() -> None:
    """Prints what was measured."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as vms, ThreadPoolExecutor(os.cpu_count()) as pool:
        first = vms.enter_context(teuthis.VM(processor="soft"))
        before = available()
        start = time.monotonic()
        started = list(pool.map(lambda _: teuthis.VM(processor="soft"), range(number - 1)))
        for vm in started:
            vms.enter_context(vm)
        print(f"{number} VMs started in {time.monotonic() - start:.0f} s", flush=True)
        time.sleep(15)  # until they rest
        size = (before - available()) / (number - 1)
        print(f"{size / 2**20:.1f} MiB of the host's memory for each", flush=True)
        used = -processor_time(started)
        time.sleep(IDLE)
        used += processor_time(started)
        print(f"{1000 * used / IDLE / len(started):.2f} ms of processor time a second", flush=True)
        start = time.monotonic()
        answers = pool.map(
            lambda each: each[1].run(["echo", str(each[0])], timeout=300).stdout,
            enumerate([first, *started]),
        )
        assert list(answers) == [b"%d\n" % each for each in range(number)]
        print(f"all answered, within {time.monotonic() - start:.0f} s", flush=True)
        time.sleep(15)
        size = (before - available()) / (number - 1)
        print(f"{size / 2**20:.1f} MiB for each after that", flush=True)


if __name__ == "__main__":
    main()
