"""Guests that crash, end, flood or starve: each ends alone, with an error that says why."""

import io
from pathlib import Path

import pytest

import teuthis
from teuthis import VM


def end_by(script: str, memory: str = "128M") -> teuthis.VMError:
    with VM(memory) as vm:
        try:
            vm.run(["sh", "-c", script], timeout=300)
            vm.run(["sleep", "60"], timeout=300)
        except teuthis.VMError as error:
            return error
    pytest.fail("the guest lived on")


def test_a_panic_has_last_words() -> None:
    error = end_by("echo c > /proc/sysrq-trigger")
    assert isinstance(error, teuthis.GuestPanic)
    assert "sysrq" in error.last_words.lower()
    assert "\x1b" not in str(error)


def test_the_same_error_for_everybody_afterwards() -> None:
    with VM("128M") as vm:
        waiting = vm.popen(["sleep", "1000"])
        with pytest.raises(teuthis.GuestPanic):
            vm.run(["sh", "-c", "echo c > /proc/sysrq-trigger"], timeout=300)
        with pytest.raises(teuthis.GuestPanic):
            waiting.wait(100)
        with pytest.raises(teuthis.GuestPanic):
            vm.read_file("/etc/passwd")
        waiting.close()
        assert vm.closed


def test_power_off() -> None:
    assert isinstance(end_by("poweroff -f"), teuthis.GuestPowerOff)


def test_restart() -> None:
    assert isinstance(end_by("reboot -f"), teuthis.GuestReset)


def test_a_program_that_needs_too_much_memory() -> None:
    with VM("128M") as vm:
        with pytest.raises(teuthis.CommandOutOfMemory, match="memory=") as caught:
            vm.run(["sh", "-c", "exec tail /dev/zero"], timeout=300)
        assert caught.value.result is not None
        assert caught.value.result.signal == 9
        assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_a_guest_whose_memory_ran_out() -> None:
    error = end_by("echo 1 > /proc/sys/vm/panic_on_oom; tail /dev/zero")
    assert isinstance(error, teuthis.GuestOutOfMemory)


def test_a_flood_on_the_console_is_bounded() -> None:
    log = io.BytesIO()
    with VM("128M", console=log) as vm:
        script = "i=0; while [ $i -lt 20000 ]; do echo flood $i; i=$((i+1)); done > /dev/kmsg"
        vm.run(["sh", "-c", script], timeout=300)
        assert vm.run(["echo", "alive"]).stdout == b"alive\n"
    assert b"Linux version" in log.getvalue()


def test_too_little_time_to_boot() -> None:
    with pytest.raises(teuthis.BootTimeout, match=r"0\.05 s"):
        VM("128M", boot_timeout=0.05, cold=True)


@pytest.mark.parametrize("content", [b"", b"not a kernel", bytes(10_000), b"\x7fELF" + bytes(60)])
def test_a_file_that_is_no_kernel(tmp_path: Path, content: bytes) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(content)
    with pytest.raises(teuthis.KernelError, match="vmlinuz"):
        VM(kernel=kernel)


def test_a_kernel_that_is_not_there() -> None:
    with pytest.raises(teuthis.KernelError, match="/none"):
        VM(kernel="/none")


@pytest.mark.parametrize("memory", [0, -1, "1M", "95M", "100000T", "much"])
def test_impossible_memory_sizes(memory: int | str) -> None:
    with pytest.raises(teuthis.ConfigurationError):
        VM(memory)


def test_the_smallest_memory_boots() -> None:
    assert teuthis.run(["echo", "small"], memory="96M").stdout == b"small\n"


def test_more_memory_than_below_the_hole() -> None:
    result = teuthis.run(["free", "-m"], memory="3500M")
    assert int(result.stdout.split()[7]) > 3000
