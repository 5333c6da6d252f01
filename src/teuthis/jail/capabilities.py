"""Privileges given up for good: capabilities, set-user-id programs, inspection by others."""

import ctypes
import errno
import signal
from typing import Final

from teuthis.jail.kernel import call, prctl

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_SECUREBITS: Final = 28
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1

_CAPABILITY_VERSION_3: Final = 0x2008_0522
_LAST_CONCEIVABLE: Final = 63

# NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE and the locks of all four bits.
_SECUREBITS_LOCKED: Final = 0xEF


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """Two times effective, permitted, inheritable: low and high 32 capabilities."""

    _fields_ = (("words", ctypes.c_uint32 * 6),)


def _permitted() -> int:
    sets = _Sets()
    call("capget", _Header(_CAPABILITY_VERSION_3, 0), sets)
    return int(sets.words[1]) | int(sets.words[4]) << 32


def raise_permitted() -> None:
    """Makes every permitted capability effective: a change of user clears only these."""
    sets = _Sets()
    call("capget", _Header(_CAPABILITY_VERSION_3, 0), sets)
    sets.words[0], sets.words[3] = sets.words[1], sets.words[4]
    call("capset", _Header(_CAPABILITY_VERSION_3, 0), sets)


def drop() -> None:
    """Empties all capability sets. Raises `OSError`.

    Whoever holds no capability may not touch the bounding set and the securebits; they then
    bound nothing, because no program is ever executed with more privileges.
    """
    if _permitted():
        prctl(_PR_SET_SECUREBITS, _SECUREBITS_LOCKED)
        for capability in range(_LAST_CONCEIVABLE + 1):
            try:
                prctl(_PR_CAPBSET_DROP, capability)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # one more than the kernel knows
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    call("capset", _Header(_CAPABILITY_VERSION_3, 0), _Sets())


def no_new_privileges() -> None:
    """No program this process executes gains anything by it. Raises `OSError`."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """Ends with the thread that started it, even while stopped or stuck. Raises `OSError`.

    Every change of credentials undoes this, so it comes after them.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def undumpable() -> None:
    """No core file; processes of the same user may not trace it or read its /proc. `OSError`."""
    prctl(_PR_SET_DUMPABLE, 0)


def own_keyring() -> None:
    """Leaves the keys of the session that started the VM. Raises `OSError`."""
    try:
        call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keys has none to reach
            raise
