"""A short soak; that `make soak`, a long one, would notice what is lost with each VM."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.soak import PARTS, Used, grows

VMS = 2250
"""In a part of 10,000: what other tests of this process have left, and free by and by, is less."""


def test_a_hundred_vms_leave_nothing() -> None:
    """By themselves: this process writes down what each VM counted."""
    subprocess.run(
        [sys.executable, "-m", "tests.soak", "100"], cwd=Path(__file__).parents[2], check=True
    )


def leaks(work: Callable[[int], object]) -> bool:
    """Whether a soak would say so of 10,000 VMs that do this."""
    used = [Used.now(os.getpid())]
    for part in range(PARTS):
        for number in range(VMS):
            work(part * VMS + number)
        used.append(Used.now(os.getpid()))
    return grows([now - then for then, now in pairwise(used)], VMS)


@pytest.mark.parametrize("size", [167, 600, 3000])
def test_a_small_leak_is_found(size: int) -> None:
    kept = []
    assert leaks(lambda _: kept.append(bytes(size)))


def test_what_grows_once_is_no_leak() -> None:
    kept = []

    def work(number: int) -> None:
        if number == 2 * VMS:
            kept.append([bytes(100) for _ in range(10_000)])

    assert not leaks(work)
