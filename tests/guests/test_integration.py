"""Integration services of a stock kernel: power-off, heartbeat, time."""

import io
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import teuthis
from tests.guests.processes import await_true
from teuthis.worker.devices.integration.shutdown import WISHES_MAX

HEARTBEAT = "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"
UNBIND = f"echo {HEARTBEAT} > /sys/bus/vmbus/drivers/hv_utils/unbind"


def wait_for(condition: Callable[[], object]) -> None:
    """Patience for busy hosts."""
    await_true(condition, timeout=300)


def clock_error(vm: teuthis.VM) -> float:
    """Seconds by which the guest's clock may be wrong at least; 0 when it may be right."""
    before = time.time()
    text = vm.run(["adjtimex"]).stdout.decode()
    after = time.time()
    seconds, micros = (re.search(rf"tv_{unit}:\s+(\d+)", text) for unit in ("sec", "usec"))
    assert seconds
    assert micros
    now = int(seconds[1]) + int(micros[1]) / 1e6
    return max(before - now, now - after, 0.0)


def test_a_guest_is_alive_and_its_clock_right(vm: teuthis.VM) -> None:
    wait_for(lambda: vm.health is teuthis.Health.ALIVE)
    wait_for(lambda: vm.flows()["integration.timesync"].count >= 1)
    wait_for(lambda: clock_error(vm) < 0.25)


def test_services_are_agreed_upon_at_boot() -> None:
    with teuthis.VM("192M", cold=True) as vm:
        wait_for(lambda: vm.health is teuthis.Health.ALIVE)
        wait_for(lambda: vm.flows()["integration.timesync"].count >= 1)
        wait_for(lambda: clock_error(vm) < 0.25)
        assert vm.flows()["integration.negotiation"].count >= 3


def test_a_guest_powers_off_in_order() -> None:
    log = io.BytesIO()
    with teuthis.VM("192M", console=log) as vm:
        trap = "trap 'echo ended in order > /dev/kmsg; exit' TERM; echo up"
        trap += "; while :; do sleep 0.1; done"
        process = vm.popen(["sh", "-c", trap])
        assert process.stdout.readline() == b"up\n"
        vm.shutdown()  # at once: hv_utils is not even loaded yet
        process.close()
        assert vm.closed
        with pytest.raises(teuthis.GuestPowerOff):
            vm.run(["true"])
        vm.shutdown()  # it has
    assert b"ended in order" in log.getvalue()


def test_programs_of_a_guest_that_is_stopped_meanwhile_end_in_order() -> None:
    """Its clock goes on while the host does not let it run: timed patience would be over."""
    log = io.BytesIO()
    with teuthis.VM("192M", console=log) as vm:
        trap = "trap 'echo told > /dev/kmsg; sleep 1; echo ended in order > /dev/kmsg; exit' TERM"
        process = vm.popen(["sh", "-c", f"{trap}; echo up; while :; do sleep 0.1; done"])
        assert process.stdout.readline() == b"up\n"
        hypervisor = vm.machine.processes["hypervisor"]
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(vm.shutdown)
            wait_for(lambda: b"told" in log.getvalue())
            with suppress(ProcessLookupError):  # we may come late ourselves
                os.kill(hypervisor, signal.SIGSTOP)
                time.sleep(3)
                os.kill(hypervisor, signal.SIGCONT)
            ending.result()
        process.close()
    assert b"ended in order" in log.getvalue()


def test_poweroff_inside_the_guest_is_in_order() -> None:
    with teuthis.VM("192M") as vm:
        vm.popen(["poweroff"]).close()
        wait_for(lambda: vm.closed)
        with pytest.raises(teuthis.GuestPowerOff):
            vm.run(["true"])


def test_a_guest_that_does_not_power_off() -> None:
    with teuthis.VM("192M") as vm:
        vm.run(["sh", "-c", "echo /bin/true > /proc/sys/kernel/poweroff_cmd"], check=True)
        with pytest.raises(teuthis.ShutdownTimeout):
            vm.shutdown(timeout=3)
        assert vm.run(["echo", "still here"]).stdout == b"still here\n"


def test_wishes_that_a_guest_does_not_answer_are_bounded() -> None:
    with teuthis.VM("192M") as vm:
        hypervisor = vm.machine.processes["hypervisor"]
        os.kill(hypervisor, signal.SIGSTOP)
        status = Path(f"/proc/{hypervisor}/status")
        wait_for(lambda: "\nState:\tT" in status.read_text())
        for _ in range(WISHES_MAX):
            with pytest.raises(teuthis.ShutdownTimeout, match="did not answer"):
                vm.shutdown(timeout=0.001)
        with pytest.raises(teuthis.ShutdownTimeout, match="not answered many"):
            vm.shutdown(timeout=60)
        os.kill(hypervisor, signal.SIGCONT)
        wait_for(lambda: vm.closed)
        vm.shutdown()  # it has


def test_a_guest_without_a_daemon_has_no_facts(vm: teuthis.VM) -> None:
    with pytest.raises(teuthis.NoFacts, match="hv_kvp_daemon"):
        vm.facts()


def test_a_stopped_guest_is_hung_until_it_goes_on_and_its_clock_is_right() -> None:
    with teuthis.VM("192M") as vm:
        hypervisor = vm.machine.processes["hypervisor"]
        wait_for(lambda: vm.health is teuthis.Health.ALIVE)
        os.kill(hypervisor, signal.SIGSTOP)
        wait_for(lambda: vm.health is teuthis.Health.HUNG)
        os.kill(hypervisor, signal.SIGCONT)
        wait_for(lambda: vm.health is teuthis.Health.ALIVE)
        wait_for(lambda: clock_error(vm) < 0.25)


def test_a_hung_guest_is_ended_if_so_wished() -> None:
    with teuthis.VM("192M", on_hang="kill") as vm:
        wait_for(lambda: vm.health is teuthis.Health.ALIVE)
        vm.run(["sh", "-c", UNBIND], check=True)
        wait_for(lambda: vm.closed)
        with pytest.raises(teuthis.GuestHung):
            vm.run(["true"])


def test_power_off_unmounts_disks(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk], check=True)
    script = "mount /dev/sda /mnt && echo kept > /mnt/file; cd /mnt; echo up; exec sleep 1000"
    with teuthis.VM("192M", disks=[teuthis.Disk(disk)]) as vm:
        process = vm.popen(["sh", "-c", script])
        assert process.stdout.readline() == b"up\n"
        vm.shutdown()
        process.close()
    checked = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    state = subprocess.run(["dumpe2fs", "-h", disk], capture_output=True, text=True, check=True)
    assert re.search(r"^Filesystem state:\s+clean$", state.stdout, re.MULTILINE)
    assert "needs_recovery" not in state.stdout
    shown = subprocess.run(["debugfs", "-R", "cat /file", disk], capture_output=True, check=True)
    assert shown.stdout == b"kept\n"
