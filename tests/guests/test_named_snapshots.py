"""VMs with names that are paused, saved, restored and copied."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import teuthis
from tests.guests.named import home, listed
from tests.guests.processes import run
from teuthis.worker.devices.integration.heartbeat import MISSED_MAX, PATIENCE, PERIOD

HANG_SECONDS = PERIOD + (MISSED_MAX + 1) * PATIENCE
"""After so long without a heartbeat a guest is hung."""


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home(tmp_path_factory.mktemp("data")) as path:
        yield path


@pytest.fixture(scope="module", autouse=True)
def guarded(data: Path) -> float:
    """A VM that is ended when it hangs, paused; since when."""
    done("start", "--name", "guarded", "--memory", "128M", "--on-hang", "kill")
    done("pause", "guarded")
    return time.monotonic()


@pytest.fixture(scope="module")
def web(data: Path) -> str:
    """A running VM for all tests that leave it as it is."""
    done("start", "--name", "web", "--memory", "128M", "--env", "GREETING=hello")
    done("exec", "web", "--", "sh", "-c", "echo prepared > /tmp/state")
    return "web"


@pytest.fixture(scope="module")
def saved(web: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "web"
    done("snapshot", web, str(path))
    return path


def done(*command: str) -> bytes:
    """What a command writes that succeeds."""
    found = run(*command)
    assert found.returncode == 0, found.stderr
    return found.stdout


def refused(*command: str) -> str:
    """What a command says that we refuse."""
    found = run(*command)
    assert found.returncode == 125, found
    assert b"Traceback" not in found.stderr
    return found.stderr.decode()


def state(name: str) -> str:
    with teuthis.connect(name) as vm:
        return vm.read_file("/tmp/state").decode()


def test_a_paused_vm_waits_and_says_so(web: str, tmp_path: Path) -> None:
    done("pause", web)
    try:
        assert listed()[web]["state"] == "paused"
        assert b"paused" in done("ls")
        assert b"paused" in done("inspect", web)
        assert "resume web" in refused("exec", web, "--", "true")
        assert "resume web" in refused("cp", f"{web}:/tmp/state", str(tmp_path))
        assert "paused already" in refused("pause", web)
        with teuthis.connect(web) as vm:
            assert vm.paused
            answers: list[bytes] = []
            asking = threading.Thread(target=lambda: answers.append(vm.run(["echo", "hi"]).stdout))
            asking.start()
            asking.join(1)
            assert not answers
            done("resume", web)
            asking.join()
            assert answers == [b"hi\n"]
            assert not vm.paused
    finally:
        run("resume", web)
    assert listed()[web]["state"] == "running"
    assert "not paused" in refused("resume", web)


def test_a_paused_vm_is_stopped_in_order(data: Path) -> None:
    with teuthis.start("sleeper", memory="128M") as vm:
        vm.pause()
    done("stop", "sleeper")
    (entry,) = (each for name, each in listed("-a").items() if name == "sleeper")
    assert (entry["state"], entry["reason"]) == ("stopped", "stopped on request")
    assert "has ended" in refused("pause", "sleeper")
    done("start", "sleeper")
    assert listed()["sleeper"]["state"] == "running", "nothing is left of the pause"
    done("pause", "sleeper")
    done("stop", "--now", "sleeper")
    assert "has ended" in refused("resume", "sleeper")


def test_a_snapshot_is_started_from_under_other_names(web: str, saved: Path) -> None:
    script = "cat /tmp/state; echo changed > /tmp/state; echo $GREETING $MORE"
    for name in ("one", "two"):
        done("start", "--name", name, "--restore", str(saved), "--env", "MORE=more")
        assert done("exec", name, "--", "sh", "-c", script) == b"prepared\nhello more\n"
    assert str(saved) in done("ls").decode()
    assert listed()["one"]["plan"]["memory"] == "128M"
    assert state(web) == "prepared\n"
    done("stop", "--now", "one")
    done("start", "one")
    assert state("one") == "prepared\n", "started again it goes on from the snapshot"
    done("rm", "--force", "one")
    done("rm", "--force", "two")


def test_a_restored_vm_may_be_for_a_program(saved: Path) -> None:
    with (  # either may find that the program, and with it the VM, has ended
        pytest.raises(teuthis.VMClosed),
        teuthis.start("job", ["cat", "/tmp/state"], restore=saved) as vm,
    ):
        vm.run(["sleep", "1000"])
    assert done("logs", "job") == b"prepared\n"


def test_snapshots_that_cannot_be_are_refused(web: str, saved: Path, tmp_path: Path) -> None:
    assert "exists" in refused("snapshot", web, str(saved))
    (tmp_path / "file").touch()
    assert "could not write" in refused("snapshot", web, str(tmp_path / "file" / "saved"))
    assert "no VM" in refused("snapshot", "nobody", str(tmp_path / "saved"))
    start = ("start", "--name", "new", "--restore")
    assert "cannot be read" in refused(*start, str(tmp_path / "none"))
    assert "from there" in refused(*start, str(saved), "--memory", "512M")
    assert "already" in refused("start", "--name", web, "--restore", str(saved))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for each in saved.iterdir():
        (damaged / each.name).write_bytes(each.read_bytes()[: -1 if each.name == "pages" else None])
    assert "damaged" in refused(*start, str(damaged))
    assert "new" not in listed("-a")


def test_a_paused_vm_is_saved_and_stays_paused(web: str, tmp_path: Path) -> None:
    with teuthis.connect(web) as vm:
        vm.pause()
        try:
            vm.snapshot(tmp_path / "saved")
            assert vm.paused
        finally:
            vm.resume()
        with pytest.raises(teuthis.SnapshotError, match="exists"):
            vm.snapshot(tmp_path / "saved")
    with teuthis.VM.restore(tmp_path / "saved") as vm:
        assert vm.read_file("/tmp/state") == b"prepared\n"


def test_copies_run_under_names_of_their_own(web: str, data: Path) -> None:
    done("fork", web, "left", "right")
    entries = listed()
    assert {entries[name]["state"] for name in (web, "left", "right")} == {"running"}
    for name in ("left", "right"):
        assert state(name) == "prepared\n"
        done("exec", name, "--", "sh", "-c", f"echo {name} > /tmp/state")
    assert [state(name) for name in (web, "left", "right")] == ["prepared\n", "left\n", "right\n"]
    memory = [
        data / "vms" / entries[name]["id"] / "origin" / "memory" for name in ("left", "right")
    ]
    assert memory[0].samefile(memory[1]), "they share their memory"
    done("rm", "--force", "left")
    done("stop", "--now", "right")
    done("start", "right")
    assert state("right") == "prepared\n", "it begins where it was made"
    done("fork", "right", "left")
    assert state("left") == "prepared\n"
    for name in ("left", "right"):
        done("rm", "--force", name)


def test_copies_that_cannot_be_are_refused(web: str) -> None:
    before = listed("-a").keys()
    assert "already" in refused("fork", web, "new", web)
    assert "name of its own" in refused("fork", web, "new", "new")
    assert "cannot be the name" in refused("fork", web, "new", "No Name")
    assert "no VM" in refused("fork", "nobody", "new")
    with (
        teuthis.connect(web) as vm,
        pytest.raises(teuthis.ConfigurationError, match="one at least"),
    ):
        vm.fork()
    assert listed("-a").keys() == before


def test_a_vm_that_is_paused_does_not_hang(guarded: float) -> None:
    time.sleep(max(0.0, guarded + HANG_SECONDS - time.monotonic()))
    assert listed()["guarded"]["state"] == "paused"
    done("resume", "guarded")
    assert done("exec", "guarded", "--", "echo", "alive") == b"alive\n"
