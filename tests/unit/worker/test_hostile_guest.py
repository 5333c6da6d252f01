"""A guest that does anything at any time: messages, rings, doorbells, frames, while clients ask.

Whatever it does, the worker goes on or ends the VM with a reason; each request is answered once.
"""

import random
from contextlib import ExitStack

from teuthis.worker.ending import EndVM

from .hostile import Choices, Hostile

MOST_STEPS = 400
LIVES = 80
BYTES = 3000


def run(data: bytes) -> None:
    """One guest's life, as the bytes say: the fuzz target."""
    choices = Choices(data)
    with ExitStack() as held:
        guest = Hostile(choices, held)
        guest.begin()
        try:
            for _ in range(MOST_STEPS):
                if choices.made:
                    break
                guest.step()
        except EndVM:
            assert not guest.polite
            return
        guest.count()
        guest.end()


def test_any_guest_is_survived() -> None:
    for seed in range(LIVES):
        run(random.Random(seed).randbytes(BYTES))
