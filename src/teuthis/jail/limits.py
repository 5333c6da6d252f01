"""Resource limits of a process, lowered for good."""

import resource
from collections.abc import Mapping
from typing import Final

MIB: Final = 1 << 20

NOTHING: Final[Mapping[int, int]] = {
    resource.RLIMIT_CORE: 0,  # a core file would carry the guest's memory out
    resource.RLIMIT_NPROC: 0,  # no fork, no thread
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 0,
}
"""What no process of a VM needs."""


def lower(limits: Mapping[int, int]) -> None:
    """Lowers the soft and hard limits to `limits`, or leaves those that are lower already."""
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))
