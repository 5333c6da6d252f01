"""Whatever ends, and in whatever order: nothing stays behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest

import teuthis
from tests.guests.processes import alive, await_true, children, kill, open_files, zygotes
from teuthis import VM
from teuthis.root import machine, zygote

_OWNER = """
import sys, teuthis
vm = teuthis.VM("128M")
print("ready", flush=True)
process = vm.popen(["sleep", "1000"])
process.wait()
"""


def begin() -> tuple[VM, set[int]]:
    before = children(os.getpid())
    vm = VM("128M")
    pids = children(os.getpid()) - before
    assert len(pids) == 2
    return vm, pids


def test_closing_leaves_nothing() -> None:
    vm, pids = begin()
    vm.close()
    assert not alive(pids)
    assert vm.closed
    with pytest.raises(teuthis.VMClosed, match="start a new one"):
        vm.run(["true"])
    with pytest.raises(teuthis.VMClosed):
        vm.write_file("/tmp/x", b"")
    vm.close()
    assert sum(vm.flows()[flow].count for flow in ("agent.hello", "agent.resumed")) == 1


def test_descriptors_and_threads_are_given_back() -> None:
    teuthis.run(["true"], memory="128M")
    gc.collect()
    files, threads = open_files(), set(threading.enumerate())
    teuthis.run(["true"], memory="128M")
    gc.collect()
    await_true(lambda: open_files() <= files and set(threading.enumerate()) <= threads)


def test_an_exception_in_the_block_closes_the_vm() -> None:
    seen: list[VM] = []

    def fail() -> None:
        with VM("128M") as vm:
            seen.append(vm)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen[0].closed


def test_a_forgotten_vm_is_closed() -> None:
    vm, pids = begin()
    del vm
    gc.collect()
    assert not alive(pids)


def test_closing_wakes_those_who_wait() -> None:
    vm = VM("128M")
    threading.Timer(0.5, vm.close).start()
    with pytest.raises(teuthis.VMClosed):
        vm.run(["sleep", "1000"])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(victim: int) -> None:
    vm, pids = begin()
    kill(sorted(pids)[victim])
    with pytest.raises(teuthis.VMError, match="died"):
        vm.run(["sleep", "1000"])
    await_true(lambda: not alive(pids))
    vm.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_owner_leaves_nothing(number: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    pids = children(owner.pid) | zygotes(owner.pid)
    assert len(pids) == 3
    owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    await_true(lambda: not alive(pids))


def test_a_killed_owner_leaves_no_process_that_is_stuck() -> None:
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    pids = children(owner.pid) | zygotes(owner.pid)
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    await_true(lambda: not alive(pids))


def test_closing_a_vm_whose_processes_are_stuck() -> None:
    vm, pids = begin()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    vm.close()
    assert not alive(pids)


def stop_and_go_on(vm: VM) -> None:
    """As a frozen container, or a host that sleeps, does to all processes."""
    for pid in vm.machine.processes.values():
        os.kill(pid, signal.SIGSTOP)
        await_true(lambda pid=pid: "\nState:\tT" in Path(f"/proc/{pid}/status").read_text())  # type: ignore[misc]
        os.kill(pid, signal.SIGCONT)


def test_a_vm_that_is_stopped_by_the_host_goes_on(tmp_path: Path) -> None:
    with VM("128M", network=f"switch:stopped-{os.getpid()}") as vm:
        stop_and_go_on(vm)
        assert vm.run(["echo", "running"]).stdout == b"running\n"
        vm.pause()
        for _ in range(3):
            stop_and_go_on(vm)
        vm.resume()
        assert vm.run(["echo", "paused"]).stdout == b"paused\n"
    script = ["sh", "-c", "sleep 1; echo recorded"]
    with VM("128M", record=tmp_path / "recording") as vm, vm.popen(script) as process:
        for _ in range(10):
            stop_and_go_on(vm)
        assert process.stdout.read() == b"recorded\n"


def test_a_worker_that_comes_late_still_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PATIENCE", 100.0)
    vm, _ = begin()
    worker, hypervisor = (vm.machine.processes[name] for name in ("worker", "hypervisor"))
    process = vm.popen(["sh", "-c", "echo up; sleep 1; poweroff -f"])
    assert process.stdout.readline() == b"up\n"
    with suppress(ProcessLookupError):  # we may come late ourselves
        os.kill(worker, signal.SIGSTOP)
        await_true(lambda: not alive([hypervisor]))
        time.sleep(2)
        os.kill(worker, signal.SIGCONT)
    with pytest.raises(teuthis.GuestPowerOff):
        process.wait()
    process.close()
    vm.close()


def test_the_thread_that_started_a_vm_may_end() -> None:
    with ThreadPoolExecutor(1) as pool:
        vm = pool.submit(VM, "128M").result()
    with vm:
        assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_an_owner_killed_while_it_starts() -> None:
    for pause in (0.1, 0.2, 0.3, 0.4, 0.6):
        owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.DEVNULL)
        time.sleep(pause)
        pids = children(owner.pid) | zygotes(owner.pid)
        owner.kill()
        owner.wait()
        await_true(lambda pids=pids: not alive(pids))  # type: ignore[misc]


_FEW_DESCRIPTORS = """
import os, resource, time, teuthis
teuthis.VM("128M").close()  # the zygote is there, and stays
before = len(os.listdir("/proc/self/fd"))
for limit in range(12, 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
    try:
        teuthis.VM("128M").close()
    except teuthis.HostError as error:
        print(error)
    else:
        break
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    deadline = time.monotonic() + 100  # the console's reader closes its pipe when it sees the end
    while len(os.listdir("/proc/self/fd")) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    print(len(os.listdir("/proc/self/fd")))
"""


def test_too_few_descriptors() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FEW_DESCRIPTORS], capture_output=True, check=True, timeout=500
    )
    assert b"Too many open files" in done.stdout
    assert len({line for line in done.stdout.splitlines() if line.isdigit()}) == 1


def _use(vm: VM) -> str:
    try:
        vm.run(["true"])
    except teuthis.VMClosed as error:
        vm.close()
        return str(error)
    return "ran"


def test_a_fork_neither_uses_nor_holds_the_vm() -> None:
    vm, pids = begin()
    context = get_context("fork")
    hold = context.Event()
    says = context.Queue()

    def use_and_stay() -> None:
        says.put(_use(vm))
        hold.wait()

    fork = context.Process(target=use_and_stay)
    fork.start()
    assert "fork" in says.get(timeout=100)
    assert vm.run(["echo", "mine"]).stdout == b"mine\n"
    vm.close()
    assert not alive(pids)
    hold.set()
    fork.join()


def test_a_fork_starts_vms_from_a_zygote_of_its_own() -> None:
    vm, _ = begin()
    context = get_context("fork")
    says = context.Queue()

    def start_one() -> None:
        with VM("128M") as own:
            says.put(own.run(["echo", "mine"]).stdout)
        says.put(zygotes(os.getpid()))

    fork = context.Process(target=start_one)
    fork.start()
    assert says.get(timeout=100) == b"mine\n"
    own = says.get(timeout=100)
    assert len(own) == 1
    assert not own & zygotes(os.getpid())
    fork.join()
    await_true(lambda: not alive(own))
    assert vm.run(["echo", "still here"]).stdout == b"still here\n"
    vm.close()


def test_a_killed_zygote_ends_no_vm_and_is_replaced() -> None:
    vm, _ = begin()
    (killed,) = zygotes(os.getpid())
    kill(killed)
    await_true(lambda: not alive([killed]))
    assert teuthis.run(["echo", "another"], memory="128M").stdout == b"another\n"
    assert len(zygotes(os.getpid()) - {killed}) == 1
    assert vm.run(["echo", "alive"]).stdout == b"alive\n"
    vm.close()


def test_a_zygote_that_cannot_start_is_an_error_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = [sys.executable, "-c", "raise SystemExit(3)"]
    broken = zygote.Zygote(program)
    monkeypatch.setattr(zygote, "_current", broken)
    monkeypatch.setattr(zygote, "PROGRAM", program)
    with pytest.raises(teuthis.HostError, match=r"starts workers died \(exit status 3\)"):
        VM("128M")
    broken.close()


def test_ten_in_a_row() -> None:
    for number in range(10):
        before = children(os.getpid())
        assert teuthis.run(["echo", str(number)], memory="128M").stdout == b"%d\n" % number
        assert children(os.getpid()) <= before


def test_four_at_once() -> None:
    before = children(os.getpid())

    def hello(number: int) -> bytes:
        return teuthis.run(["echo", str(number)], memory="128M").stdout

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(hello, range(4))) == [b"0\n", b"1\n", b"2\n", b"3\n"]
    assert children(os.getpid()) <= before
