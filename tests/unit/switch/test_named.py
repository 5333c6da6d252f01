"""Named networks come with their first VM, go with their last, and leave nothing."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guests.processes import await_true
from teuthis.root.network import named

from .churn import Member

pytestmark = pytest.mark.timeout(300)  # dozens of processes start


@pytest.fixture
def name() -> Iterator[str]:
    """A name that no other test uses; nothing of it is left in the end."""
    name = f"churn-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    yield name
    assert left(name) == []


def left(name: str) -> list[str]:
    """The files of networks whose names begin with `name`."""
    return sorted(path.name for path in named._directory().glob(f"{name}*"))


@contextmanager
def its_end(switch: int) -> Iterator[None]:
    """Waits until the process has ended that lived when this block began."""
    pidfd = os.pidfd_open(switch)
    try:
        yield
        assert select.select([pidfd], [], [], 100)[0], "the switch did not end"
    finally:
        os.close(pidfd)


def kill(switch: int) -> None:
    with its_end(switch):
        os.kill(switch, signal.SIGKILL)


def test_three_files_while_there_is_a_vm(name: str) -> None:
    with Member(name) as first:
        with Member(name) as second:
            assert first.switch == second.switch
        assert first.plugged
        assert left(name) == [f"{name}.{suffix}" for suffix in ("lock", "pid", "socket")]
    assert left(name) == []


def test_networks_come_and_go_side_by_side(name: str) -> None:
    names = [f"{name}-{number}" for number in range(3)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.churn", "8", f"{name}-{child}", *names],
            stderr=subprocess.PIPE,
        )
        for child in range(4)
    ]
    for child in children:
        _, says = child.communicate()
        assert child.returncode == 0, says.decode()
    assert left(name) == []


def test_a_killed_switch_leaves_nothing_once_its_vms_have_gone(name: str) -> None:
    with Member(name) as member:
        kill(member.switch)
        assert not member.plugged
    assert left(name) == []


def test_the_next_network_removes_what_a_killed_switch_left(name: str) -> None:
    with Member(f"{name}-killed") as member:
        kill(member.switch)
        with Member(f"{name}-other"):
            await_true(lambda: left(f"{name}-killed") == [], 60)  # or others are just at it


def test_a_vm_of_a_killed_switch_does_not_end_its_successor(name: str) -> None:
    with Member(name) as old:
        kill(old.switch)
        with Member(name) as new:
            old.close()
            assert new.plugged
            with Member(name) as another:
                assert another.switch == new.switch


def test_the_next_network_removes_what_a_killed_owner_left(name: str) -> None:
    code = (
        f"from {__package__}.churn import Member; member = Member({name + '-killed'!r});"
        "print(member.switch, flush=True); import time; time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        with its_end(int(owner.stdout.readline())):  # it sees its last VM go
            owner.kill()
    with Member(f"{name}-other"):
        await_true(lambda: left(f"{name}-killed") == [], 60)  # or others are just at it


def test_a_lock_that_its_holder_removed_guards_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lan.lock"
    waits, flock = iter([path.unlink, path.unlink]), fcntl.flock

    def late(file: int, how: int) -> None:
        next(waits, lambda: None)()  # whoever held it is done
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = named._lock(path, wait=True)
    assert os.path.samestat(os.fstat(lock), path.stat())
    os.close(lock)
