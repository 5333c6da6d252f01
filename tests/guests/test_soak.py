"""A short soak; `make soak` is a long one."""

from tests.soak import soak


def test_a_hundred_vms_leave_nothing() -> None:
    assert soak(100)
