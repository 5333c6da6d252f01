"""Namespaces of a process's own, and a root directory with nothing in it.

Each is entered by the process itself once its modules are loaded, while it has one thread. No
PID namespace: SECURITY.md says which walls stand between a process and the others' PIDs instead.
"""

import os
from typing import Final

from teuthis.jail import control_file
from teuthis.jail.kernel import call, prctl

_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWCGROUP: Final = 0x0200_0000
_CLONE_NEWUTS: Final = 0x0400_0000
_CLONE_NEWIPC: Final = 0x0800_0000
_CLONE_NEWUSER: Final = 0x1000_0000
_CLONE_NEWNET: Final = 0x4000_0000

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REC_PRIVATE: Final = 0x4000 | 0x4_0000
_MNT_DETACH: Final = 2
_PR_SET_DUMPABLE: Final = 4


def user() -> None:
    """A user namespace that knows one user and one group: our own. Raises `OSError`."""
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", _CLONE_NEWUSER)
    # Our own /proc files are ours only while dumpable; a change of user has cleared that.
    prctl(_PR_SET_DUMPABLE, 1)
    control_file.write("/proc/self/setgroups", "deny")
    control_file.write("/proc/self/uid_map", f"{uid} {uid} 1")
    control_file.write("/proc/self/gid_map", f"{gid} {gid} 1")


def network() -> None:
    """No interface but a loopback that is down, and no abstract sockets. Raises `OSError`."""
    call("unshare", _CLONE_NEWNET)


def ipc() -> None:
    """No System V objects and no message queues of others. Raises `OSError`."""
    call("unshare", _CLONE_NEWIPC)


def host_name() -> None:
    """A host name of its own. Raises `OSError`."""
    call("unshare", _CLONE_NEWUTS)


def cgroup() -> None:
    """The cgroup it is in looks like the root of all. Raises `OSError`."""
    call("unshare", _CLONE_NEWCGROUP)


def empty_root() -> None:
    """The root becomes a read-only file system with one directory that nobody may enter.

    Nothing of the host stays mounted. Raises `OSError`.
    """
    call("unshare", _CLONE_NEWNS)
    # Nothing we do here reaches the host's mount table.
    call("mount", b"none", b"/", None, _MS_REC_PRIVATE, None)
    # /proc is a directory that every host has; whatever was there is covered, then gone.
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    call("mount", b"none", b"/proc", b"tmpfs", flags, b"mode=000,nr_inodes=1")
    os.chdir("/proc")
    call("pivot_root", b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
