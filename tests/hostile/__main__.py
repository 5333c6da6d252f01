"""`make hostile MINUTES=n`: hostile guests, one after the other, beside a working neighbour.

Every other one has a second writer. Between them VMs lose processes to `kill -9`. Exit
status 1 at the first defect.
"""

import random
import secrets
import sys
import tempfile
import time
from pathlib import Path

from .campaign import Neighbour, attack, build
from .kills import kill_something

_SECONDS = 20.0
_KILLS = 5


def main(minutes: float) -> int:
    """Attacks for so many minutes."""
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as directory, Neighbour() as neighbour:
        guest = build(Path(directory))
        initrd = Path(directory) / "initrd"
        initrd.write_bytes(bytes(4096))
        chance = random.Random()
        scribble = False
        while time.monotonic() < deadline:
            seed = secrets.randbits(32)
            verdict = attack(guest, initrd, seed, _SECONDS, scribble=scribble)
            refused = sum(count.rejected for count in verdict.flows.values())
            print(
                f"seed {seed:10}{' +writer' if scribble else ''}: {refused} refused, "
                f"{verdict.commands} commands, {verdict.private >> 20} MiB; "
                f"{verdict.ending.splitlines()[0]}",
                flush=True,
            )
            if verdict.defect or neighbour.failure:
                print("DEFECT:", verdict.defect or f"the neighbour noticed: {neighbour.failure}")
                return 1
            scribble = not scribble
            for _ in range(_KILLS):
                hit = kill_something(chance)
                print(f"killed: {hit.victim} after {hit.moment:.1f} s", flush=True)
    return 0


sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5))
