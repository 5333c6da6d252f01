"""What a switch keeps: its system calls, found by measurement, and its limits."""

import resource
from collections.abc import Sequence
from typing import Final

from teuthis.jail import walls
from teuthis.jail.bpf import AllowList
from teuthis.jail.limits import MIB, NOTHING
from teuthis.jail.seccomp import integer, null, only, without
from teuthis.jail.walls import Jail, Wall
from teuthis.switch.protocol import SwitchConfig

_PROT_EXEC: Final = 4
_MAP_SHARED: Final = 1
_MAP_PRIVATE_ANONYMOUS: Final = 0x22
_MREMAP_MAYMOVE: Final = 1
_FIONBIO: Final = 0x5421
_SOL_SOCKET: Final = 1
_SO_PEERCRED: Final = 17
_F_GETFD_TO_DUPFD_CLOEXEC: Final = 1030

_MEMORY: Final = 768 * MIB
_DESCRIPTORS: Final = 1024


def system_calls(epoll: int) -> AllowList:
    """The calls that forwarding frames takes."""
    return {
        "epoll_wait": ((integer(0, epoll),),),
        "epoll_ctl": ((integer(0, epoll),),),
        # Frames, which are packets of sockets that the root side has connected.
        "read": (),
        "write": (),
        # Who asks to join: only the root side can reach the listening socket.
        "accept4": (),
        "getsockname": (),
        "getsockopt": ((integer(1, _SOL_SOCKET), integer(2, _SO_PEERCRED)),),
        "recvmsg": (),
        "sendto": ((null(4),),),
        "poll": (),
        "ioctl": ((integer(1, _FIONBIO),),),
        "close": (),
        # A page of counters for each VM, and the allocator; never executable.
        "fcntl": ((integer(1, _F_GETFD_TO_DUPFD_CLOEXEC),),),
        "fstat": (),
        "newfstatat": (),
        "mmap": (
            (without(2, _PROT_EXEC), only(3, _MAP_PRIVATE_ANONYMOUS)),
            (without(2, _PROT_EXEC), only(3, _MAP_SHARED)),
        ),
        "mremap": ((integer(3, _MREMAP_MAYMOVE),),),
        "munmap": (),
        "brk": (),
        "getrandom": (),
        "clock_gettime": (),
        "exit_group": (),
        "rt_sigaction": (),
    }


def walls_of(config: SwitchConfig) -> Sequence[Wall]:
    """What is left to raise; a network outlives the VM that it was started for."""
    return [wall for wall in walls.REST if wall.name != "parent-death" or config.uplink is not None]


def switch(config: SwitchConfig, calls: AllowList) -> Jail:
    """The jail of the switch that was given `config`."""
    return Jail(
        system_calls=calls,
        limits={
            **NOTHING,
            resource.RLIMIT_AS: _MEMORY,
            resource.RLIMIT_NOFILE: _DESCRIPTORS,
            resource.RLIMIT_FSIZE: 0,
        },
        descriptors=config.descriptors(),
        uid=config.uid,
        allow_missing=config.allow_missing_walls,
    )
