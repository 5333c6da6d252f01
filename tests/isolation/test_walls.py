"""Every wall, seen from outside: what the kernel says about a process behind them."""

import os
import signal
from pathlib import Path

import pytest

from teuthis.jail.identity import FIRST, PAIRS
from teuthis.jail.walls import WALLS

from ..guests.processes import alive, await_true
from .prison import NOBODY, OF_RUST, PRISONS, Prison, call

NAMESPACES = ["user", "net", "ipc", "uts", "cgroup", "mnt"]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limits(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[47:67].strip() for line in lines}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may look")


@needs_root
def test_a_user_id_of_its_own(prison: Prison) -> None:
    with prison.inmate() as one, prison.inmate() as other:
        uids = [{int(uid) for uid in status(pid)["Uid"].split()} for pid in (one, other)]
        gids = [{int(gid) for gid in status(pid)["Gid"].split()} for pid in (one, other)]
        groups = [status(pid)["Groups"] for pid in (one, other)]
    assert groups == ["", ""]
    if prison.user == "user":
        assert uids == gids == [{NOBODY}, {NOBODY}]
        return
    assert uids == gids
    assert all(len(ids) == 1 and FIRST <= min(ids) < FIRST + 2 * PAIRS for ids in uids)
    assert uids[0] != uids[1]


@needs_root
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_namespaces_of_its_own(prison: Prison, namespace: str) -> None:
    def of(pid: int | str) -> str:
        return str(Path(f"/proc/{pid}/ns/{namespace}").readlink())

    with prison.inmate() as one, prison.inmate() as other:
        assert len({of("self"), of(one), of(other)}) == 3


@needs_root
def test_the_user_namespace_knows_one_user(prison: Prison) -> None:
    with prison.inmate() as pid:
        uid = status(pid)["Uid"].split()[0]
        assert Path(f"/proc/{pid}/uid_map").read_text().split() == [uid, uid, "1"]
        assert Path(f"/proc/{pid}/gid_map").read_text().split() == [uid, uid, "1"]
        assert Path(f"/proc/{pid}/setgroups").read_text() == "deny\n"


@needs_root
def test_nothing_is_mounted_but_an_empty_root(prison: Prison) -> None:
    with prison.inmate() as pid:
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert len(mounts) == 1
        fields = mounts[0].split()
        assert fields[4] == "/"
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(fields[5].split(","))
        assert "tmpfs" in fields
        root = Path(f"/proc/{pid}/root")
        assert list(root.iterdir()) == []
        assert root.stat().st_mode & 0o777 == 0
        assert Path(f"/proc/{pid}/cwd").stat().st_ino == root.stat().st_ino


@needs_root
def test_no_network_interface_is_up(prison: Prison) -> None:
    with prison.inmate() as pid:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in lines if not line.startswith("  sit")] == [
            "lo"
        ]
        assert not Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]


@needs_root
def test_no_capability_in_any_set(prison: Prison) -> None:
    with prison.inmate() as pid:
        said = status(pid)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(said[name], 16) == 0, name


@needs_root
def test_no_new_privileges_and_a_filter(prison: Prison) -> None:
    with prison.inmate() as pid:
        said = status(pid)
    assert said["NoNewPrivs"] == "1"
    assert said["Seccomp"] == "2"
    assert said["Seccomp_filters"] == "1"
    assert said["Threads"] == "1"


@needs_root
def test_limits(prison: Prison) -> None:
    with prison.inmate() as pid:
        said = limits(pid)
    nothing = [
        "Max core file size",
        "Max processes",
        "Max file size",
        "Max locked memory",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
        "Max pending signals",
    ]
    assert {name: said[name] for name in nothing} == dict.fromkeys(nothing, "0")
    space = 768 if prison.process == "switch" else 256 + 1024
    assert int(said["Max address space"]) == space << 20
    assert int(said["Max open files"]) == (2 if prison.process in OF_RUST else 1024)


@needs_root
def test_nobody_of_its_user_may_look_into_it(prison: Prison) -> None:
    with prison.inmate() as pid:
        assert Path(f"/proc/{pid}/fd").stat().st_uid == 0


@needs_root
def test_only_the_descriptors_it_was_given(prison: Prison) -> None:
    with Path("/etc/passwd").open() as file, prison.inmate(given=[file.fileno()]) as pid:
        found = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    kinds = sorted(name.partition(":")[0] for name in found)
    assert set(kinds) <= {"pipe", "socket", "anon_inode", "/dev/null"}
    assert len(kinds) <= (10 if prison.kvm else 8)


def test_it_dies_with_whoever_started_it(prison: Prison) -> None:
    with prison.inmate() as pid:
        os.kill(int(status(pid)["PPid"]), signal.SIGKILL)
        await_true(lambda: not alive([pid]))


def test_the_session_keyring_is_its_own(prison: Prison) -> None:
    get_id = call("keyctl", 0, -3, 0)
    one, other = prison.attempt([get_id, get_id], without=["system-calls"])
    assert one.startswith("done ")
    assert one != other


def test_landlock_alone_keeps_signals_and_paths_away(prison: Prison) -> None:
    others = ["system-calls", "empty-root", "limits"]
    if prison.user == "root":
        others.append("identity")  # or the signal would fail for the other user id
    attacks = [call("kill", "parent", 0), call("openat", -100, "s:/etc/passwd", 0)]
    assert prison.attempt(attacks, without=others) == ["errno 1", "errno 13"]


def test_a_missing_wall_is_named() -> None:
    prison = next(prison for prison in PRISONS if prison.process == "hypervisor")
    answer = prison.attempt(["39"], without=["no-new-privileges"])
    assert len(answer) == 1
    assert "landlock" in answer[0]


def test_both_languages_know_the_same_walls() -> None:
    source = Path(__file__).parents[2] / "hypervisor/src/jail.rs"
    text = source.read_text().partition("pub const WALLS")[2].partition("];")[0]
    names = [part.partition('"')[2].partition('"')[0] for part in text.split("wall(")[1:]]
    assert names == [wall.name for wall in WALLS]
