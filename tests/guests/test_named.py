"""VMs that outlive the command that started them: their life from `start` to `rm`."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import teuthis
from tests.guests.named import home, listed
from tests.guests.processes import CLI, PATIENCE, alive, await_true, children, run, start
from teuthis.cli import start as command_line
from teuthis.root import named, remote, store
from teuthis.root.keeper import MAX_CONNECTIONS
from teuthis.root.record import Record


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with home(tmp_path_factory.mktemp("data")) as path:
        yield path


@pytest.fixture(scope="module")
def web(data: Path) -> Iterator[str]:
    """A running VM for all tests that leave it as it is."""
    done = run("start", "--name", "web", "--memory", "128M", "--env", "GREETING=hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    yield "web"
    assert run("exec", "web", "--", "echo", "alive").stdout == b"alive\n"


def test_it_outlives_the_command_and_is_listed(web: str) -> None:
    entry = listed()[web]
    assert (entry["state"], entry["plan"]["memory"]) == ("running", "128M")
    assert b"running" in run("ls").stdout
    keeper = entry["keeper"]["pid"]
    fields = Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()
    assert fields[4] == "0"  # no controlling terminal
    assert os.getsid(keeper) not in (os.getsid(0), keeper)  # and none to be had
    assert len(children(keeper)) == 2


def test_exec_is_like_run(web: str) -> None:
    script = "echo $GREETING $MORE; echo err >&2; pwd; cat; exit 3"
    done = run(
        *("exec", "--env", "MORE=more", "--workdir", "/tmp", web, "--", "sh", "-c", script),
        input=b"from stdin",
    )
    assert done.stdout == b"hello more\n/tmp\nfrom stdin"
    assert (done.stderr, done.returncode) == (b"err\n", 3)
    assert run("exec", web, "sh", "-c", "kill -TERM $$").returncode == 143
    assert run("exec", web, "no-such-program").returncode == 127
    done = run("exec", "--timeout", "1s", web, "--", "sleep", "1000")
    assert (done.returncode, b"time limit" in done.stderr) == (124, True)


def test_large_streams_pass_unharmed(web: str) -> None:
    data = os.urandom(5_000_000)
    assert run("exec", web, "cat", input=data).stdout == data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_ends_with_the_client_that_asked_for_it(web: str, number: signal.Signals) -> None:
    process = start("exec", web, "--", "sh", "-c", "echo begun; exec sleep 12345")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == (-9 if number is signal.SIGKILL else 128 + number)
    with teuthis.connect(web) as vm:
        await_true(lambda: b"12345" not in vm.run(["ps"]).stdout)


def test_from_python(web: str) -> None:
    with teuthis.connect(web) as vm, teuthis.connect(web) as other:
        vm.write_file("/tmp/x", b"content")
        assert other.read_file("/tmp/x") == b"content"
        with pytest.raises(teuthis.FileError):
            vm.read_file("/none")
        with other.popen(["sort"], stdin=teuthis.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"b\na\n")
            process.stdin.close()
            assert process.stdout.read() == b"a\nb\n"
        before = vm.flows()["agent.exec"].count
        assert vm.run(["echo", "$GREETING"], env={"A": "b"}).stdout == b"$GREETING\n"
        assert other.flows()["agent.exec"].count == before + 1
        vm.close()
        with pytest.raises(teuthis.VMClosed, match="connect again"):
            vm.run(["true"])
        assert other.run(["echo", "on"]).stdout == b"on\n"
    assert [record.name for record in teuthis.list() if record.state == "running"] == [web]


def test_many_clients_at_once(web: str) -> None:
    def hello(number: int) -> bytes:
        with teuthis.connect(web) as vm:
            return vm.run(["echo", str(number)]).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(hello, range(24))) == [b"%d\n" % number for number in range(24)]


def test_a_taken_name_is_refused(web: str) -> None:
    done = run("start", "--name", web)
    assert done.returncode == 125
    assert b"already" in done.stderr
    done = run("start", web)
    assert (done.returncode, b"nothing to start" in done.stderr) == (125, True)
    done = run("rm", web)
    assert (done.returncode, b"stop it first" in done.stderr) == (125, True)
    assert listed()[web]["state"] == "running"


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a-", "a" * 64, "a\nb", "é", "a b"])
def test_names_that_cannot_be(data: Path, name: str) -> None:
    for words in (["start", "--name", name], ["stop", "--", name], ["exec", "--", name, "true"]):
        done = run(*words)
        assert done.returncode == 125
        assert b"cannot be the name" in done.stderr
        assert b"Traceback" not in done.stderr
    assert name not in listed("-a")


def test_unknown_names(data: Path) -> None:
    for verb in ("start", "stop", "rm", "logs", "inspect"):
        done = run(verb, "nobody")
        assert (done.returncode, b"no VM 'nobody'" in done.stderr) == (125, True), verb


def test_its_program_ends_it_and_the_exit_code_is_kept(data: Path) -> None:
    script = r"printf '\033[31mred\033]0;x\007\n'; echo err >&2; sleep 1; echo end; exit 5"
    done = run("start", "--name", "job", "--memory", "128M", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, b"")
    followed = run("logs", "-f", "job")
    assert followed.stdout.decode() == "red0;x\N{REPLACEMENT CHARACTER}\nerr\nend\n"
    await_true(lambda: listed("-a")["job"]["state"] == "ended")
    entry = listed("-a")["job"]
    assert (entry["exit_code"], entry["reason"]) == (5, "its program ended with exit code 5")
    assert "job" not in listed()
    assert b"Linux version" in run("logs", "--kernel", "job").stdout
    done = run("exec", "job", "true")
    assert (done.returncode, b"exit code 5" in done.stderr) == (125, True)
    assert run("rm", "job").returncode == 0
    assert "job" not in listed("-a")


def ended(record: Record) -> bool:
    return not store.lives(record.run)


def gone(record: Record) -> bool:
    return record.keeper is not None and not record.keeper.alive


def ready(record: Record) -> bool:
    try:
        return store.find_run(record.run).ready is not None
    except teuthis.ConfigurationError:  # forgotten by its starter
        return False


@pytest.mark.parametrize("over", [ended, gone])
def test_a_program_that_ends_before_its_starter_connects(
    data: Path, monkeypatch: pytest.MonkeyPatch, over: Callable[[Record], bool]
) -> None:
    def late(record: Record) -> named.NamedVM:
        await_true(lambda: over(record))
        return connect(record)

    connect = named.NamedVM
    monkeypatch.setattr(named, "NamedVM", late)
    with pytest.raises(teuthis.VMClosed, match="exit code 3"):
        teuthis.start("brief", ["sh", "-c", "exit 3"], memory="128M")
    assert listed("-a")["brief"]["exit_code"] == 3
    command_line.main(["brief"], memory="128M")
    command_line.main(["true"], name="briefer", memory="128M")
    assert listed("-a")["briefer"]["exit_code"] == 0
    assert run("rm", "brief", "briefer").returncode == 0


def test_stop_and_start_again(data: Path) -> None:
    vm = teuthis.start("again", memory="128M")
    pids = set(vm.processes.values())
    vm.write_file("/tmp/x", b"gone with the VM, as /tmp is memory")
    vm.stop()
    assert not alive(pids)
    with pytest.raises(teuthis.VMClosed, match="stopped on request"):
        vm.run(["true"])
    assert listed("-a")["again"]["reason"] == "stopped on request"
    assert run("stop", "again").returncode == 0  # a second time
    assert run("start", "again").returncode == 0
    with teuthis.connect("again") as vm:
        assert vm.run(["test", "-e", "/tmp/x"]).exit_code == 1
    assert run("stop", "--now", "again").returncode == 0
    assert run("rm", "again").returncode == 0


def test_what_a_guest_wrote_to_a_disk_is_there_when_it_starts_again(
    data: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    done = run("start", "--name", "disk", "--memory", "128M", "--disk", f"{disk},cow")
    assert (done.returncode, done.stderr) == (0, b"")
    write = "echo kept | dd of=/dev/sda bs=512 conv=sync"
    assert run("exec", "disk", "--", "sh", "-c", write).returncode == 0
    assert run("stop", "disk").returncode == 0
    assert run("start", "disk").returncode == 0
    assert run("exec", "disk", "--", "head", "-c5", "/dev/sda").stdout == b"kept\n"
    assert disk.read_bytes() == bytes(1 << 20)
    directory = Path(listed()["disk"]["directory"])
    assert (directory / "disk-1.layer").exists()
    assert run("rm", "--force", "disk").returncode == 0
    assert not directory.exists()


def test_a_guest_that_does_not_end_is_ended(data: Path) -> None:
    with teuthis.start("deaf", memory="128M") as vm:
        pids = set(vm.processes.values())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        vm.stop(1)
    assert not alive(pids)
    teuthis.remove("deaf")


def test_a_guest_that_ends_itself_keeps_its_reason(data: Path) -> None:
    with teuthis.start("panic", memory="128M") as vm:
        with pytest.raises(teuthis.GuestPanic) as caught:
            vm.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60"])
        assert "sysrq" in caught.value.last_words
    entry = listed("-a")["panic"]
    assert (entry["state"], "crashed" in entry["reason"]) == ("ended", True)
    with pytest.raises(teuthis.GuestPanic, match="'panic' has ended") as caught:
        teuthis.connect("panic")
    assert "sysrq" in caught.value.last_words
    teuthis.remove("panic")


def test_a_killed_keeper_takes_its_vm_along(data: Path) -> None:
    with teuthis.start("orphan", memory="128M") as vm:
        pids = set(vm.processes.values())
        record = store.find("orphan")
        assert record.keeper is not None
        os.kill(record.keeper.pid, signal.SIGKILL)
        with pytest.raises(teuthis.VMError, match="died or was killed"):
            vm.run(["sleep", "1000"])
    await_true(lambda: not alive(pids))
    entry = listed()["orphan"]
    assert (entry["state"], "was killed" in entry["reason"]) == ("dead", True)
    assert run("start", "orphan").returncode == 0
    assert run("exec", "orphan", "echo", "back").stdout == b"back\n"
    teuthis.remove("orphan", force=True)


def test_sigterm_ends_it_in_order(data: Path) -> None:
    with teuthis.start("term", memory="128M") as vm:
        record = store.find("term")
        assert record.keeper is not None
        os.kill(record.keeper.pid, signal.SIGTERM)
        with pytest.raises(teuthis.VMError):
            vm.run(["sleep", "1000"])
    assert store.find("term").state == "stopped"
    teuthis.remove("term")


def test_a_start_that_fails_leaves_nothing(data: Path) -> None:
    done = run("start", "--name", "bad", "--kernel", "/dev/null")
    assert done.returncode == 125
    assert b"Traceback" not in done.stderr
    assert run("start", "--name", "bad", "--memory", "128M", "--", "no-such").returncode == 127
    assert run("start", "--name", "bad", "--memory", "1M").returncode == 125
    assert "bad" not in listed("-a")
    assert len(list((data / "vms").iterdir())) == len(listed("-a"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_start_that_is_interrupted_leaves_no_process(data: Path, number: signal.Signals) -> None:
    for _ in range(10):
        process = start("start", "--name", "hasty", "--memory", "128M")
        await_true(lambda: any(each.name == "hasty" and each.keeper for each in store.records()))
        record = store.find("hasty")
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
        await_true(lambda record=record: gone(record) or ready(record))  # type: ignore[misc]
        if gone(record):
            break
        teuthis.remove("hasty", force=True)  # it had started before we came to it
    assert gone(record)
    if number is signal.SIGKILL:
        assert listed("-a")["hasty"]["state"] == "dead"
        teuthis.remove("hasty")
    assert "hasty" not in listed("-a")


def test_eight_starts_at_once(data: Path) -> None:
    names = [f"many-{number}" for number in range(8)]
    processes = [start("start", "--name", name, "--memory", "96M") for name in names]
    for process in processes:
        _, err = process.communicate(timeout=3 * PATIENCE)
        assert (process.returncode, err) == (0, b"")
    assert {name for name, each in listed().items() if each["state"] == "running"} >= set(names)
    assert run("rm", "--force", *names).returncode == 0


def test_one_of_several_gets_the_name(data: Path) -> None:
    processes = [start("start", "--name", "one", "--memory", "96M") for _ in range(5)]
    results = []
    for process in processes:
        _, err = process.communicate(timeout=3 * PATIENCE)
        results.append((process.returncode, b"already" in err))
    assert sorted(results) == [(0, False)] + [(125, True)] * 4
    assert run("exec", "one", "echo", "here").stdout == b"here\n"
    teuthis.remove("one", force=True)


def test_its_processes_and_counters_are_shown(web: str) -> None:
    processes = json.loads(run("inspect", "--json", web).stdout)["processes"]
    surfaces = json.loads(run("surface", "--vm", web, "--json").stdout)
    assert [each["pid"] for each in surfaces] == [processes["worker"], processes["hypervisor"]]
    assert all(each["no_new_privileges"] and not each["capabilities"] for each in surfaces)
    assert b"hypervisor" in run("surface", "--vm", web).stdout
    assert b"agent.hello" in run("flows", web).stdout
    counts = json.loads(run("flows", web, "--json", "--receiver", "worker").stdout)
    assert counts["agent.hello"]["count"] == 1
    assert "agent.exec" not in counts
    for words in (["surface", "--vm", "nobody"], ["flows", "nobody"]):
        assert b"no VM" in run(*words).stderr


# ---- the socket ----------------------------------------------------------------------------------


def raw(name: str) -> socket.socket:
    """A connection to a keeper, past its greeting."""
    record = store.find(name)
    deadline = time.monotonic() + PATIENCE
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(PATIENCE)
        with remote.address(record) as path:
            client.connect(path)
        packet, pages, _, _ = socket.recv_fds(client, 4096, remote.MAX_PAGES)
        for page in pages:
            os.close(page)
        if packet:
            return client
        # Clients of other tests have gone, and it has not noticed yet.
        client.close()
        assert time.monotonic() < deadline, "no room for another connection"


def test_garbage_in_the_socket_ends_that_connection_only(web: str) -> None:
    with teuthis.connect(web) as bystander:
        for garbage in (
            b"x",
            bytes(32),
            os.urandom(5000),
            b"\x81\xa4type\xa4exec",
            b"\xc1" * 131072,
        ):
            with raw(web) as client:
                client.send(garbage)
                assert client.recv(100) == b""
        assert bystander.flows()["keeper.request"].rejected >= 4
        with raw(web) as client:  # descriptors without a request for them
            socket.send_fds(client, [b"x"], [0, 1, 2])
            assert client.recv(100) == b""
        assert bystander.run(["echo", "well"]).stdout == b"well\n"


def test_more_connections_than_allowed(web: str) -> None:
    clients = [raw(web) for _ in range(MAX_CONNECTIONS)]
    with pytest.raises(teuthis.HostError, match="no more connections"):
        teuthis.connect(web)
    for client in clients:
        client.close()
    await_true(lambda: run("exec", web, "true").returncode == 0)


def test_a_client_that_reads_nothing_harms_nobody(web: str) -> None:
    from teuthis.protocol import ReadFile, encode_request

    with raw(web) as client:
        for number in range(300):
            read, write = os.pipe()
            try:
                socket.send_fds(client, [encode_request(ReadFile(number, "/none"))], [write])
            except OSError:
                break  # it has been shown the door
            finally:
                os.close(read)
                os.close(write)
        with teuthis.connect(web) as vm:
            # The worker takes so many sessions at once: its user may have to wait for his own.
            await_true(lambda: _echo(vm) == b"well\n")


def _echo(vm: teuthis.NamedVM) -> bytes:
    try:
        return vm.run(["echo", "well"]).stdout
    except teuthis.CommandError:
        return b""


def test_nobody_else_gets_in(web: str) -> None:
    """What stands behind these modes: tests/isolation/test_keeper.py."""
    record = store.find(web)
    assert record.directory.stat().st_mode & 0o077 == 0
    assert record.socket.stat().st_mode & 0o077 == 0
    for log in record.directory.glob("*.log"):
        assert log.stat().st_mode & 0o077 == 0


def test_stopping_while_others_use_it(data: Path) -> None:
    vm = teuthis.start("busy", memory="128M")
    seen: list[BaseException] = []

    def use() -> None:
        try:
            with teuthis.connect("busy") as mine:
                mine.run(["sleep", "1000"])
        except teuthis.TeuthisError as error:
            seen.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    await_true(lambda: vm.run(["ps"]).stdout.count(b"sleep 1000") == 4)
    named.stop("busy", now=True)
    for thread in threads:
        thread.join()
    assert [type(error) for error in seen] == [teuthis.VMClosed] * 4
    teuthis.remove("busy")


def test_the_command_line_says_what_to_do(data: Path) -> None:
    assert CLI
    assert run("start").returncode == 125
    assert run("start", "one", "two").returncode == 125
