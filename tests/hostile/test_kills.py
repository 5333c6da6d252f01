"""`kill -9` of any process at any moment; a hundred of them: `make hostile`."""

import random

import pytest

from .campaign import Neighbour
from .kills import kill_something


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_at_any_moment(seed: int, neighbour: Neighbour) -> None:
    kill_something(random.Random(seed))
    assert neighbour.failure is None
