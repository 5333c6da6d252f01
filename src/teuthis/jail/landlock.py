"""The Landlock wall: no path, no TCP port, no abstract socket and no signal beyond this process.

A ruleset that handles every right the running kernel knows and grants none. It stands behind
seccomp: a process that gets past its list of calls still opens nothing.
Reference: Documentation/userspace-api/landlock.rst.
"""

import ctypes
from typing import Final

from teuthis.jail.kernel import call

_CREATE_RULESET_VERSION: Final = 1

# Number of rights of each kind, by ABI version.
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 5: 16}
_NETWORK_RIGHTS: Final = {4: 2}
_SCOPES: Final = {6: 2}


class _Ruleset(ctypes.Structure):
    """`struct landlock_ruleset_attr`; older kernels take a prefix of it."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def version() -> int:
    """The kernel's Landlock ABI. Raises `OSError` where there is none, or it is switched off."""
    return call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)


def _all(rights: dict[int, int], abi: int) -> int:
    """The mask of all rights that ABI version `abi` knows."""
    return (1 << max((count for since, count in rights.items() if since <= abi), default=0)) - 1


def ruleset(abi: int) -> tuple[_Ruleset, int]:
    """Everything that `abi` can deny, and how many bytes of the structure it knows."""
    rules = _Ruleset(_all(_FILE_RIGHTS, abi), _all(_NETWORK_RIGHTS, abi), _all(_SCOPES, abi))
    return rules, 8 if abi < 4 else 16 if abi < 6 else 24


def deny_all() -> None:
    """Denies this process everything that Landlock can. Needs no-new-privileges. `OSError`."""
    rules, size = ruleset(version())
    descriptor = call("landlock_create_ruleset", rules, size, 0)
    try:
        call("landlock_restrict_self", descriptor, 0)
    finally:
        call("close", descriptor)
