"""What a worker keeps: its system calls, found by measurement, and its limits."""

import resource
from collections.abc import Sequence
from typing import Final

from teuthis import layer
from teuthis.jail.bpf import AllowList, Alternatives
from teuthis.jail.kernel import PUNCH_HOLE
from teuthis.jail.limits import MIB, NOTHING
from teuthis.jail.seccomp import integer, null, without
from teuthis.jail.walls import Jail
from teuthis.protocol import Birth, DiskConfig, WorkerConfig

_PROT_EXEC: Final = 4
_MAP_PRIVATE_ANONYMOUS: Final = 0x22
_MREMAP_MAYMOVE: Final = 1
_FIONBIO: Final = 0x5421

_OWN_MEMORY: Final = 1024 * MIB
"""Address space beyond guest RAM: the interpreter, its heap, what is in flight."""
_DESCRIPTORS: Final = 1024
"""Bounds how many commands can be under way: each has up to three."""


def system_calls(
    epolls: Sequence[int], link: int, control: int, disks: Sequence[DiskConfig] = ()
) -> AllowList:
    """The calls that serving a VM takes, on these descriptors where they are always the same."""
    return {**_always(epolls, link, control), **_storage(disks)}


def _storage(disks: Sequence[DiskConfig]) -> AllowList:
    """Each file of a disk is read, written, synced and given back only as its disk needs it."""
    read = [descriptor for disk in disks for descriptor in disk.descriptors()]
    written = [(disk, disk.written) for disk in disks if disk.written is not None]
    # A layer that is thrown away is never synced.
    synced = [each for disk, each in written if disk.layer is None or disk.layer.kept]
    punched = [each for disk, each in written if disk.punches]
    calls: dict[str, Alternatives] = {
        "preadv2": tuple((integer(0, each), integer(5, 0)) for each in read),
        "pwritev2": tuple((integer(0, each), integer(5, 0)) for _, each in written),
        "fdatasync": tuple((integer(0, each),) for each in synced),
        "fallocate": tuple((integer(0, each), integer(1, PUNCH_HOLE)) for each in punched),
    }
    return {name: alternatives for name, alternatives in calls.items() if alternatives}


def _always(epolls: Sequence[int], link: int, control: int) -> AllowList:
    return {
        "epoll_wait": tuple((integer(0, each),) for each in epolls),
        "epoll_ctl": tuple((integer(0, each),) for each in epolls),
        # The hypervisor: messages to and from nobody else.
        "recvfrom": ((integer(0, link), null(4)),),
        "sendto": ((integer(0, link), null(4)), (integer(0, control), null(4))),
        # The root side: requests with descriptors, which only it can send.
        "recvmsg": ((integer(0, control),),),
        # Doorbells, the console, the streams of commands.
        "read": (),
        "write": (),
        "writev": (),
        "ioctl": ((integer(1, _FIONBIO),),),
        "close": (),
        # The allocator: private memory that is never executable.
        "mmap": ((without(2, _PROT_EXEC), integer(3, _MAP_PRIVATE_ANONYMOUS)),),
        "mremap": ((integer(3, _MREMAP_MAYMOVE),),),
        "munmap": (),
        "brk": (),
        "getrandom": (),
        # Where the clock cannot be read without the kernel.
        "clock_gettime": (),
        "exit_group": (),
    }


def unborn(birth: Birth, owner: int) -> Jail:
    """The jail of a worker that has no VM yet, but the socket over which it is given one."""
    return Jail({}, {}, [owner], birth.uid, birth.allow_missing_walls)


def worker(config: WorkerConfig, birth: Birth, calls: AllowList) -> Jail:
    """The jail of the worker that was given `config`."""
    return Jail(
        system_calls=calls,
        limits={
            **NOTHING,
            # A restored VM maps its template beside its own memory.
            resource.RLIMIT_AS: config.memory_size * (2 if config.saved else 1)
            + _OWN_MEMORY
            + sum(map(_maps, config.disks)),
            resource.RLIMIT_NOFILE: _DESCRIPTORS,
            # Streams are pipes: it writes no file but those of writable disks, within their size.
            resource.RLIMIT_FSIZE: max(map(_written_bytes, config.disks), default=0),
        },
        descriptors=config.descriptors(),
        uid=birth.uid,
        allow_missing=birth.allow_missing_walls,
    )


def _maps(disk: DiskConfig) -> int:
    """Memory that knowing a disk's blocks takes."""
    return layer.map_size(disk.size) if disk.layer else 0


def _written_bytes(disk: DiskConfig) -> int:
    """The size of the file that a disk writes to."""
    if disk.layer:
        return layer.file_size(disk.size)
    return disk.size if disk.writable else 0
