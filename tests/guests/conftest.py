"""Whole virtual machines. Tests that do not end theirs share one."""

from collections.abc import Iterator

import pytest

import teuthis


class _Shared:
    def __init__(self) -> None:
        self.vm: teuthis.VM | None = None

    def get(self) -> teuthis.VM:
        if self.vm is None or self.vm.closed:
            self.vm = teuthis.VM("192M")
        return self.vm


@pytest.fixture(scope="session")
def shared() -> Iterator[_Shared]:
    holder = _Shared()
    yield holder
    if holder.vm is not None:
        holder.vm.close()


@pytest.fixture
def vm(shared: _Shared) -> teuthis.VM:
    """A running VM, the same for all tests as long as it lives."""
    return shared.get()
