"""The register is complete and true: no handler without an entry, no entry without a handler.

Handlers are named `FILE#function` (Rust, below hypervisor/src) or `module:Qualified.name` (Python).
A source file takes part in a flow by naming it: `Flow::MsrSynic` in Rust, `"msr.synic"` in Python.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.drive import load
from hypothesis import given
from hypothesis import strategies as st

from teuthis.flows import FLOWS, RECEIVERS, Count, Counters, Flow, counters_size
from teuthis.flows.register import CAPABILITIES

ROOT = Path(__file__).parents[3]
KINDS = {
    "intercept", "instruction", "completion", "interrupt", "memory", "page-table", "hypercall",
    "message", "ring", "stream", "link", "frame", "control",
}  # fmt: skip
DIRECTIONS = {
    "guest-to-host", "host-to-guest", "both", "hypervisor-to-worker", "worker-to-hypervisor",
    "root-to-worker", "root-to-hypervisor", "worker-to-root", "worker-to-client",
    "client-to-worker",
    "client-to-root", "hypervisor-to-root", "hypervisor-to-client",
    "worker-to-switch", "switch-to-worker", "switch-to-passt", "passt-to-switch",
    "root-to-switch", "switch-to-root",
}  # fmt: skip
RUST = {path: path.read_text() for path in (ROOT / "hypervisor/src").rglob("*.rs")}
PYTHON = {path: path.read_text() for path in (ROOT / "src/teuthis").rglob("*.py")}


def camel(flow: str) -> str:
    return "".join(word.capitalize() for word in re.split(r"[.-]", flow))


def named_in_rust() -> set[str]:
    return set(re.findall(r"\bFlow::([A-Z]\w*)", "\n".join(RUST.values()))) - {"COUNT", "ALL"}


def named_in_python() -> set[str]:
    prefixes = {flow.split(".")[0] for flow in FLOWS}
    pattern = rf'"((?:{"|".join(sorted(prefixes))})\.[a-z][a-z-]*)"'
    return {name for text in PYTHON.values() for name in re.findall(pattern, text)}


@pytest.mark.parametrize("flow", FLOWS.values(), ids=list(FLOWS))
def test_entry_is_well_formed(flow: Flow) -> None:
    assert re.fullmatch(r"[a-z-]+(\.[a-z-]+)+", flow.id)
    assert flow.kind in KINDS
    assert flow.direction in DIRECTIONS
    assert flow.receiver in RECEIVERS
    assert flow.shape
    assert flow.threat
    assert 0 <= flow.min_bytes <= flow.max_bytes


@pytest.mark.parametrize("flow", FLOWS.values(), ids=list(FLOWS))
def test_handler_exists(flow: Flow) -> None:
    if "#" in flow.handler:
        file, function = flow.handler.split("#")
        assert re.search(rf"\bfn {re.escape(function)}\b", (ROOT / file).read_text()), flow.handler
    else:
        module, _, name = flow.handler.partition(":")
        value = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
        assert callable(value), flow.handler


@pytest.mark.parametrize("flow", FLOWS.values(), ids=list(FLOWS))
def test_named_tests_exist(flow: Flow) -> None:
    for test in flow.tests:
        file, _, function = test.partition("#" if "#" in test else "::")
        keyword = "fn" if "#" in test else "def"
        text = (ROOT / file).read_text()
        assert re.search(rf"\b{keyword} {re.escape(function)}\b", text), test


@pytest.mark.parametrize("target", sorted({flow.fuzz for flow in FLOWS.values()} - {""}))
def test_fuzz_targets_run_on_bytes(target: str) -> None:
    """A harness in Rust, or a test that needs nothing but its random data (`fuzz/drive.py`)."""
    rust = re.fullmatch(r"hypervisor/tests/fuzz/(\w+)\.rs#run", target)
    if rust:
        assert (ROOT / f"fuzz/rust/fuzz_targets/{rust[1]}.rs").exists()
        assert f'name = "{rust[1]}"' in (ROOT / "fuzz/rust/Cargo.toml").read_text()
        return
    load(target)(b"")


def test_every_flow_is_counted_somewhere() -> None:
    # RAM and the counters are mappings: an access to them is no event that anyone could count.
    # What KVM answers never reaches us.
    rust, python = named_in_rust(), named_in_python() | {"memory.ram", "control.counters"}
    ours = (name for name, flow in FLOWS.items() if flow.receiver != "host-kernel")
    idle = {flow for flow in ours if camel(flow) not in rust and flow not in python}
    assert not idle, f"entries of the register that no code counts: {sorted(idle)}"


def test_every_flow_in_the_code_has_an_entry() -> None:
    # Rust names are checked by its compiler: `Flow` is made from the register.
    strangers = named_in_python() - set(FLOWS)
    assert not strangers, f"flows in the code without an entry in flows.toml: {sorted(strangers)}"


def test_operation_codes_are_unique_among_their_kind() -> None:
    seen: dict[tuple[str, str, int], str] = {}
    for flow in FLOWS.values():
        if flow.opcode is not None:
            place = (flow.id.split(".")[0], flow.direction, flow.opcode)
            assert place not in seen, f"{flow.id} and {seen[place]} share number {flow.opcode}"
            seen[place] = flow.id


@given(st.binary(max_size=4096))
def test_any_page_is_read_as_numbers(content: bytes) -> None:
    page = os.memfd_create("counters")
    os.ftruncate(page, counters_size())
    os.pwrite(page, content[: counters_size()], 0)
    counters = Counters(page, writable=False)
    os.close(page)
    snapshot = counters.snapshot()
    assert list(snapshot) == list(FLOWS)
    for count in snapshot.values():
        assert all(0 <= number < 1 << 64 for number in (count.count, count.bytes, count.rejected))
    counters.close()


def test_counters_live_in_their_own_place() -> None:
    counters = Counters()
    names = list(FLOWS)
    counters.accept(names[0], 3)
    counters.accept(names[-1], 5)
    counters.reject("scsi.read", "host")
    counters.reject("scsi.read", "range")
    counters.reject("scsi.read", "range")
    snapshot = counters.snapshot()
    assert snapshot[names[0]] == Count(1, 3, 0)
    assert snapshot[names[-1]] == Count(1, 5, 0)
    assert snapshot["scsi.read"] == Count(0, 0, 3, {"host": 1, "range": 2})
    assert snapshot["scsi.read"] + Count(1, 1, 1, {"host": 1}) == Count(
        1, 1, 4, {"host": 2, "range": 2}
    )
    assert sum(count.count for count in snapshot.values()) == 2
    assert counters_size() >= 24 * len(names)
    counters.close()


def test_the_capabilities_of_kvm_are_those_that_the_hypervisor_uses() -> None:
    used = set()
    for path in (ROOT / "hypervisor/src/processor/kvm").glob("*.rs"):
        used |= set(re.findall(r"\bKVM_CAP_(\w+)", path.read_text()))
        for name in re.findall(r"\bCap::(\w+)", path.read_text()):
            used.add(re.sub(r"(?<=.)(?=[A-Z])", "_", name).upper())
    assert used == set(CAPABILITIES)


_SHOWN = """\
import sys
from teuthis.flows import register
print("tomllib" in sys.modules)
print(register.FINGERPRINT, register.RECEIVERS, register.CAPABILITIES, register.FLOWS)
"""


def test_what_is_kept_of_the_register_is_all_of_it(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)

    def look() -> tuple[str, str]:
        command = [sys.executable, "-c", _SHOWN]
        shown = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        parsed, _, content = shown.stdout.partition("\n")
        return parsed, content

    parsed, content = look()
    assert parsed == "True"
    assert look() == ("False", content)
    (kept,) = tmp_path.rglob("*.flows")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert look() == ("True", content)
    assert look() == ("False", content)
