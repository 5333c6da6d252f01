"""The nested machine itself: a genuine KVM, exit codes, time limits."""

import sys

import pytest

from . import machine

ASK = """
import fcntl, os
kvm = os.open("/dev/kvm", os.O_RDWR)
print("version", fcntl.ioctl(kvm, 0xAE00, 0))
vm = fcntl.ioctl(kvm, 0xAE01, 0)
print("processor", fcntl.ioctl(vm, 0xAE41, 0) > 0)
raise SystemExit(3)
"""


def test_kvm_is_there_and_makes_a_processor() -> None:
    result = machine.run([sys.executable, "-I", "-c", ASK], timeout=300)
    assert result == machine.Result(3, "version 12\nprocessor True")


def test_what_does_not_end_is_ended() -> None:
    with pytest.raises(machine.NestedError, match="within 1 s"):
        machine.run(["sleep", "1000"], timeout=1)
