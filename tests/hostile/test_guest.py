"""A hostile kernel in the guest: nothing but its own VM suffers. Longer: `make hostile`."""

import itertools
import time
from pathlib import Path

import pytest

from .campaign import Neighbour, attack

SECONDS = 2.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hostile_kernel(seed: int, guest: Path, initrd: Path, neighbour: Neighbour) -> None:
    verdict = attack(guest, initrd, seed, SECONDS, scribble=False)
    assert not verdict.defect
    flows = verdict.flows
    attacked = [
        *("msr.unknown", "port.unknown", "hypercall.unknown", "hypercall.post-message"),
        *("vmbus.unknown", "vmbus.tl-connect-request", "vmbus.gpadl-header"),
    ]
    assert [flow for flow in attacked if not flows[flow].rejected] == []
    # It was let in before it was refused.
    assert flows["vmbus.offer-channel"].count > 0
    assert neighbour.failure is None


def test_a_hostile_disk_driver(guest: Path, initrd: Path, neighbour: Neighbour) -> None:
    """Attacks until every kind was refused, and disks were read and written nevertheless."""
    refused = {"storvsp.execute-srb", "ring.gpa-direct", "scsi.read", "scsi.write", "scsi.unknown"}
    served = {"storvsp.execute-srb", "ring.gpa-direct", "scsi.read", "scsi.write"}
    for seed in range(100, 130):
        verdict = attack(guest, initrd, seed, SECONDS, scribble=False)
        assert not verdict.defect, verdict
        refused -= {flow for flow, count in verdict.flows.items() if count.rejected}
        served -= {flow for flow, count in verdict.flows.items() if count.count}
        if not refused and not served:
            break
    assert (refused, served) == (set(), set())
    assert neighbour.failure is None


def test_a_minute_of_memory_that_changes_while_it_is_read(
    guest: Path, initrd: Path, neighbour: Neighbour
) -> None:
    deadline = time.monotonic() + 60
    seeds = itertools.count(4)
    posted = 0
    while time.monotonic() < deadline:
        verdict = attack(guest, initrd, next(seeds), 5 * SECONDS, scribble=True)
        assert not verdict.defect, verdict
        posted += verdict.flows["hypercall.post-message"].count
        assert neighbour.failure is None
    assert posted > 0
