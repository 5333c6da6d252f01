"""What a switch keeps: its system calls, found by measurement, and its limits."""

import resource
from collections.abc import Sequence
from typing import Final

from teuthis.jail import walls
from teuthis.jail.bpf import AllowList
from teuthis.jail.limits import MIB, NOTHING
from teuthis.jail.seccomp import integer, null, without
from teuthis.jail.walls import Jail, Wall
from teuthis.switch.protocol import SwitchConfig

_PROT_READ_WRITE: Final = 3
_PROT_EXEC: Final = 4
_MAP_SHARED: Final = 1
_MAP_PRIVATE_ANONYMOUS: Final = 0x22
_MREMAP_MAYMOVE: Final = 1
_FIONBIO: Final = 0x5421
_F_DUPFD_CLOEXEC: Final = 1030

_PRIVATE: Final = (without(2, _PROT_EXEC), integer(3, _MAP_PRIVATE_ANONYMOUS))
_COUNTERS: Final = (integer(2, _PROT_READ_WRITE), integer(3, _MAP_SHARED), null(0))

_MEMORY: Final = 768 * MIB
_DESCRIPTORS: Final = 1024


def system_calls(epoll: int, requests: int | None) -> AllowList:
    """The calls that forwarding frames takes, and with `requests` those for VMs that join."""
    return {
        "epoll_wait": ((integer(0, epoll),),),
        "epoll_ctl": ((integer(0, epoll),),),
        # Frames: packets of sockets that the root side has connected.
        "read": (),
        "write": (),
        "close": (),
        # The allocator: private memory that is never executable.
        "mmap": (_PRIVATE,) if requests is None else (_PRIVATE, _COUNTERS),
        "mremap": ((integer(3, _MREMAP_MAYMOVE),),),
        "munmap": (),
        "brk": (),
        "getrandom": (),
        "clock_gettime": (),
        "exit_group": (),
        **({} if requests is None else _joining(requests)),
    }


def _joining(requests: int) -> AllowList:
    """A VM brings a socket, a page of counters to be mapped, and a socket for the answer."""
    return {
        "recvmsg": ((integer(0, requests),),),
        "ioctl": ((integer(1, _FIONBIO),),),
        "fcntl": ((integer(1, _F_DUPFD_CLOEXEC),),),
        "fstat": (),
        "newfstatat": (),
    }


def first_walls(config: SwitchConfig) -> Sequence[Wall]:
    """What is raised first; a named network outlives the VM that it was started for."""
    named = config.uplink is None
    return [wall for wall in walls.FIRST if not (named and wall.name == "parent-death")]


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
