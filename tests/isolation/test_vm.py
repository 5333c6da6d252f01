"""Whole VMs whose worker was taken over, two VMs side by side, and what filters are used for."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import teuthis
from teuthis.errors import TeuthisError
from teuthis.jail.surface import surface
from teuthis.root import zygote

from ..guests.processes import PATIENCE, alive, await_true, children
from .test_system_calls import HYPERVISOR, WORKER
from .test_walls import NAMESPACES, needs_root, status

HERE = Path(__file__).parent


@contextmanager
def taken_over(story: str) -> Iterator[None]:
    """Workers run `story` behind their walls."""
    hostile = zygote.Zygote([sys.executable, "-I", str(HERE / "taken_over.py"), story])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zygote, "_current", hostile)
        yield
    hostile.close()


def fails(story: str, disks: Sequence[teuthis.Disk] = ()) -> str:
    """What the user of a VM is told whose worker runs `story`; nothing is left behind."""
    before = children(os.getpid())
    with taken_over(story), pytest.raises(TeuthisError) as caught:
        teuthis.VM("128M", boot_timeout=PATIENCE, disks=disks)
    await_true(lambda: children(os.getpid()) <= before)
    return str(caught.value)


@pytest.mark.parametrize(
    "story",
    [
        "opens_a_file",
        "executes_a_shell",
        "connects_out",
        "sends_descriptors_to_the_root",
    ],
)
def test_a_call_that_is_not_on_the_list_ends_the_vm(story: str) -> None:
    assert "SIGSYS" in fails(story)


@pytest.mark.parametrize(
    "story", ["writes_to_a_read_only_disk", "syncs_a_read_only_disk", "writes_behind_its_disk"]
)
def test_disks_are_written_to_as_they_may_be(tmp_path: Path, story: str) -> None:
    written, locked = tmp_path / "written", tmp_path / "locked"
    for path in (written, locked):
        path.write_bytes(bytes(1 << 20))
    disks = [teuthis.Disk(written), teuthis.Disk(locked, read_only=True)]
    assert "SIGSYS" in fails(story, disks)
    assert written.read_bytes() == locked.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("story", ["forges_a_link_message", "starts_the_guest_twice"])
def test_the_hypervisor_believes_nothing(story: str) -> None:
    assert "hypervisor process" in fails(story)


@pytest.mark.parametrize(
    "story", ["lies_to_the_root", "says_too_much_to_the_root", "answers_what_nobody_asked"]
)
def test_the_root_believes_nothing(story: str) -> None:
    assert "broke the rules" in fails(story)


def test_a_flood_of_console_output_fills_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = fails("floods_the_console")
    assert "\x1b" not in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@needs_root
def test_two_vms_have_nothing_in_common() -> None:
    known = children(os.getpid())
    with teuthis.VM("128M"):
        first = children(os.getpid()) - known
        with teuthis.VM("128M"):
            second = children(os.getpid()) - known - first
            processes = [*first, *second]
            assert len(processes) == 4
            uids = [status(pid)["Uid"].split()[0] for pid in processes]
            assert len(set(uids)) == 4
            for name in NAMESPACES:
                links = {str(Path(f"/proc/{pid}/ns/{name}").readlink()) for pid in processes}
                assert len(links) == 4, name
            open_files = [
                {
                    str(path.readlink())
                    for pid in processes
                    for path in Path(f"/proc/{pid}/fd").iterdir()
                    if str(path.readlink()).startswith(("socket:", "pipe:"))
                }
                for processes in (first, second)
            ]
            assert not open_files[0] & open_files[1]
    assert not alive(processes)


@needs_root
def test_what_its_owner_left_open_is_in_no_process_of_a_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left open"
    monkeypatch.chdir(tmp_path)
    zygote.warm()
    descriptor = os.open(left, os.O_CREAT | os.O_RDWR)
    os.set_inheritable(descriptor, True)
    known = children(os.getpid())
    with teuthis.VM("128M"):
        for pid in children(os.getpid()) - known:
            files = Path(f"/proc/{pid}/fd").iterdir()
            assert left not in {file.readlink() for file in files}
            assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    os.close(descriptor)


@needs_root
def test_the_surface_of_a_vm_is_told() -> None:
    known = children(os.getpid())
    with teuthis.VM("128M"):
        found = [surface(pid) for pid in children(os.getpid()) - known]
    assert sorted(each.system_calls or 0 for each in found) == [len(HYPERVISOR), len(WORKER)]
    for each in found:
        assert each.namespaces == ["user", "mnt", "net", "ipc", "uts", "cgroup"]
        assert (each.capabilities, each.bounding_capabilities, each.writable_mounts) == (0, 0, 0)
        assert (each.writable_code, each.threads) == (0, 1)


WORKLOAD = """
import signal, teuthis
disks = {disks}
with teuthis.VM("192M", disks=disks) as vm:
    if disks:
        vm.run(["sh", "-c", "echo x | dd of=/dev/sda conv=fsync; blkdiscard /dev/sda"], check=True)
        vm.run(["cat", "/dev/sda"], check=True)
    assert vm.run(["cat"], input=bytes(1 << 20)).stdout == bytes(1 << 20)
    vm.write_file("/tmp/x", bytes(1 << 20))
    assert len(vm.read_file("/tmp/x")) == 1 << 20
    several = [vm.popen(["sh", "-c", "echo a; sleep 0.1; echo b >&2"]) for _ in range(5)]
    assert [process.wait() for process in several] == [0] * 5
    # Wakes the guest from its sleep by timers, and its kernel's random numbers by instruction.
    vm.run(["sh", "-c", "sleep 0.2; head -c 100000 /dev/urandom | wc -c"])
"""

NOT_ALWAYS = {
    "clock_gettime": "where the host's clock source cannot be read without the kernel",
    "mmap": "the allocator decides by size",
    "mremap": "the allocator decides by size",
    "munmap": "the allocator decides by size",
    "brk": "the allocator decides by size",
}


STORAGE = {"preadv2", "pwritev2", "fdatasync", "fallocate"}
"""What the worker of a VM with a writable disk keeps besides."""


@needs_root
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("with_disk", [False, True], ids=["no-disk", "disk"])
def test_no_filter_allows_what_is_never_used(tmp_path: Path, with_disk: bool) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    (tmp_path / "traces").mkdir()
    workload = WORKLOAD.format(disks=f"[teuthis.Disk({str(disk)!r})]" if with_disk else "[]")
    command = ["strace", "-ff", "-qq", "-o", str(tmp_path / "traces/trace"), sys.executable, "-c"]
    subprocess.run([*command, workload], check=True, timeout=500)
    allowed = WORKER | (STORAGE if with_disk else set())
    used: dict[str, set[str]] = {"worker": set(), "hypervisor": set()}
    for file in (tmp_path / "traces").iterdir():
        text = file.read_text(errors="replace")
        before, locked, after = text.partition("\nseccomp(")
        if locked:
            process = "hypervisor" if "teuthis-hypervisor" in before else "worker"
            used[process] |= set(re.findall(r"^(\w+)\(", after, re.MULTILINE)) - {"seccomp"}
    assert used["worker"] <= allowed
    assert used["hypervisor"] <= HYPERVISOR
    assert allowed - used["worker"] <= NOT_ALWAYS.keys()
    assert HYPERVISOR - used["hypervisor"] <= NOT_ALWAYS.keys()
