"""The walls around a process, one by one, and the one call that raises them all.

`enter` is the privilege drop: a visible line in a process's main, before any byte that a guest has
made is read. `hypervisor/src/jail.rs` raises the same walls, by the same names, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from teuthis.errors import MissingWall
from teuthis.jail import capabilities, identity, landlock, limits, namespaces, seccomp
from teuthis.jail.bpf import AllowList


class Jail(NamedTuple):
    """What one process keeps.

    Attributes:
        system_calls: what it may still ask of the kernel.
        limits: highest values, by `resource.RLIMIT_…`.
        descriptors: what stays open, besides 0, 1 and 2.
        uid: its user id, when root starts it.
        allow_missing: names of walls it may go without.
    """

    system_calls: AllowList
    limits: Mapping[int, int]
    descriptors: Iterable[int]
    uid: int | None = None
    allow_missing: frozenset[str] = frozenset()


class Wall(NamedTuple):
    """One wall: what it is called, what it keeps away, how it is raised."""

    name: str
    keeps_away: str
    build: Callable[[Jail], None]


_BEYOND_ALL: Final = 1 << 30


def _close_others(jail: Jail) -> None:
    """Closes what is not on the list, whoever left it open; leaves its starter's directory."""
    os.chdir("/")
    at = 3
    for kept in sorted({*jail.descriptors, _BEYOND_ALL}):
        if kept > at:  # an empty range that ends at 0 would be taken for all there are
            os.closerange(at, kept)
        at = max(at, kept + 1)


WALLS: Final = (
    Wall("descriptors", "files and sockets that somebody left open", _close_others),
    Wall("identity", "processes and files of other users", lambda jail: identity.assume(jail.uid)),
    Wall("user-namespace", "privileges over anything of the host", lambda _: namespaces.user()),
    Wall("network-namespace", "every network, abstract sockets", lambda _: namespaces.network()),
    Wall("ipc-namespace", "shared memory and queues", lambda _: namespaces.ipc()),
    Wall("uts-namespace", "the host's name", lambda _: namespaces.host_name()),
    Wall("cgroup-namespace", "names of other control groups", lambda _: namespaces.cgroup()),
    Wall("empty-root", "every path of the host", lambda _: namespaces.empty_root()),
    Wall("keyring", "keys of the user's session", lambda _: capabilities.own_keyring()),
    Wall("undumpable", "tracing by others, core files", lambda _: capabilities.undumpable()),
    Wall("capabilities", "every privilege", lambda _: capabilities.drop()),
    Wall("no-new-privileges", "set-user-id programs", lambda _: capabilities.no_new_privileges()),
    Wall("parent-death", "outliving its VM's owner", lambda _: capabilities.die_with_parent()),
    Wall("landlock", "paths, ports, signals to others", lambda _: landlock.deny_all()),
    Wall("limits", "more than its share", lambda jail: limits.lower(jail.limits)),
    Wall(
        "system-calls", "the kernel's interfaces", lambda jail: seccomp.install(jail.system_calls)
    ),
)
"""In the order in which they must be raised."""

FIRST: Final = WALLS[:-2]
"""Raised before anything is known of what the process will serve."""

REST: Final = WALLS[-2:]
"""Raised once everything is mapped and loaded."""

NAMES: Final = tuple(wall.name for wall in WALLS)

FIRST_STATUS: Final = 100
"""Exit status for the first wall that can be missing; the others follow."""


def exit_status(name: str) -> int:
    """With which status a process ends that misses this wall."""
    return FIRST_STATUS + NAMES.index(name)


def enter(jail: Jail, walls: Sequence[Wall] = WALLS) -> list[MissingWall]:
    """Raises the walls around this process, for good. The process must have one thread.

    Returns:
        The walls this host does not give, all of them in `jail.allow_missing`.

    Raises:
        MissingWall: one that is not.
    """
    absent = []
    for wall in walls:
        try:
            wall.build(jail)
        except OSError as error:
            missing = MissingWall(wall.name, str(error))
            if wall.name not in jail.allow_missing:
                raise missing from error
            absent.append(missing)
    return absent
