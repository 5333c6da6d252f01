"""The root side of the walls: which of them this host gives, and which a VM was started without."""

import sys
from collections.abc import Iterable

from teuthis.errors import ConfigurationError, MissingWall
from teuthis.jail import identity


def check_names(names: Iterable[str]) -> frozenset[str]:
    """The names of walls in `names`. Raises `ConfigurationError` for any other."""
    wanted = frozenset(names)
    if not wanted:
        return wanted
    from teuthis.jail.walls import NAMES  # not for every VM: the root side builds no walls

    if unknown := wanted - set(NAMES):
        raise ConfigurationError(
            f"{min(unknown)!r} is not the name of a wall: the walls are {', '.join(NAMES)}"
        )
    return wanted


def missing() -> dict[str, str]:
    """Which walls this host does not give to the caller's processes, and why. Runs a process."""
    import json
    import subprocess

    with identity.lease() as own:
        probe = subprocess.run(
            [sys.executable, "-I", "-m", "teuthis.jail.probe", str(own.worker or "")],
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, str] = json.loads(probe.stdout)
    return found


def missing_wall(status: int) -> MissingWall | None:
    """The error that such an exit status means, if it is one."""
    if status <= 0:
        return None
    from teuthis.jail.walls import FIRST_STATUS, NAMES

    if FIRST_STATUS <= status < FIRST_STATUS + len(NAMES):
        name = NAMES[status - FIRST_STATUS]
        return MissingWall(name, missing().get(name, "the kernel refused it"))
    return None
