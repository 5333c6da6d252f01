"""Many short VMs, one after the other and side by side: nothing of them is left, nothing grows.

`make soak VMS=10000`, or `python -m tests.soak NUMBER`; `tests/guests/test_soak.py` is a short one.
"""

import gc
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import teuthis
from teuthis.images import cache
from teuthis.root import cgroup

from .guests.processes import zygotes

AT_ONCE: Final = 4
WARM: Final = 10
"""One part in so many is not measured: what is loaded or allocated once is there after that."""
GROWTH: Final = 1 << 20
"""Bytes by which a process may seem to have grown: the allocator's arenas come in such pieces."""


@dataclass(frozen=True)
class Left:
    """What there is of a kind of thing that a VM uses."""

    children: frozenset[int]
    """Of this process, those included that have ended and were not waited for."""
    descriptors: tuple[str, ...]
    zygote_descriptors: tuple[str, ...]
    threads: int
    mounts: tuple[str, ...]
    files: frozenset[str]
    groups: frozenset[str]

    @classmethod
    def now(cls) -> "Left":
        """Counted now."""
        (zygote,) = zygotes(os.getpid())
        return cls(
            children=frozenset(_children()),
            descriptors=_descriptors("self"),
            zygote_descriptors=_descriptors(str(zygote)),
            threads=threading.active_count(),
            mounts=tuple(Path("/proc/self/mountinfo").read_text().splitlines()),
            files=frozenset(_files()),
            groups=frozenset(_groups()),
        )


def _children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def _descriptors(pid: str) -> tuple[str, ...]:
    """Kinds of what a process holds; a namespace held open would be one of them."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(re.sub(r"\d+", "", str(path.readlink())))
        except FileNotFoundError:  # the one that reads this directory
            continue
    return tuple(sorted(found))


def _files() -> set[str]:
    """Files where a VM makes some: the cache but for what images and templates are, shared memory.

    The user ids' lock files stay, one for each of at most 32,768 pairs (`teuthis.jail.identity`).
    """
    places = [cache.directory("layers"), Path("/run/teuthis/networks")]
    found = {str(path) for place in places if place.exists() for path in place.iterdir()}
    return found | {str(path) for path in Path("/dev/shm").glob("*teuthis*")}


def _groups() -> set[str]:
    place = cgroup.place()
    if place is None:
        return set()
    return {path.name for path in place.directory.glob(f"teuthis-{os.getpid()}-*")}


def memory(pid: int) -> int:
    """Private memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def one(number: int) -> None:
    """A VM, a program, its output."""
    with teuthis.VM("128M", processor="soft") as vm:
        assert vm.run(["echo", str(number)], timeout=100).stdout == b"%d\n" % number


def soak(vms: int) -> str:
    """Runs `vms` VMs and says how; raises `AssertionError` when something is left or grew."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        warm = max(vms // WARM, AT_ONCE)
        list(pool.map(one, range(warm)))
        (zygote,) = zygotes(os.getpid())
        sizes = _sizes(zygote)
        time.sleep(1)  # consoles are read to their end
        before = _settled(None)
        start = time.monotonic()
        for first in range(warm, vms, 1000):
            list(pool.map(one, range(first, min(first + 1000, vms))))
        seconds = time.monotonic() - start
        after = _settled(before)
        assert after == before, _difference(before, after)
    assert zygotes(os.getpid()) == {zygote}
    growth = [now - then for then, now in zip(sizes, _sizes(zygote), strict=True)]
    assert max(growth) < GROWTH, f"bytes more: owner {growth[0]}, zygote {growth[1]}"
    return (
        f"{vms} VMs, {(vms - warm) / seconds:.1f} a second; nothing left; memory of the owner "
        f"{sizes[0] >> 10} KiB and {growth[0] >> 10} more, of the zygote {sizes[1] >> 10} KiB and "
        f"{growth[1] >> 10} more"
    )


def _sizes(zygote: int) -> tuple[int, int]:
    gc.collect()
    return memory(os.getpid()), memory(zygote)


def _settled(wanted: Left | None) -> Left:
    """What there is, once threads that are about to end have ended."""
    gc.collect()
    if wanted is not None:
        deadline = time.monotonic() + 10
        while Left.now() != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
    return Left.now()


def _difference(before: Left, after: Left) -> str:
    names = [name for name in vars(before) if getattr(before, name) != getattr(after, name)]
    return "; ".join(f"{name}: {getattr(before, name)} → {getattr(after, name)}" for name in names)


if __name__ == "__main__":
    print(soak(int(sys.argv[1])), flush=True)
