"""What a worker has from the zygote: nothing that a fresh process would not have but its layout."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import teuthis
from teuthis.jail import identity
from teuthis.root import zygote

from ..guests.processes import CLI, alive, await_true, children, zygotes
from .prison import PRISONS, Prison, call
from .test_walls import NAMESPACES, limits, needs_root, status

WORKERS = [prison for prison in PRISONS if prison.process == "worker"]


@contextmanager
def two_vms() -> Iterator[tuple[int, int, int]]:
    """The zygote of this process and two workers."""
    # On the software processor both start from one template.
    with teuthis.VM("128M", processor="soft") as one, teuthis.VM("128M", processor="soft") as other:
        workers = [vm.machine.processes["worker"] for vm in (one, other)]
        (mother,) = zygotes(os.getpid())
        yield mother, workers[0], workers[1]
    assert not alive(workers)


def open_files(pid: int) -> set[tuple[str, int]]:
    """What is open: its kind or name, and its inode."""
    return {
        (re.sub(r"\d+", "", str(path.readlink())), path.stat().st_ino)
        for path in Path(f"/proc/{pid}/fd").iterdir()
    }


def opened_for_writing(pid: int, name: str) -> bool:
    """Whether a file whose path ends with `name` is open for more than reading."""
    modes = [
        int(Path(f"/proc/{pid}/fdinfo/{path.name}").read_text().split()[3], 8) & os.O_ACCMODE
        for path in Path(f"/proc/{pid}/fd").iterdir()
        if str(path.readlink()).endswith(name)
    ]
    assert modes
    return set(modes) != {os.O_RDONLY}


def shared_objects(pid: int) -> set[str]:
    """Memory that others can see change: what is mapped shared and writable, by inode."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if line.split()[1] == "rw-s"}


@needs_root
def test_it_is_a_child_of_the_owner_and_leads_a_session_of_its_own() -> None:
    with two_vms() as (mother, *workers):
        for pid in (mother, *workers):
            said = status(pid)
            assert int(said["PPid"]) == os.getpid()
            assert int(said["NSsid"].split()[0]) == pid
            assert said["Threads"] == "1"
        assert [status(pid)["Name"] for pid in workers] == ["teuthis-worker"] * 2


@needs_root
def test_the_zygote_holds_one_socket_and_no_memory_of_anybody() -> None:
    with two_vms() as (mother, *_):
        assert sorted(kind for kind, _ in open_files(mother)) == ["/dev/null", "socket:[]"]
        assert len(list(Path(f"/proc/{mother}/fd").iterdir())) == 4
        assert shared_objects(mother) == set()
        assert Path(f"/proc/{mother}/environ").read_bytes() == b""
        assert Path(f"/proc/{mother}/cwd").readlink() == Path("/")
        # Tracing it, or reading its memory, takes more than its user's rights.
        assert Path(f"/proc/{mother}/mem").stat().st_uid == 0


@needs_root
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_that_of_a_command_holds_no_more_and_ends_with_it(number: signal.Signals) -> None:
    # A command starts it first of all, with whatever its shell has left open.
    left, other = os.pipe()
    command = [*CLI, "run", "--", "sh", "-c", "echo up; exec sleep 1000"]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[other], cwd="/tmp")
    os.close(other)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        (mother,) = zygotes(owner.pid)
        assert sorted(kind for kind, _ in open_files(mother)) == ["/dev/null", "socket:[]"]
        assert len(list(Path(f"/proc/{mother}/fd").iterdir())) == 4
        assert Path(f"/proc/{mother}/environ").read_bytes() == b""
        assert Path(f"/proc/{mother}/cwd").readlink() == Path("/")
        assert int(status(mother)["NSsid"].split()[0]) == mother
        pids = {mother} | children(owner.pid)
        assert len(pids) == 3
        os.kill(mother, signal.SIGSTOP)
        owner.send_signal(number)
        await_true(lambda: not alive(pids))
        assert os.read(left, 1) == b""  # nobody has the other end
    os.close(left)


RESERVE = """
import sys, time
from teuthis.root.reserved import Reserved
reserved = Reserved(256 << 20)
print(reserved.own.worker, flush=True)
sys.stdin.read()
reserved.__exit__()
print("closed", flush=True)
time.sleep(1000)
"""


