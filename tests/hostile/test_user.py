"""A hostile root user in an ordinary guest: the VM goes on, or ends with a reason."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import teuthis
from tests.guests.processes import alive, children
from teuthis import VM

from .campaign import defect, private_memory

MAX_PRIVATE = 64 << 20


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The hostile user's program."""
    path = tmp_path_factory.mktemp("user") / "user"
    source = Path(__file__).with_name("user.c")
    flags = ("-O1", "-static", "-Wall", "-Wextra", "-Werror", "-Wno-unused-result")
    subprocess.run(["gcc", *flags, "-o", path, source], check=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def guest(program: bytes) -> Iterator[Callable[[], VM]]:
    """Gives a VM with the program in it: the last one, as long as it lives."""
    machines: list[VM] = []

    def get() -> VM:
        if not machines or machines[-1].closed:
            machines.append(VM("160M"))
            machines[-1].write_file("/tmp/user", program, mode=0o755)
        return machines[-1]

    yield get
    for machine in machines:
        machine.close()


def outcome(vm: VM, command: list[str], timeout: float) -> teuthis.TeuthisError | None:
    """How a command ended: well, or with this error."""
    try:
        vm.run(command, timeout=timeout, max_output=1 << 20)
    except teuthis.TeuthisError as error:
        return error
    return None


def attack(vm: VM, *command: str, timeout: float = 300) -> teuthis.TeuthisError | None:
    """Runs a command, which mostly comes to its end, and judges what becomes of the VM."""
    pids = children(os.getpid())
    error = outcome(vm, list(command), timeout)
    assert all(private_memory(pid) < MAX_PRIVATE for pid in pids)
    after = outcome(vm, ["true"], timeout=60)
    assert not [e for e in (error, after) if e is not None and defect(str(e))]
    if after is not None:
        # A guest that has done itself in; its owner can still be rid of it.
        vm.close()
        assert len(alive(pids)) <= len(pids) - 2
    return error


@pytest.mark.parametrize("device", ["mem", "port", "kmsg", "ttyS0"])
def test_devices(device: str, guest: Callable[[], VM]) -> None:
    vm = guest()
    assert attack(vm, "/tmp/user", device) is None
    assert not vm.closed


def test_connections_to_every_port_of_the_host(guest: Callable[[], VM]) -> None:
    vm = guest()
    before = vm.flows()["vmbus.tl-connect-request"]
    attack(vm, "/tmp/user", "sockets")
    assert not vm.closed
    after = vm.flows()["vmbus.tl-connect-request"]
    assert after.rejected - before.rejected > 100
    assert after.count == before.count  # the agent's own connection stands, there is no other


def test_floods_of_output(guest: Callable[[], VM]) -> None:
    vm = guest()
    assert isinstance(attack(vm, "yes"), teuthis.OutputTooLarge)
    assert not vm.closed


def test_a_memory_hog(guest: Callable[[], VM]) -> None:
    attack(guest(), "/tmp/user", "hog", timeout=6)


def test_a_fork_bomb(guest: Callable[[], VM]) -> None:
    attack(guest(), "/tmp/user", "forks", timeout=4)


@pytest.mark.parametrize("keys", ["feits", "b", "o", "c"])
def test_emergency_keys(keys: str, guest: Callable[[], VM]) -> None:
    script = "; ".join(f"echo {key} > /proc/sysrq-trigger" for key in keys)
    error = attack(guest(), "sh", "-c", script, timeout=300 if len(keys) == 1 else 15)
    endings = {"b": teuthis.GuestReset, "o": teuthis.GuestPowerOff, "c": teuthis.GuestPanic}
    assert keys not in endings or isinstance(error, endings[keys])


def test_every_port(guest: Callable[[], VM]) -> None:
    vm = guest()
    error = attack(vm, "/tmp/user", "ports")
    assert isinstance(error, teuthis.GuestReset)  # the last port it comes to
    assert vm.flows()["port.unknown"].rejected > 300_000


def test_an_agent_that_was_tampered_with(guest: Callable[[], VM]) -> None:
    vm = guest()
    attack(vm, "/tmp/user", "agent", timeout=15)
