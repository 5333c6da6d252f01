"""A hostile kernel in the guest: nothing but its own VM suffers. Longer: `make hostile`."""

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


@pytest.mark.parametrize("seed", [4, 5])
def test_memory_that_changes_while_it_is_read(
    seed: int, guest: Path, initrd: Path, neighbour: Neighbour
) -> None:
    verdict = attack(guest, initrd, seed, SECONDS, scribble=True)
    assert not verdict.defect
    assert verdict.flows["hypercall.post-message"].count > 0
    assert neighbour.failure is None
