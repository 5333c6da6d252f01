"""Many short VMs, one after the other and side by side: nothing of them is left, nothing grows.

A leak grows with each VM. What grows once is none, and may come with the host's load: a thread's
heap, the interpreter's table of interned strings, which doubles when pathlib has put many names in
it (1 MiB). So not pages are counted but what is in use, the run is cut into parts, and a leak is
what all of them have.

`make soak VMS=10000`, or `python -m tests.soak NUMBER`; `tests/guests/test_soak.py` is a short one.
"""

import ctypes
import gc
import operator
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

import teuthis
from teuthis.images import cache
from teuthis.root import cgroup

from .guests.processes import zygotes

AT_ONCE: Final = 4
WARM: Final = 10
"""One part in so many is not measured: what is loaded or allocated once is there after that."""
PARTS: Final = 4
"""Of what is measured."""


@dataclass(frozen=True)
class Left:
    """What there is of the kinds of things that a VM uses."""

    children: frozenset[int]
    """Of this process, those included that have ended and were not waited for."""
    descriptors: tuple[str, ...]
    zygote_descriptors: tuple[str, ...]
    threads: int
    mapped: tuple[str, ...]
    """Memory files."""
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
            mapped=_mapped(),
            mounts=tuple(Path("/proc/self/mountinfo").read_text().splitlines()),
            files=frozenset(_files()),
            groups=frozenset(_groups()),
        )

    def more(self, before: "Left") -> str:
        """What there is more of than there was; nothing, or less, is nothing."""
        found = []
        for name, now in vars(self).items():
            then = getattr(before, name)
            if now > then if isinstance(now, int) else Counter(now) - Counter(then):
                found.append(f"{name}: {then} → {now}")
        return "; ".join(found)


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended, whose children have another parent
            found.update(map(int, (task / "children").read_text().split()))
    return found


def _descriptors(pid: str) -> tuple[str, ...]:
    """Kinds of what a process holds; a namespace held open would be one of them."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(re.sub(r"\d+", "", str(path.readlink())))
        except FileNotFoundError:  # the one that reads this directory
            continue
    return tuple(sorted(found))


def _mapped() -> tuple[str, ...]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return tuple(sorted(line.split()[5] for line in lines if "/memfd:" in line))


def _files() -> set[str]:
    """Files where a VM without a network makes some: the cache's layers, shared memory.

    Not the locks of user ids (`teuthis.jail.identity`): other programs' VMs have some, too.
    """
    found = set(map(str, cache.directory("layers").iterdir()))
    return found | {str(path) for path in Path("/dev/shm").glob("*teuthis*")}


def _groups() -> set[str]:
    place = cgroup.place()
    if place is None:
        return set()
    return {path.name for path in place.directory.glob(f"teuthis-{os.getpid()}-*")}


@dataclass(frozen=True)
class Used:
    """What is in use."""

    objects: float
    """Blocks of Python's own allocator: all of up to 512 bytes that is not freed."""
    heap: float
    """Bytes of the C library's: all that is larger, and what is not Python's."""
    zygote: float
    """Bytes of memory that the zygote has to itself."""

    @classmethod
    def now(cls, zygote: int) -> "Used":
        """Counted now."""
        gc.collect()
        heap = _mallinfo()
        return cls(sys.getallocatedblocks(), heap.uordblks + heap.hblkhd, memory(zygote))

    def __sub__(self, before: "Used") -> "Used":
        return Used(*map(operator.sub, astuple(self), astuple(before)))


LOST_MAX: Final = Used(objects=0.5, heap=100, zygote=100)
"""With each VM: not half an object of any size, nor a fraction of a buffer."""
CHANCE: Final = Used(objects=100, heap=20 << 10, zygote=32 << 10)
"""In a part: short runs end before caches are full. From 1,000 VMs on the above is what counts."""


class _Mallinfo(ctypes.Structure):
    """The C library's `struct mallinfo2`."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("chunks", ctypes.c_size_t * 3),
        ("hblkhd", ctypes.c_size_t),
        ("fast", ctypes.c_size_t * 2),
        ("uordblks", ctypes.c_size_t),
        ("free", ctypes.c_size_t * 2),
    )
    hblkhd: int
    """Bytes in mappings of their own."""
    uordblks: int
    """Bytes in use, of all arenas."""


_mallinfo = ctypes.CDLL(None).mallinfo2
_mallinfo.restype = _Mallinfo


def memory(pid: int) -> int:
    """Private memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def one(number: int) -> None:
    """A VM, a program, its output."""
    with teuthis.VM("128M", processor="soft") as vm:
        assert vm.run(["echo", str(number)], timeout=300).stdout == b"%d\n" % number


def grows(parts: Sequence[Used], vms: int) -> bool:
    """Whether something is lost with each VM, by what more was in use after each part of `vms`."""
    lost = (min(part) for part in zip(*map(astuple, parts), strict=True))
    most = (
        max(each * vms, chance)
        for each, chance in zip(astuple(LOST_MAX), astuple(CHANCE), strict=True)
    )
    return any(map(operator.gt, lost, most))


def soak(vms: int) -> str:
    """Runs `vms` VMs and says how; raises `AssertionError` when something is left or grew."""
    warm = max(vms // WARM, AT_ONCE)
    part = max((vms - warm) // PARTS, 1)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(warm)))
        (zygote,) = zygotes(os.getpid())
        time.sleep(1)  # consoles are read to their end
        gc.collect()
        before, size = Left.now(), memory(os.getpid())
        used, parts = Used.now(zygote), []
        start = time.monotonic()
        for first in range(warm, warm + PARTS * part, part):
            list(pool.map(one, range(first, first + part)))
            more = _settled(before)
            assert not more, more
            now = Used.now(zygote)
            parts.append(now - used)
            used = now
        rate = PARTS * part / (time.monotonic() - start)
    assert zygotes(os.getpid()) == {zygote}
    found = f"more in use after each {part} VMs: {parts}"
    assert not grows(parts, part), found
    return (
        f"{vms} VMs, {rate:.1f} a second; nothing left; memory of the owner {size >> 10} KiB and "
        f"{memory(os.getpid()) - size >> 10} more; {found}"
    )


def _settled(before: Left) -> str:
    """What there is more of than before, once threads that are about to end have ended."""
    gc.collect()
    deadline = time.monotonic() + 100
    while (more := Left.now().more(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return more


if __name__ == "__main__":
    print(soak(int(sys.argv[1])), flush=True)
