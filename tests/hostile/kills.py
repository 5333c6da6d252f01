"""`kill -9` of any process of a VM at any moment: the others end, and nothing is left."""

import fcntl
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.guests.processes import PATIENCE, alive, await_true, children, kill, zygotes
from teuthis.jail import identity

_OWNER: Final = """
import teuthis
try:
    with teuthis.VM("128M") as vm:
        while True:
            assert vm.run(["sh", "-c", "echo $((6 * 7))"], timeout=60).stdout == b"42\\n"
except teuthis.TeuthisError as error:
    print(type(error).__name__, str(error).splitlines()[0])
"""
_LATEST: Final = 4.0
"""Seconds up to which a VM is hit: it has then run commands for a while."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill and what came of it."""

    moment: float
    """Seconds after the owner's start, after that of its first process, or of its VM's two."""
    victim: str
    said: str
    """What the owner of a VM whose process was killed is told."""


def _name(pid: int, parent: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    if b"teuthis.worker" in line:
        return "worker" if pid in children(parent) else "zygote"
    return "hypervisor" if b"teuthis-hypervisor" in line else "newborn"


def _users(pids: set[int]) -> set[int]:
    """The user ids of a VM's own among those of `pids`."""
    found = set()
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        uid = int(status.partition("\nUid:")[2].split(maxsplit=1)[0])
        if uid >= identity.FIRST:
            found.add(uid)
    return found


def _is_free(uid: int) -> bool:
    """Whether the lease of a user id has been given back, with its file or by its owner's death."""
    path = Path(identity.LOCKS) / str((uid - identity.FIRST) // 2)
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def kill_something(chance: random.Random) -> Kill:
    """Starts a VM, kills one of its processes or its owner at some moment, sees the rest end.

    Whatever the owner starts is a process of its VM: it needs no other program once the cache is
    filled, so the death of each must be noticed.

    Raises `AssertionError` when anything is left, or the owner is not told what happened.
    """
    with tempfile.TemporaryDirectory() as directory:
        result = _kill(chance, directory)
        assert not list(Path(directory).iterdir())
    assert not list(Path("/dev/shm").glob("*teuthis*"))
    return result


def _kill(chance: random.Random, directory: str) -> Kill:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": directory},
    )
    # On a busy host the owner alone may take longer than all the rest, or the zygote does.
    match chance.randrange(3):
        case 1:
            await_true(lambda: children(owner.pid) | zygotes(owner.pid))
        case 2:
            await_true(lambda: len(children(owner.pid)) >= 2)
    moment = chance.uniform(0.0, _LATEST)
    time.sleep(moment)
    pids = children(owner.pid) | zygotes(owner.pid)
    users = _users(pids)
    victim = chance.choice([owner.pid, *sorted(pids)])
    name = "owner" if victim == owner.pid else _name(victim, owner.pid)
    kill(victim)
    if name in ("zygote", "newborn"):
        # A VM that is there does not need its zygote any more, and the next one gets a new one.
        with suppress(subprocess.TimeoutExpired):
            owner.wait(_LATEST)
        owner.kill()
    output, errors = owner.communicate(timeout=PATIENCE)
    said = output.decode().strip()
    await_true(lambda: not alive(pids))
    if name == "owner":
        assert not output
    elif said or name not in ("zygote", "newborn"):
        assert "died" in said, (name, moment, said, errors)
    assert not errors, errors.decode()
    assert all(_is_free(uid) for uid in users)
    return Kill(moment, name, said)
