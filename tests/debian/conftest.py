"""A Debian with what the tests of this folder run in it."""

import pytest

from teuthis.images import make

INCLUDE = ("libpython3.11-testsuite", "stress-ng", "fio", "iperf3")


@pytest.fixture(scope="session")
def image() -> str:
    """The name of the image, built when it is not there."""
    return make.build(
        "debian", name="debian-at-work", include=INCLUDE, size=3 << 30, say=print
    ).name
