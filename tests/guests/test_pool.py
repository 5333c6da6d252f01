"""Pools: VMs that are ready before anybody asks for them."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import teuthis
from tests.guests.processes import alive, await_true, children, kill
from teuthis import Pool


def test_a_vm_is_taken_and_replaced() -> None:
    before = children(os.getpid())
    with Pool(2, memory="128M", env={"WHO": "pool"}) as pool:
        pool.wait(100)
        assert pool.ready == 2
        with pool.take() as vm:
            assert vm.run(["sh", "-c", "echo $WHO"]).stdout == b"pool\n"
            pool.wait(100)  # the one that was taken does not count
            assert pool.ready == 2
        assert vm.closed
        kept = pool.take()
        pids = children(os.getpid()) - before
        assert len(pids) >= 4
    assert kept.closed
    assert not alive(pids)
    await_true(lambda: children(os.getpid()) <= before)
    with pytest.raises(teuthis.VMClosed, match="pool is closed"):
        pool.take()
    pool.close()


def test_nobody_gets_what_another_has() -> None:
    def use(number: int) -> bytes:
        with pool.take(100) as vm:
            vm.write_file("/tmp/mine", b"%d" % number)
            return vm.run(["sh", "-c", "ls /tmp | wc -l; cat /tmp/mine"]).stdout

    with Pool(2, memory="128M") as pool, ThreadPoolExecutor(4) as users:
        found = list(users.map(use, range(8)))
    assert found == [b"1\n%d" % number for number in range(8)]


def test_a_vm_that_died_while_it_waited_is_not_handed_out() -> None:
    with Pool(1, memory="128M") as pool:
        pool.wait(100)
        waiting = pool._ready[0]
        kill(waiting.machine.processes["worker"])
        await_true(lambda: waiting.closed)
        with pool.take(100) as vm:
            assert vm is not waiting
            assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_what_cannot_be_started_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise teuthis.HostError("this host is full")

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "_start", fail)
        pool = Pool(1, memory="128M")
        for _ in range(2):
            with pytest.raises(teuthis.HostError, match="full"):
                pool.take(100)
    with pool:
        try:
            vm = pool.take(100)
        except teuthis.HostError:  # the last one that was tried in vain
            vm = pool.take(100)
        assert vm.run(["echo", "again"]).stdout == b"again\n"


def test_taking_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    start, asked = Pool._start, threading.Event()

    def wait_and_start(pool: Pool) -> teuthis.VM:
        asked.wait()
        return start(pool)

    with Pool(1, memory="128M") as pool:
        pool.wait(100)
        monkeypatch.setattr(Pool, "_start", wait_and_start)
        pool.take(0)
        with pytest.raises(TimeoutError):
            pool.take(0)
        asked.set()
        pool.take(100)


def test_closing_wakes_those_who_wait() -> None:
    pool = Pool(1, memory="128M")
    pool.wait(100)
    threading.Timer(0.5, pool.close).start()

    def take_all() -> None:
        while True:
            pool.take(100)

    with pytest.raises(teuthis.VMClosed):
        take_all()


@pytest.mark.parametrize("size", [0, -1, 10_001])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(teuthis.ConfigurationError, match="pool"):
        Pool(size)
