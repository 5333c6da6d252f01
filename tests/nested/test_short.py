"""`make test` of the kvm processor: in one nested machine, tiny guests and a stock kernel."""

import hashlib
import sys
from pathlib import Path

import pytest

from . import machine
from .test_kvm import built

pytestmark = pytest.mark.timeout(1800)

SCRIPT = """
TEUTHIS_TEST_PROCESSOR=kvm "$1" --test-threads=1 || exit
printf abc | "$2" run --processor kvm -- sh -c 'sha256sum; dmesg | grep Hypervisor; exit 3'
echo "exit code $?"
"""


def test_tiny_guests_and_a_stock_kernel_run_on_a_genuine_kvm() -> None:
    teuthis = Path(sys.executable).with_name("teuthis")
    programs = [str(built("test", "conformance")), str(teuthis)]
    result = machine.run(["sh", "-c", SCRIPT, "sh", *programs], timeout=1500)
    assert " 0 failed" in result.output, result.output
    assert hashlib.sha256(b"abc").hexdigest() in result.output, result.output
    assert "Hypervisor detected: Microsoft Hyper-V" in result.output
    assert result.output.splitlines()[-1] == "exit code 3"
