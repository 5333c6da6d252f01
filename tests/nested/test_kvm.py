"""The kvm processor on a genuine `kvm_amd`: tiny guests, a stock kernel, the walls."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from teuthis.jail import identity
from teuthis.jail.system_calls import NUMBERS

from . import inside, machine

pytestmark = pytest.mark.timeout(900)

CARGO = {"test": ["test", "--no-run"], "example": ["build"]}


def built(kind: str, name: str) -> Path:
    """A test or an example of the hypervisor, built if it has to be."""
    command = ["cargo", *CARGO[kind], "--locked", "--message-format=json"]
    command += ["-p", "teuthis-hypervisor", f"--{kind}", name]
    output = subprocess.run(command, cwd=machine.ROOT, check=True, capture_output=True).stdout
    for message in map(json.loads, output.splitlines()):
        if message.get("executable") and message["target"]["name"] == name:
            return Path(message["executable"])
    raise LookupError(f"cargo built no {kind} {name}")


def test_the_tiny_guests_behave_as_on_the_software_processor() -> None:
    program = built("test", "conformance")
    result = machine.run(
        [str(program), "--test-threads=1"],
        timeout=600,
        environment={"TEUTHIS_TEST_PROCESSOR": "kvm"},
    )
    assert result.exit_code == 0, result.output
    assert " 0 failed" in result.output


def test_any_saved_machine_is_taken_or_refused() -> None:
    """The fuzz target of saved states, with a processor whose state the kernel takes as well."""
    program = built("test", "fuzz")
    result = machine.run(
        [str(program), "--exact", "any_saved_machine_is_taken_or_refused"],
        timeout=600,
        environment={"TEUTHIS_TEST_PROCESSOR": "kvm"},
    )
    assert result.exit_code == 0, result.output
    assert " 1 passed" in result.output


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What VMs did on KVM; see `inside`."""
    result = machine.run([sys.executable, "-m", "tests.nested.inside"], timeout=600)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return found


def test_a_genuine_kvm_is_found_usable_and_taken(seen: dict[str, Any]) -> None:
    assert (seen["verdict"], seen["processor"]) == ("usable", "kvm")


def test_a_stock_kernel_runs_the_main_job(seen: dict[str, Any]) -> None:
    digest = hashlib.sha256(bytes(inside.SHARED)).hexdigest()
    assert seen["job"] == [3, f"{digest}  -\n", "oops\n"]
    assert seen["file"]
    assert "Hypervisor detected: Microsoft Hyper-V" in seen["log"]
    assert "x2apic: enabled by BIOS" in seen["log"]
    assert "unchecked MSR access" not in seen["log"]


def test_a_vm_on_kvm_ends_like_any_other(seen: dict[str, Any]) -> None:
    assert seen["power-off"] == "GuestPowerOff"
    assert seen["crash"] == "GuestPanic"
    assert seen["loop"] == 0


def test_the_hypervisor_process_is_behind_its_walls(seen: dict[str, Any]) -> None:
    nothing = f"{0:016x}"
    assert seen["walls"] == {
        "Seccomp": "2",
        "NoNewPrivs": "1",
        "CapEff": nothing,
        "CapBnd": nothing,
        "Threads": "1",
    }
    # Standard input and the like, the link, two doorbells, and what /dev/kvm made; not itself.
    kvm = ["anon_inode:kvm-vcpu:0", "anon_inode:kvm-vm"]
    expected = ["/dev/null"] * 3 + ["anon_inode", *kvm, "pipe", "socket"]
    assert seen["descriptors"] == sorted(expected)


def test_what_kvm_answers_itself_does_not_reach_us(seen: dict[str, Any]) -> None:
    flows = seen["flows"]
    assert "intercept.cpuid" not in flows
    assert "intercept.halt" not in flows
    assert flows["kvm.hypercall-exit"][0] >= 10
    assert flows["msr.stimer"][0] > 10


