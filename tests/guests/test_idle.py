"""A guest that has nothing to do sleeps: a thousand of them share a host."""

from collections.abc import Collection, Sequence

import pytest

import teuthis
from teuthis.root import launch
from teuthis.root.spawn import Child

SECONDS = 300
WAKE_UPS = 100
"""Three times what was seen, and a sixteenth of what an untamed kernel does."""
TIME = "cut -d ' ' -f 1 /proc/uptime"


class _OnItsOwnClock:
    """Starts the hypervisor with a clock on which sleep takes no time."""

    @staticmethod
    def start(command: Sequence[str], descriptors: Collection[int]) -> Child:
        return Child.start([*command, "--clock", "deterministic:1000"], descriptors)


def test_an_idle_guest_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers of its own hardly wake it: counted, in the guest's time."""
    monkeypatch.setattr(launch, "Child", _OnItsOwnClock)
    with teuthis.VM("128M", processor="soft", cold=True) as vm:
        vm.run(["sleep", "100"], check=True)  # what a boot left to be done is done
        before = vm.flows()["intercept.halt"].count
        shown = vm.run(["sh", "-c", f"{TIME}; sleep {SECONDS}; {TIME}"], check=True).stdout
        wake_ups = vm.flows()["intercept.halt"].count - before
    start, end = map(float, shown.split())
    assert end - start >= SECONDS
    assert 0 < wake_ups < WAKE_UPS
