"""Doorbells against a page and eventfds that the other side may abuse."""

import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.flows import Counters
from teuthis.worker.doorbells import PAGE_BYTES, Doorbells

from ..recorded import recorded


class Shared:
    """The hypervisor's side."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("doorbells")
        os.ftruncate(descriptor, PAGE_BYTES)
        self.to_worker, self.to_hypervisor = os.eventfd(0), os.eventfd(0)
        self.counters = Counters()
        self.doorbells = Doorbells(descriptor, self.to_worker, self.to_hypervisor, self.counters)
        self.page = mmap.mmap(descriptor, PAGE_BYTES)
        os.close(descriptor)

    def ring(self, relid: int, value: int = 1) -> None:
        self.page[relid] = value
        os.eventfd_write(self.to_worker, 1)


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_rung_channels_are_taken_once(shared: Shared) -> None:
    for relid in (1, 77, 2047, 77):
        shared.ring(relid)
    assert shared.doorbells.take() == [1, 77, 2047]
    assert shared.doorbells.take() == []
    assert not any(shared.page[:])


def test_unknown_values_are_counted_and_cleared(shared: Shared) -> None:
    shared.ring(0)
    shared.ring(5, 2)
    shared.ring(6, 255)
    shared.ring(7)
    assert shared.doorbells.take() == [7]
    assert shared.counters.snapshot()["doorbell.to-worker"].rejected == 3
    assert not any(shared.page[:])


def test_guest_is_rung_with_one_wake_up(shared: Shared) -> None:
    shared.doorbells.flush()
    shared.doorbells.ring(5, 0)
    shared.doorbells.ring(2047, 1)
    shared.doorbells.flush()
    shared.doorbells.flush()
    assert os.eventfd_read(shared.to_hypervisor) == 1
    assert shared.page[2048] == 1
    assert (shared.page[2048 + 5], shared.page[2048 + 2047]) == (1, 2)


def test_eventfd_at_its_limit_does_not_block(shared: Shared) -> None:
    os.eventfd_write(shared.to_hypervisor, 2**64 - 2)
    shared.doorbells.ring(5, 0)
    shared.doorbells.flush()
    assert shared.page[2048] == 1


def test_a_hypervisor_that_has_been_killed_is_no_defect_of_ours(shared: Shared) -> None:
    # What it is woken by is a pipe, whose other end goes with it.
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, shared.to_hypervisor)
    os.close(write)
    shared.doorbells.ring(3, 0)
    shared.doorbells.flush()


RUNG = recorded("doorbell.to-worker").map(lambda sent: {int.from_bytes(sent, "little") % 2048: 1})


@given(st.dictionaries(st.integers(0, 2047), st.integers(0, 255)) | RUNG)
def test_any_page_is_taken(bells: dict[int, int]) -> None:
    shared = Shared()
    for relid, value in bells.items():
        shared.page[relid] = value
    assert shared.doorbells.take() == sorted(r for r, v in bells.items() if r and v == 1)
    assert not any(shared.page[:])
    os.close(shared.to_worker)
    os.close(shared.to_hypervisor)
