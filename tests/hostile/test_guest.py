"""A hostile kernel in the guest: nothing but its own VM suffers. Longer: `make hostile`."""

import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from .campaign import Neighbour, attack

SECONDS = 2.0


def attack_until(
    refused: set[str], served: set[str], seeds: Iterable[int], guest: Path, initrd: Path
) -> None:
    """Attacks until flows were refused, and others served nevertheless: by one guest or by several.

    On a busy host one may not come far in its time.
    """
    for seed in seeds:
        verdict = attack(guest, initrd, seed, SECONDS, scribble=False)
        assert not verdict.defect, verdict
        refused -= {flow for flow, count in verdict.flows.items() if count.rejected}
        served -= {flow for flow, count in verdict.flows.items() if count.count}
        if not refused and not served:
            break
    assert (refused, served) == (set(), set())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hostile_kernel(seed: int, guest: Path, initrd: Path, neighbour: Neighbour) -> None:
    refused = {
        *("msr.unknown", "port.unknown", "hypercall.unknown", "hypercall.post-message"),
        *("vmbus.unknown", "vmbus.tl-connect-request", "vmbus.gpadl-header"),
    }
    # It was let in before it was refused.
    attack_until(refused, {"vmbus.offer-channel"}, range(seed, 1000, 100), guest, initrd)
    assert neighbour.failure is None


def test_a_hostile_disk_driver(guest: Path, initrd: Path, neighbour: Neighbour) -> None:
    refused = {"storvsp.execute-srb", "ring.gpa-direct", "scsi.read", "scsi.write", "scsi.unknown"}
    served = {"storvsp.execute-srb", "ring.gpa-direct", "scsi.read", "scsi.write"}
    attack_until(refused, served, range(100, 140), guest, initrd)
    assert neighbour.failure is None


def test_a_minute_of_memory_that_changes_while_it_is_read(
    guest: Path, initrd: Path, neighbour: Neighbour
) -> None:
    deadline = time.monotonic() + 60
    seeds = itertools.count(4)
    posted = 0
    while time.monotonic() < deadline or not posted:
        verdict = attack(guest, initrd, next(seeds), 5 * SECONDS, scribble=True)
        assert not verdict.defect, verdict
        posted += verdict.flows["hypercall.post-message"].count
        assert neighbour.failure is None
