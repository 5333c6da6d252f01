"""A quiet VM beside four that take whatever they can get.

Each VM runs on one thread per process, and the host shares its processors between those fairly: on
two of them, a quiet VM's processes compete with six to eight busy ones, so a command that computes
all the time takes about four times as long as alone. Ten times is what nobody may exceed.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import teuthis
from teuthis import VM

HOSTILE = [
    "while :; do :; done",
    "f() { f | f & }; f; while :; do :; done",
    "while :; do tail /dev/zero; done",
    "yes > /dev/kmsg & yes",
]
SLOWDOWN = 10.0
FLOOR = 0.2
"""Seconds per command below which nobody complains, however quick it is alone."""


def response(vm: VM, commands: int = 15) -> float:
    """The median time of a small command, in seconds."""
    times = []
    for _ in range(commands):
        began = time.monotonic()
        assert vm.run(["sh", "-c", "echo $((6 * 7))"], timeout=60).stdout == b"42\n"
        times.append(time.monotonic() - began)
    return statistics.median(times)


def test_four_hostile_neighbours_leave_a_quiet_vm_its_share() -> None:
    with VM("128M") as quiet:
        alone = response(quiet)
        with ThreadPoolExecutor(len(HOSTILE)) as pool:
            neighbours = list(pool.map(VM, ["128M"] * len(HOSTILE)))
        try:
            running = [
                vm.popen(["sh", "-c", script], stderr=teuthis.STDOUT)
                for vm, script in zip(neighbours, HOSTILE, strict=True)
            ]
            time.sleep(1)
            beside = response(quiet)
            for process in running:
                process.close()
        finally:
            for vm in neighbours:
                vm.close()
        assert beside < max(SLOWDOWN * alone, FLOOR), (alone, beside)
        # They are gone, and so is what they took.
        assert response(quiet) < max(SLOWDOWN * alone, FLOOR)
    print(f"median response: alone {alone * 1000:.0f} ms, beside four {beside * 1000:.0f} ms")
