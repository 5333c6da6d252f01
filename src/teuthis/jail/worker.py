"""What a worker keeps: its system calls, found by measurement, and its limits."""

import resource
from typing import Final

from teuthis.jail.bpf import AllowList
from teuthis.jail.limits import MIB, NOTHING
from teuthis.jail.seccomp import integer, null, only, without
from teuthis.jail.walls import Jail
from teuthis.protocol import WorkerConfig

_PROT_EXEC: Final = 4
_MAP_PRIVATE_ANONYMOUS: Final = 0x22
_MREMAP_MAYMOVE: Final = 1
_FIONBIO: Final = 0x5421

_OWN_MEMORY: Final = 1024 * MIB
"""Address space beyond guest RAM: the interpreter, its heap, what is in flight."""
_DESCRIPTORS: Final = 1024
"""Bounds how many commands can be under way: each has up to three."""


def system_calls(epoll: int, link: int, control: int) -> AllowList:
    """The calls that serving a VM takes, on these descriptors where they are always the same."""
    return {
        "epoll_wait": ((integer(0, epoll),),),
        "epoll_ctl": ((integer(0, epoll),),),
        # The hypervisor: messages to and from nobody else.
        "recvfrom": ((integer(0, link), null(4)),),
        "sendto": ((integer(0, link), null(4)), (integer(0, control), null(4))),
        # The root side: requests with descriptors, which only it can send.
        "recvmsg": ((integer(0, control),),),
        "poll": (),
        # Doorbells, the console, the streams of commands.
        "read": (),
        "write": (),
        "writev": (),
        "ioctl": ((integer(1, _FIONBIO),),),
        "close": (),
        # The allocator: private memory that is never executable.
        "mmap": ((without(2, _PROT_EXEC), only(3, _MAP_PRIVATE_ANONYMOUS)),),
        "mremap": ((integer(3, _MREMAP_MAYMOVE),),),
        "munmap": (),
        "brk": (),
        "getrandom": (),
        # Where the clock cannot be read without the kernel.
        "clock_gettime": (),
        "exit_group": (),
    }


def worker(config: WorkerConfig, calls: AllowList) -> Jail:
    """The jail of the worker that was given `config`."""
    return Jail(
        system_calls=calls,
        limits={
            **NOTHING,
            resource.RLIMIT_AS: config.memory_size + _OWN_MEMORY,
            resource.RLIMIT_NOFILE: _DESCRIPTORS,
            resource.RLIMIT_FSIZE: 0,  # streams are pipes; it writes no file at all
        },
        descriptors=config.descriptors(),
        uid=config.uid,
        allow_missing=config.allow_missing_walls,
    )
