"""VMs that come and go on named networks, as far as their root side and the switches go.

As a program: one of several such processes at once.
"""

import random
import socket
import sys
import time
from collections.abc import Sequence

from teuthis.flows import counters_size
from teuthis.root.descriptors import Descriptors
from teuthis.root.network import named
from teuthis.root.network.wanted import wanted


class Member(Descriptors):
    """A VM's place on a network, until it closes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        asked = wanted(f"switch:{name}")
        assert asked is not None
        self.frames, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.enter_context(self.frames)
        page = self.memory_file("counters", counters_size())
        with far:
            _, self.switch = named.join(asked, name, self, far.fileno(), page, frozenset())

    @property
    def plugged(self) -> bool:
        """Whether the switch still has its end of the cable."""
        try:
            return bool(self.frames.recv(1, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True


def main(rounds: int, seed: str, names: Sequence[str]) -> None:
    """Joins networks and leaves them; fails if one ends or changes its switch meanwhile."""
    chance = random.Random(seed)
    for _ in range(rounds):
        with Member(chance.choice(names)) as first, Member(chance.choice(names)) as second:
            time.sleep(chance.choice([0, 0, 0.01, 0.1]))
            assert first.plugged
            assert second.plugged


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