@needs_root
@pytest.mark.parametrize("number", [None, signal.SIGKILL, signal.SIGTERM])
def test_a_worker_without_a_vm_has_nothing_and_ends_with_its_owner(
    number: signal.Signals | None,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RESERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        uid = owner.stdout.readline().strip()
        await_true(lambda: any(waits(pid, uid) for pid in children(owner.pid)), 60)
        (pid,) = children(owner.pid)
        said = status(pid)
        assert {int(said[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {0}
        assert sorted(kind for kind, _ in open_files(pid)) == ["/dev/null", "socket:[]"]
        assert shared_objects(pid) == set()
        for name in NAMESPACES:
            own, ours = (Path(f"/proc/{who}/ns/{name}").readlink() for who in (pid, "self"))
            assert own != ours
        if number is None:
            owner.stdin.close()
            assert owner.stdout.readline() == "closed\n"
            assert not alive([pid])
            owner.kill()
        else:
            everybody = {pid} | zygotes(owner.pid)
            owner.send_signal(number)
            await_true(lambda: not alive(everybody))


def waits(pid: int, uid: str) -> bool:
    """Whether a worker has raised its first walls and sleeps."""
    said = status(pid)
    raised = said["Uid"].split()[0] == uid and said["NoNewPrivs"] == "1"
    return raised and said["State"].startswith("S")


@needs_root
def test_siblings_share_no_memory_and_no_file_but_their_template_to_read() -> None:
    with two_vms() as (mother, one, other):
        files = [
            {(kind, inode) for kind, inode in open_files(pid) if kind != "/dev/null"}
            for pid in (mother, one, other)
        ]
        assert not files[0] & (files[1] | files[2])
        both = {kind for kind, _ in files[1] & files[2]}  # all these have one inode, and none
        (template,) = both - {"anon_inode:[eventpoll]", "anon_inode:[eventfd]"}
        assert template.endswith("/memory")
        assert not any(opened_for_writing(pid, "/memory") for pid in (one, other))
        assert shared_objects(one)
        assert not shared_objects(one) & shared_objects(other)
        assert Path(f"/proc/{one}/environ").read_bytes() == b""


@needs_root
def test_siblings_have_ids_namespaces_and_limits_of_their_own() -> None:
    with two_vms() as (mother, one, other):
        uids = [status(pid)["Uid"].split()[0] for pid in (mother, one, other)]
        assert uids[0] == "0"
        assert len(set(uids)) == 3
        assert all(int(uid) >= identity.FIRST for uid in uids[1:])
        for name in ("user", "net", "ipc", "uts", "cgroup", "mnt"):
            links = {str(Path(f"/proc/{pid}/ns/{name}").readlink()) for pid in (mother, one, other)}
            assert len(links) == 3, name
        for pid in (one, other):
            said = status(pid)
            assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
            assert {int(said[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {0}
            assert limits(pid)["Max processes"] == "0"
        assert limits(mother)["Max processes"] == limits(os.getpid())["Max processes"]


@needs_root
def test_a_secret_of_the_program_is_in_no_process_of_a_vm() -> None:
    secret = os.urandom(32)
    with two_vms() as (mother, one, _):
        for pid in (mother, one):
            assert not _holds(pid, secret)
        assert _holds(os.getpid(), secret)  # the search finds what is there


def _holds(pid: int, secret: bytes) -> bool:
    """Whether the process has these bytes in memory that it can write."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in lines:
            place, mode, *_ = line.split()
            if not mode.startswith("rw") or "memfd:teuthis-ram" in line:
                continue
            start, end = (int(part, 16) for part in place.split("-"))
            while start < end:
                memory.seek(start)
                try:
                    piece = memory.read(min(end - start, 1 << 20))
                except OSError:  # unmapped since
                    break
                if secret in piece:
                    return True
                start += len(piece) or end
    return False


@pytest.mark.parametrize("prison", WORKERS, ids=lambda prison: prison.id)
def test_a_worker_without_its_filter_does_nothing_to_the_zygote(prison: Prison) -> None:
    zygote.warm()
    teuthis.VM("128M").close()
    (mother,) = zygotes(os.getpid())
    seize, attach = 0x4206, 16
    attacks = [
        call("kill", mother, 9),
        call("ptrace", attach, mother),
        call("ptrace", seize, mother, 0, 0),
        call("pidfd_open", mother, 0) + " ; " + call("pidfd_getfd", "r0", 3, 0),
    ]
    answers = prison.attempt(attacks, without=["system-calls"])
    assert answers == ["errno 1"] * len(attacks)
    assert alive([mother])
