"""What a start costs: cold boot, template, fork; and the memory of copies.

.venv/bin/python -m benches.start [ROUNDS]
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import teuthis

_RUN = [sys.executable, "-m", "teuthis", "run"]


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Median time of `work`."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def first_output(make: Callable[[], teuthis.VM]) -> None:
    """A VM, and one program in it."""
    with make() as vm:
        vm.run(["true"], check=True)


def shell(*options: str) -> None:
    """`teuthis run -- true`, from the shell's view."""
    subprocess.run([*_RUN, *options, "--", "true"], check=True)


def kib(vm: teuthis.VM, pid: int, field: str) -> int:
    """A sum over all mappings of a process."""
    with open(f"/proc/{pid}/smaps_rollup") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def main() -> None:
    """Prints a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    teuthis.VM.ready().close()
    print(f"medians of {rounds} rounds; load average {os.getloadavg()[0]:.1f}")
    print(f"teuthis run -- true           {seconds(shell, rounds):.3f} s")
    print(f"teuthis run --ready -- true   {seconds(lambda: shell('--ready'), rounds):.3f} s")
    boot = lambda: teuthis.VM(processor="soft")  # noqa: E731
    print(f"VM(), first output            {seconds(lambda: first_output(boot), rounds):.3f} s")
    ready = seconds(lambda: first_output(teuthis.VM.ready), rounds)
    print(f"VM.ready(), first output      {ready:.3f} s")
    with teuthis.VM.ready() as vm:
        print(
            f"pause and resume              {seconds(lambda: (vm.pause(), vm.resume()), 20):.4f} s"
        )
        start = time.perf_counter()
        copies = vm.fork(10)
        print(f"fork(10), a copy              {(time.perf_counter() - start) / 10:.3f} s")
        time.sleep(1)
        for what, work in (("idle", None), ("after a command", ["true"])):
            if work:
                for each in copies:
                    each.run(work, check=True)
            own = [os.fstat(each.machine._processes.memory.own).st_blocks // 2 for each in copies]
            parts = {"own RAM": statistics.median(own)}
            for name in ("worker", "hypervisor"):
                private = [
                    kib(each, each.machine.processes[name], "Private_Dirty:") for each in copies
                ]
                parts[f"{name}, private"] = statistics.median(private)
            line = ", ".join(f"{name} {size / 1024:.1f}" for name, size in parts.items())
            print(f"memory of a copy, {what}: {line} MiB")
        for each in copies:
            each.close()


if __name__ == "__main__":
    main()
