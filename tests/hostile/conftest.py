"""What the hostile guests' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .campaign import Neighbour, build


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile guest's program, in place of a kernel."""
    return build(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something in place of an initrd."""
    path = tmp_path_factory.mktemp("hostile") / "initrd"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Neighbour]:
    """A VM that works all the while."""
    with Neighbour() as other:
        yield other
        assert other.failure is None, other.failure
        assert other.commands > 0
