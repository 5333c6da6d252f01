"""A hostile root user of a stock kernel: every MSR by the kernel's own driver, and hypercalls.

What only a hostile kernel reaches is attacked by the guests in `tests/hostile`.
"""

import contextlib
import subprocess
from pathlib import Path

import pytest

import teuthis
from teuthis import VM
from teuthis.flows import Count
from teuthis.images.kernel import default_kernel

SEED = "0x7e07715"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("registers") / "registers"
    source = Path(__file__).with_name("registers.c")
    subprocess.run(["gcc", "-static", "-O1", "-o", str(out), str(source)], check=True)
    return out.read_bytes()


def attack(
    vm: VM, program: bytes, subject: str, timeout: float = 300
) -> tuple[int, dict[str, Count]]:
    """Runs it; how many attempts the program saw refused, and what the host counted."""
    vm.write_file("/tmp/registers", program, 0o755)
    before = vm.flows()
    result = vm.run(["/tmp/registers", subject, SEED], timeout=timeout, check=True)
    after = vm.flows()
    return int(result.stdout), {
        flow: Count(
            after[flow].count - before[flow].count,
            after[flow].bytes - before[flow].bytes,
            after[flow].rejected - before[flow].rejected,
        )
        for flow in after
    }


def load_msr_driver(vm: VM) -> None:
    modules = default_kernel().modules
    assert modules is not None
    vm.write_file("/tmp/msr.ko", (modules / "kernel/arch/x86/kernel/msr.ko").read_bytes())
    vm.run(["insmod", "/tmp/msr.ko"], check=True)


def test_hypercalls_from_user_mode(vm: VM, program: bytes) -> None:
    refused, flows = attack(vm, program, "hypercalls")
    assert refused == 1000
    assert flows["hypercall.unknown"].rejected == 0  # none got that far
    assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_every_msr(program: bytes) -> None:
    with VM("128M") as vm:
        load_msr_driver(vm)
        refused, flows = attack(vm, program, "msrs")
        assert refused > 10_000
        assert flows["msr.unknown"].rejected > 10_000
        assert vm.run(["echo", "alive"]).stdout == b"alive\n"


def test_every_msr_that_the_guest_itself_needs(vm: VM, program: bytes) -> None:
    with VM("128M") as victim:
        load_msr_driver(victim)
        with contextlib.suppress(teuthis.TeuthisError):
            attack(victim, program, "all-msrs")
    assert victim.closed
    assert vm.run(["echo", "alive"]).stdout == b"alive\n"
