"""User ids of a VM's own: Hyper-V has a security identifier per VM, this is ours.

Root gives each process of each VM a user id that no other living process has, out of the range
0x7E07_0000 to 0x7E07_FFFF (2114387968 to 2114453503), which no distribution, systemd or container
engine hands out. Group ids are the same numbers. Whoever is not root cannot do that: all their VMs
run under their own user id, each in a user namespace of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from teuthis.errors import HostError

FIRST: Final = 0x7E07_0000
PAIRS: Final = 0x8000
"""VMs that one host can run as root."""

LOCKS: Final = "/run/teuthis/identities"
"""One file per pair in use, locked by the process that started the VM and removed with the VM."""

_PR_SET_KEEPCAPS: Final = 8


class Identity(NamedTuple):
    """The user ids of one VM's two processes; both None when the caller is not root."""

    worker: int | None = None
    hypervisor: int | None = None


@contextmanager
def lease(locks: str | os.PathLike[str] = LOCKS) -> Iterator[Identity]:
    """A pair of user ids that is this VM's alone until the end of the block.

    Root that cannot reserve one, in a container that keeps it from `LOCKS`, gets none: the wall
    `identity` is then missing.

    Raises:
        HostError: all are taken.
    """
    try:
        reserved = _lock_any(locks) if os.geteuid() == 0 else None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        reserved = None
    if reserved is None:
        yield Identity()
        return
    number, lock = reserved
    try:
        yield Identity(*_pair(number))
    finally:
        with suppress(OSError):
            os.unlink(_path(locks, number))
        os.close(lock)


def _path(locks: str | os.PathLike[str], number: int) -> str:
    return f"{os.fspath(locks)}/{number}"


def _pair(number: int) -> tuple[int, int]:
    return FIRST + 2 * number, FIRST + 2 * number + 1


def _lock_any(locks: str | os.PathLike[str]) -> tuple[int, int]:
    os.makedirs(locks, mode=0o700, exist_ok=True)
    start = int.from_bytes(os.urandom(4)) % PAIRS
    for step in range(PAIRS):
        number = (start + step) % PAIRS
        lock = os.open(_path(locks, number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        taken = False
        try:
            taken = _take(lock, number)
        finally:
            if not taken:
                os.close(lock)
        if taken:
            return number, lock
    raise HostError(f"all {PAIRS} user id pairs for VMs are taken: end some VMs")


def _take(lock: int, number: int) -> bool:
    """Locks a pair, unless another starter has it or a process of a former VM lives on.

    A file that its holder removed before we had it guards nothing: that pair, too, is let be.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(lock).st_nlink > 0 and not any(map(_lives, _pair(number)))


def _lives(uid: int) -> bool:
    """Whether any process has this real user id: one system call, where /proc takes thousands."""
    try:
        os.getpriority(os.PRIO_USER, uid)
    except ProcessLookupError:
        return False
    return True


def assume(uid: int | None) -> None:
    """Becomes user and group `uid`, keeping for now the capabilities that build namespaces.

    Raises:
        OSError: this cannot be; also when root gave no user id.
    """
    # Loaded here: a process that reserves user ids builds no walls.
    from teuthis.jail.capabilities import raise_permitted
    from teuthis.jail.kernel import prctl

    if uid is None:
        if os.geteuid() == 0:
            raise OSError("started by root without a user id of its own")
        return
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(uid, uid, uid)
    raise_permitted()
