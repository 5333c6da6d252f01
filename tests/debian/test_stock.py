"""A Debian that boots by itself, with systemd and hyperv-daemons, and nothing of ours in it."""

import io
import time
from collections.abc import Iterator

import pytest

import teuthis
from tests.guests.processes import await_true
from teuthis.images import make

pytestmark = pytest.mark.timeout(1800)
BOOT = 900.0
DAEMON = 300.0
"""Seconds until all of systemd is up, on a busy host."""


@pytest.fixture(scope="module")
def image() -> str:
    return make.build("debian-stock", say=print).name


@pytest.fixture(scope="module")
def log() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture(scope="module")
def vm(image: str, log: io.BytesIO) -> Iterator[teuthis.VM]:
    """One boot for all tests here; the last of them shuts it down."""
    with teuthis.VM("512M", image=image, agent=False, console=log, boot_timeout=BOOT) as vm:
        yield vm


def test_it_is_alive(vm: teuthis.VM) -> None:
    assert vm.health is teuthis.Health.ALIVE
    await_true(lambda: vm.flows()["integration.timesync"].count == 1)


def test_it_has_no_agent(vm: teuthis.VM) -> None:
    with pytest.raises(teuthis.NoAgent, match="without our agent"):
        vm.run(["true"])
    with pytest.raises(teuthis.NoAgent):
        vm.read_file("/etc/os-release")
    with pytest.raises(teuthis.NoAgent):
        vm.write_file("/tmp/x", b"")
    assert vm.flows()["agent.hello"].count == 0


def test_it_tells_facts(vm: teuthis.VM) -> None:
    deadline = time.monotonic() + DAEMON
    while True:
        try:
            facts = vm.facts()
            break
        except teuthis.NoFacts:
            assert time.monotonic() < deadline
    assert facts["OSName"] == "Debian GNU/Linux"
    assert facts["OSBuildNumber"].endswith("-cloud-amd64")
    assert facts["ProcessorArchitecture"] == "x86_64"


def test_it_powers_off_cleanly(vm: teuthis.VM, log: io.BytesIO) -> None:
    vm.shutdown(timeout=DAEMON)
    assert vm.closed
    words = log.getvalue()
    assert b"All filesystems unmounted." in words
    with pytest.raises(teuthis.GuestPowerOff):
        vm.facts()


def test_an_image_boots_with_our_agent_or_without(image: str) -> None:
    with pytest.raises(teuthis.ConfigurationError, match="agent=False"):
        teuthis.VM(image=image)
    with pytest.raises(teuthis.ConfigurationError, match="with our agent only"):
        teuthis.VM(agent=False)
