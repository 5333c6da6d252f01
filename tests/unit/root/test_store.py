"""The list of VMs: transactions, versions, whose it is."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from teuthis import errors
from teuthis.protocol import Health
from teuthis.root import life, remote, store
from teuthis.root.failure import Failure
from teuthis.root.life import ProcessId
from teuthis.root.plan import Plan
from teuthis.root.record import Ending


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEUTHIS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def dead() -> ProcessId:
    """A process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return ProcessId(life.boot(), child.pid, 1)


def test_a_vm_without_a_directory_is_not_listed(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "vms").touch(mode=0o600)
    with pytest.raises(errors.HostError, match="cannot be used"):
        store.add("web", Plan())
    assert store.records() == []


def test_from_start_to_rm(home: Path) -> None:
    plan = Plan(memory="128M", command=("sh", "-c", "x"), env={"A": "b"})
    record = store.add("web", plan)
    assert (record.state, store.find("web")) == ("starting", record)
    store.kept(record.run)
    assert store.find("web").keeper == life.this_process()
    store.ready(record.run)
    assert [each.state for each in store.running()] == ["running"]
    assert store.lives(record.run)
    with pytest.raises(errors.ConfigurationError, match="stop it first"):
        store.remove("web")
    with pytest.raises(errors.ConfigurationError, match="nothing to start"):
        store.again("web")
    store.ended(record.run, Ending.on_request())
    assert (store.find("web").state, store.find("web").reason) == ("stopped", "stopped on request")
    new = store.again("web")
    assert new.run != record.run
    assert (new.id, new.plan, new.state) == (record.id, plan, "starting")
    assert not store.lives(record.run)
    store.ended(new.run, Ending(1.0, asked=False, exit_code=3))
    assert store.find("web").reason == "its program ended with exit code 3"
    assert record.directory.is_dir()
    store.remove("web")
    assert not record.directory.exists()
    assert store.records() == []
    store.ended(new.run, Ending.on_request())  # too late, and no harm


def test_a_failure_comes_back_as_the_error_it_was() -> None:
    record = store.add("web", Plan())
    store.ended(record.run, Ending.of(errors.GuestPanic("it crashed", "last\nwords")))
    error = remote.why(store.find("web"))
    assert isinstance(error, errors.GuestPanic)
    assert (error.last_words, str(error)) == (
        "last\nwords",
        "the VM 'web' has ended: it crashed\nlast\nwords",
    )
    assert store.find("web").reason == "it crashed"
    for kind in ("NoSuchError", "os", "__class__", "annotations"):
        assert type(Failure(kind, "text").error()) is errors.TeuthisError
    missing = Failure.of(errors.MissingWall("landlock", "old kernel")).error()
    assert isinstance(missing, errors.MissingWall)
    assert "landlock" in str(missing)


def test_a_dead_keeper_and_another_boot() -> None:
    record = store.add("web", Plan())
    for keeper, reason in (
        (dead(), "was killed"),
        (ProcessId(life.boot(), os.getpid(), life.this_process().start + 1), "was killed"),
        (msgspec.structs.replace(life.this_process(), boot="another"), "host was restarted"),
    ):
        found = msgspec.structs.replace(record, keeper=keeper, ready=1.0)
        assert (found.state, found.live) == ("dead", False)
        assert reason in found.reason
        assert "is dead" in str(remote.why(found))


def test_a_zombie_does_not_live() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    start = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    process = ProcessId(life.boot(), child.pid, start)
    assert process.alive
    process.kill()
    assert not process.alive  # though nobody has collected it
    process.kill()
    child.wait()


def test_one_of_many_gets_a_name() -> None:
    barrier = threading.Barrier(8)

    def add(_: int) -> bool:
        barrier.wait()
        try:
            store.add("web", Plan())
        except errors.ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 1


def test_many_write_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.add(f"vm-{number}", Plan()), range(40)))
    assert len(store.records()) == 40


def test_nobody_else_reads_it(home: Path) -> None:
    store.add("web", Plan(env={"SECRET": "x"}))
    database = home / store.DATABASE
    assert database.stat().st_mode & 0o777 == 0o600
    assert (home / "vms").stat().st_mode & 0o777 == 0o700
    database.chmod(0o644)
    with pytest.raises(errors.HostError, match="nobody else's"):
        store.records()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_somebody_elses_is_refused(home: Path) -> None:
    store.records()
    os.chown(home / store.DATABASE, 65534, 65534)
    with pytest.raises(errors.HostError, match="look who made it"):
        store.records()


def test_a_link_is_refused(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (tmp_path / "elsewhere").touch(0o600)
    (home / store.DATABASE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.HostError):
        store.records()


def test_a_newer_version_is_refused(home: Path) -> None:
    store.records()
    with sqlite3.connect(home / store.DATABASE) as database:
        database.execute(f"PRAGMA user_version = {store.VERSION + 1}")
    database.close()
    with pytest.raises(errors.HostError, match=f"version {store.VERSION + 1}"):
        store.add("web", Plan())


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_database_is_said_so(home: Path, content: bytes) -> None:
    store.records()
    (home / store.DATABASE).write_bytes(content)
    with pytest.raises(errors.HostError, match="cannot be used"):
        store.records()


def test_a_damaged_row_is_said_so(home: Path) -> None:
    store.add("web", Plan())
    with sqlite3.connect(home / store.DATABASE) as database:
        database.execute("UPDATE vm SET plan = '{\"memory\": []}'")
    database.close()
    with pytest.raises(errors.HostError, match="damaged"):
        store.find("web")


def test_a_keeper_that_is_just_dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel closes a killed process's sockets before it says that the process is gone."""
    monkeypatch.setattr(remote, "_DEATH_PATIENCE", 100.0)
    record = store.add("web", Plan())
    with subprocess.Popen(["sleep", "1000"]) as child:
        start = life._start(child.pid)
        assert start is not None
        store._update(record.run, "keeper", store._text(ProcessId(life.boot(), child.pid, start)))
        store.ready(record.run)
        found = store.find("web")
        threading.Timer(0.7, child.kill).start()
        with pytest.raises(errors.VMError, match="is dead: its keeper"):
            remote.Remote(found)


def test_a_keeper_that_is_none(home: Path) -> None:
    record = store.add("web", Plan())
    store.kept(record.run)
    store.ready(record.run)
    record = store.find("web")
    with pytest.raises(errors.HostError, match="does not answer"):
        remote.Remote(record)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with remote.address(record) as path:
        listener.bind(path)
    listener.listen()

    def greet(packet: bytes) -> None:
        client, _ = listener.accept()
        client.send(packet)
        client.close()

    welcome = remote.Welcome(remote.VERSION + 1, remote.register(), {}, {}, "root", Health.UNKNOWN)
    other = msgspec.msgpack.encode(welcome)
    for packet, says in ((b"garbage", "does not greet"), (other, "another version")):
        thread = threading.Thread(target=greet, args=(packet,))
        thread.start()
        with pytest.raises(errors.HostError, match=says):
            remote.Remote(record)
        thread.join()
    listener.close()