def test_two_processors_work_and_share_the_interrupts(seen: dict[str, Any]) -> None:
    several = seen["several"]
    digest = hashlib.sha256(bytes(inside.SHARED)).hexdigest()
    assert (several["processors"], seen["four"]) == ("2", "4")
    assert several["job"] == [f"{digest}  /dev/sda\n"] * 2
    assert several["moved"] == "1\n"
    assert several["spread"][1] > 0
    assert several["walls"] == {"Seccomp": "2", "CapEff": f"{0:016x}", "Threads": "2"}
    assert several["closed in"] == ["2", "2"]


def test_a_python_program_runs_in_debian_on_two_processors(seen: dict[str, Any]) -> None:
    digest = hashlib.sha256(bytes(inside.SHARED)).hexdigest()
    expected = f"hello from debian on 2 processors\n{digest}\n"
    assert seen["debian"] == ["kvm", expected, ""]


def test_a_machine_is_saved_and_goes_on(seen: dict[str, Any]) -> None:
    several = seen["several"]
    digest = hashlib.sha256(bytes(inside.SHARED)).hexdigest()
    assert several["goes on"] == "2\nkept\n"
    assert several["restored"] == ["kvm", f"2\nkept\n{digest}  -\n"]
    assert several["copied"] == "2\nkept\n"
    assert "other features" in several["foreign"]


def test_copies_are_told_that_they_are_others_on_whichever_processor(seen: dict[str, Any]) -> None:
    assert seen["told"] == ["0 0\n", "1 0\n", "1 1\n"]


# Requests to the kernel, by their numbers (Linux `include/uapi/linux/kvm.h`).
SIGNAL_MSI = 0x4020AEA5
RUN = 0xAE80
GET_MP_STATE = 0x8004AE98
FORBIDDEN = {
    "KVM_CREATE_VCPU": ("vm", 0xAE41),
    "KVM_SET_USER_MEMORY_REGION": ("vm", 0x4020AE46),
    "KVM_CREATE_DEVICE": ("vm", 0xC00CAEE0),
    "KVM_IRQFD": ("vm", 0x4020AE76),
    "KVM_ENABLE_CAP": ("vm", 0x4068AEA3),
    "KVM_X86_SET_MSR_FILTER": ("vm", 0x4188AEC6),
    "KVM_SET_CPUID2": ("vcpu", 0x4008AE90),
    "KVM_SET_MSRS": ("vcpu", 0x4008AE89),
    "KVM_SET_SREGS": ("vcpu", 0x4138AE84),
    "KVM_SET_SIGNAL_MASK": ("vcpu", 0x4004AE8B),
    "KVM_SIGNAL_MSI of the processor": ("vcpu", SIGNAL_MSI),
    "KVM_RUN of the machine": ("vm", RUN),
    "FIONBIO": ("0", 0x5421),
}


@pytest.mark.parametrize("processors", [1, 2])
def test_only_the_listed_requests_pass_the_filter(processors: int) -> None:
    """With several processors the attacker is the thread of the last one."""
    ioctl, open_ = NUMBERS["ioctl"], NUMBERS["open"]
    attacks = [f"{ioctl} {fd} {request} buffer" for fd, request in FORBIDDEN.values()]
    attacks += [f"{open_} s:/dev/kvm 2"]
    allowed = [f"{ioctl} vcpu {GET_MP_STATE} buffer", f"{ioctl} vm {SIGNAL_MSI} buffer"]
    clone, thread = NUMBERS["clone"], 0x50F00
    names = [*FORBIDDEN, "open"]
    if processors > 1:
        attacks.append(f"{clone} {thread} 0 0 0 0")
        names.append("clone")
    prisoner = built("example", "prisoner")
    lines = "\n".join([*attacks, *allowed])
    shell = f'printf "%s\\n" "$ATTACKS" | "{prisoner}" --kvm /dev/kvm --uid {identity.FIRST}'
    shell += f" --processors {processors}"
    result = machine.run(["sh", "-c", shell], timeout=120, environment={"ATTACKS": lines})
    answers = result.output.splitlines()
    assert dict(zip(names, answers, strict=False)) == dict.fromkeys(names, "killed 31")
    rest = answers[len(names) :]
    assert len(rest) == len(allowed)
    assert not any(answer.startswith("killed") for answer in rest), rest
