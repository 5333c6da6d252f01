"""A control group for each VM: where it can be made, what it bounds, that nothing of it stays."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import teuthis
from teuthis.root import cgroup
from teuthis.root.cgroup import MIB, Place

MOUNTS = "30 20 0:26 / {top} rw - cgroup2 cgroup2 rw\n31 20 0:27 / /dev/shm rw - tmpfs tmpfs rw\n"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """What a host with systemd shows: controllers are handed on down to the user's manager."""
    group = tmp_path / "cgroup"
    for name in ("", "user.slice", "user@7.service", "app.slice", "shell.scope"):
        group = group / name
        group.mkdir()
        handed_on = "" if name in ("app.slice", "shell.scope") else "cpu memory pids io\n"
        (group / "cgroup.subtree_control").write_text(handed_on)
        (group / "cgroup.procs").write_text("")
    (tmp_path / "mountinfo").write_text(MOUNTS.format(top=tmp_path / "cgroup"))
    return tmp_path


def find(host: Path, own: str) -> Place | None:
    (host / "own").write_text(own)
    return cgroup.place(host / "own", host / "mountinfo")


def test_the_nearest_group_that_hands_controllers_on_is_the_place(host: Path) -> None:
    manager = "user.slice/user@7.service"
    found = find(host, f"1:name=systemd:/x\n0::/{manager}/app.slice/shell.scope\n")
    assert found == Place(host / "cgroup" / manager, frozenset({"memory", "pids", "cpu"}))


@pytest.mark.parametrize("own", ["", "4:memory:/x\n", "0::/../../outside\n"])
def test_no_place_without_a_group_of_our_own(host: Path, own: str) -> None:
    assert find(host, own) is None


def test_no_place_where_nothing_is_handed_on(host: Path) -> None:
    for file in host.rglob("cgroup.subtree_control"):
        file.write_text("")
    assert find(host, "0::/user.slice\n") is None


def test_no_place_without_a_mount(host: Path) -> None:
    (host / "mountinfo").write_text("31 20 0:27 / /dev/shm rw - tmpfs tmpfs rw\n")
    assert find(host, "0::/\n") is None


def test_only_controllers_that_are_there_are_set(host: Path) -> None:
    where = Place(host / "cgroup", frozenset({"pids"}))
    with pytest.raises(FileNotFoundError), cgroup.lease(MIB, 1, where):
        pass  # an ordinary directory has no pids.max
    assert not list((host / "cgroup").glob("teuthis-*"))


# ---- with the kernel -----------------------------------------------------------------------------


@pytest.fixture
def real() -> Iterator[Place]:
    """A group of this test's own below the kernel's root group, all it can give handed on."""
    top = cgroup._mounted(Path("/proc/self/mountinfo"))
    if top is None or not os.access(top, os.W_OK):
        pytest.skip("needs root and cgroup v2")
    free = set((top / "cgroup.controllers").read_text().split()) & {"memory", "pids", "cpu"}
    if not free:
        pytest.skip("this host's controllers all belong to cgroup v1")
    _hand_on(top, free)
    group = top / f"test-{os.getpid()}"
    group.mkdir()
    _hand_on(group, free)
    yield Place(group, frozenset(free))
    group.rmdir()  # fails unless it is empty


def _hand_on(group: Path, names: set[str]) -> None:
    (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))


def test_a_process_in_the_group_is_bounded(real: Place) -> None:
    program = "input()\nimport subprocess\nlive = []\n"
    if "pids" in real.controllers:
        program += "for _ in range(40): live.append(subprocess.Popen(['sleep', '9']))\n"
    else:
        program += "b = bytearray(b'x' * (2 << 30))\n"
    with cgroup.lease(MIB, 1, real) as group:
        greedy = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        group.take(greedy.pid)
        assert group.directory is not None
        assert str(greedy.pid) in (group.directory / "cgroup.procs").read_text().split()
        greedy.communicate(b"\n", timeout=60)
        assert greedy.returncode != 0
        (group.directory / "cgroup.kill").write_text("1")
    assert not list(real.directory.glob("teuthis-*"))


def test_groups_of_killed_makers_are_swept(real: Place) -> None:
    (real.directory / "teuthis-4194305-0").mkdir()  # beyond the kernel's largest process id
    with cgroup.lease(MIB, 1, real) as group:
        assert list(real.directory.glob("teuthis-*")) == [group.directory]


@pytest.mark.parametrize("network", [None, "user"])
def test_a_vm_lives_in_its_group_and_leaves_nothing(
    network: str | None, real: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "place", lambda: real)
    with teuthis.VM("128M", network=network) as vm:
        (group,) = real.directory.glob("teuthis-*")
        listed = (group / "cgroup.procs").read_text().split()
        # With KVM a thread of the kernel's own is there too, which has no command line.
        inside = {int(pid) for pid in listed if Path(f"/proc/{pid}/cmdline").read_bytes()}
        assert inside == set(vm.machine.processes.values())
        assert len(inside) == (4 if network else 2)
        assert vm.run(["true"]).exit_code == 0
    assert not group.exists()
