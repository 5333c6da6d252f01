"""A control group for each VM, where this host lets us make one (Linux cgroup v2, cgroup-v2.rst).

It bounds all processes that serve one VM alone (hypervisor, worker, the switch and passt of the
user's network) together: memory that no address space limit sees (page
tables, socket buffers, the page cache of its disks), the number of processes, and its share of
processor time against the host's other VMs. It stands behind the limits that each process has of
its own, which hold everywhere.

A group can be made below the nearest group of ours that hands controllers on to its children and is
ours to write: as root on most hosts; for an ordinary user in what `systemd` delegates, such as
`systemd-run --user --scope -p Delegate=yes`.
"""

import errno
import functools
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from teuthis.jail import control_file

MIB: Final = 1 << 20
OWN_MEMORY: Final = 768 * MIB
"""What a VM's processes may take beside guest RAM: interpreter, decoded code, page tables."""
PROCESSES: Final = 15
"""Threads of all processes in one VM's group, beside one for each virtual processor."""

_MOUNTS: Final = Path("/proc/self/mountinfo")
_OWN: Final = Path("/proc/self/cgroup")
_PREFIX: Final = "teuthis-"
_WANTED: Final = ("memory", "pids", "cpu")
_LEAVE_SECONDS: Final = 1.0
"""How long the kernel may take to forget processes that have ended."""
_numbers = itertools.count()


class Place(NamedTuple):
    """Where groups can be made, and which controllers their processes are under."""

    directory: Path
    controllers: frozenset[str]


class Group:
    """The control group of one VM."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        """None where this host has no place for it."""

    def take(self, pid: int) -> None:
        """Moves a process that has just been started into the group. Raises `OSError`."""
        if self.directory is not None:
            # The process may be gone already; whoever waits for it will say so.
            with suppress(ProcessLookupError):
                control_file.write(self.directory / "cgroup.procs", str(pid))


def place(own: Path = _OWN, mounts: Path = _MOUNTS) -> Place | None:
    """The nearest group above ours that hands on controllers and lets us make children."""
    top = _mounted(mounts)
    path = next(
        (line[3:] for line in own.read_text().splitlines() if line.startswith("0::/")), None
    )
    if top is None or path is None or ".." in Path(path).parts:
        return None  # no cgroup v2, or our own group lies outside what is mounted here
    group = top / path.lstrip("/")
    while True:
        controllers = _controllers(group)
        if controllers and os.access(group, os.W_OK) and os.access(group / "cgroup.procs", os.W_OK):
            return Place(group, controllers)
        if group == top:
            return None
        group = group.parent


@contextmanager
def lease(memory_size: int, cpus: int, where: Place | None) -> Iterator[Group]:
    """A group for one VM with so much RAM and so many processors, until the end of the block.

    Raises:
        OSError: the kernel refuses what `where` promised.
    """
    if where is None:
        yield Group(None)
        return
    _sweep(where.directory)
    directory = where.directory / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
    directory.mkdir()
    try:
        for file, value in _limits(memory_size, cpus, where.controllers).items():
            control_file.write(directory / file, value)
        yield Group(directory)
    finally:
        _remove(directory)


def _limits(memory_size: int, cpus: int, controllers: frozenset[str]) -> Mapping[str, str]:
    limits = {
        "memory": {
            "max": str(memory_size + OWN_MEMORY),
            "oom.group": "1",  # half a VM is of no use
        },
        "pids": {"max": str(PROCESSES + cpus)},
        "cpu": {"weight": "100"},  # one VM weighs as much as any other, however busy or large
    }
    return {
        f"{name}.{limit}": value for name in controllers for limit, value in limits[name].items()
    }


@functools.cache
def _mounted(mounts: Path) -> Path | None:
    """Where the whole of cgroup v2 is mounted (proc_pid_mountinfo(5)), which stays so."""
    for line in mounts.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            root, point = before.split()[3:5]
            if root == "/":
                return Path(point)
    return None


def _controllers(group: Path) -> frozenset[str]:
    try:
        handed_on = (group / "cgroup.subtree_control").read_text().split()
    except OSError:
        return frozenset()
    return frozenset(handed_on).intersection(_WANTED)


def _sweep(directory: Path) -> None:
    """Removes groups whose makers were killed; such a group holds no process any more."""
    for group in directory.glob(f"{_PREFIX}*-*"):
        maker = group.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", maker).exists():
            with suppress(OSError):
                group.rmdir()


def _remove(group: Path) -> None:
    deadline = time.monotonic() + _LEAVE_SECONDS
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return  # left for the next sweep
            time.sleep(0.005)
        else:
            return
