"""The attackers of `tests/isolation` in the nested machine: their guest is on a genuine KVM."""

import sys

import pytest

from . import machine
from .test_kvm import built

pytestmark = pytest.mark.timeout(3600)

# The device is everybody's, as on hosts that let their users run virtual machines. What the tests
# write down as evidence has no place in a checkout that cannot be written to.
SCRIPT = """
chmod 666 /dev/kvm
mount -t tmpfs evidence build/evidence
exec "$0" -m pytest -q -p no:cacheprovider -o timeout=0 -o addopts= "$@"
"""


def run(*words: str) -> str:
    built("example", "prisoner")
    (machine.ROOT / "build/evidence").mkdir(parents=True, exist_ok=True)
    command = ["sh", "-c", SCRIPT, sys.executable, *words]
    result = machine.run(command, timeout=3000)
    assert result.exit_code == 0, result.output
    return result.output


def test_nothing_works_behind_the_walls_of_a_hypervisor_with_kvm() -> None:
    places = [f"tests/isolation/test_{name}.py" for name in ("attacks", "system_calls", "walls")]
    # Landlock knows signals from Linux 6.12 on, which the nested machine's kernel is not yet.
    output = run("-k", "hypervisor-kvm and not landlock_alone", *places)
    assert "failed" not in output
    assert " passed" in output


def test_a_worker_that_was_taken_over_hurts_no_vm_on_kvm() -> None:
    output = run("tests/isolation/test_vm.py", "-k", "ends_the_vm or disks or believes")
    assert "failed" not in output
    assert " passed" in output
