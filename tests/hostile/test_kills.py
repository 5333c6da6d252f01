"""`kill -9` of any process at a hundred random moments, four VMs at a time."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from .campaign import Neighbour
from .kills import kill_something

KILLS = 100


def test_a_hundred_kills_at_any_moment(neighbour: Neighbour) -> None:
    with ThreadPoolExecutor(4) as pool:
        kills = list(pool.map(kill_something, map(random.Random, range(KILLS))))
    victims = Counter(kill.victim for kill in kills)
    assert {"owner", "worker", "hypervisor"} <= set(victims), victims
    assert neighbour.failure is None
