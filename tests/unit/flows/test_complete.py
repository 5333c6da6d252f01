"""Everything that code can tell apart has exactly one entry in the register, and the reverse."""

import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from teuthis.flows import FLOWS, Flow
from teuthis.worker.agent import frames
from teuthis.worker.devices.integration import heartbeat, kvp, shutdown, timesync
from teuthis.worker.devices.network import nvsp, rndis
from teuthis.worker.devices.storage import scsi, storvsp
from teuthis.worker.vmbus import messages

ROOT = Path(__file__).parents[3]
INTERCEPTS = {
    "SliceEnd": (),
    "Kicked": (),
    "Cpuid": ("intercept.cpuid",),
    "MsrRead": ("msr.",),
    "MsrWrite": ("msr.",),
    "PortRead": ("port.",),
    "PortWrite": ("port.",),
    "Hypercall": ("hypercall.",),
    "Halt": ("intercept.halt",),
    "Shutdown": ("intercept.shutdown",),
}
"""Why a processor stops, and the flows that this is."""


def variants(file: str, name: str) -> set[str]:
    """The variants of an enum in Rust."""
    text = (ROOT / file).read_text(encoding="utf-8")
    body = re.search(rf"pub enum {name}(?:<'\w+>)? {{\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)
    assert body is not None
    return set(re.findall(r"^    ([A-Z]\w*)", body[1], re.MULTILINE))


def kebab(name: str) -> str:
    return re.sub(r"(?<=.)(?=[A-Z])", "-", name).lower()


def family(prefix: str, direction: str) -> dict[str, Flow]:
    """The flows of a family that have a number on the wire, in one direction."""
    return {
        name: flow
        for name, flow in FLOWS.items()
        if name.startswith(prefix) and flow.direction == direction and flow.opcode is not None
    }


def test_each_intercept() -> None:
    assert variants("hypervisor/src/processor/mod.rs", "Intercept") == set(INTERCEPTS)
    named = [prefix for prefixes in INTERCEPTS.values() for prefix in prefixes]
    for flow in FLOWS.values():
        ours = flow.kind == "intercept" and flow.receiver == "hypervisor"
        assert not ours or any(flow.id.startswith(prefix) for prefix in named), flow.id


@pytest.mark.parametrize(
    ("enum", "direction"),
    [("FromWorker", "worker-to-hypervisor"), ("ToWorker", "hypervisor-to-worker")],
)
def test_each_message_of_the_link(enum: str, direction: str) -> None:
    names = {f"link.{kebab(name)}" for name in variants("hypervisor/src/link.rs", enum)}
    assert names == set(family("link.", direction))


def ranges(family: str, pairs: Iterable[tuple[str, str]]) -> list[tuple[int, int, str]]:
    """(first, last, flow) of all numbers that the values of a family of flows name."""
    found = []
    spans = dict(pairs)
    for flow in FLOWS.values():
        if not flow.id.startswith(family):
            continue
        for name, value in flow.values.items():
            if name in spans:
                found.append((value, flow.values[spans[name]], flow.id))
            elif name not in spans.values():
                found.append((value, value, flow.id))
    return sorted(found)


def disjoint(found: list[tuple[int, int, str]]) -> None:
    for (_, last, one), (first, _, other) in pairwise(found):
        assert last < first, f"{one} and {other} share {first:#x}"


def test_each_register_belongs_to_one_flow() -> None:
    pairs = {"first": "last", "scontrol": "eom", "sint0": "sint15", "p0": "p4"}
    found = ranges("msr.", pairs.items())
    disjoint([each for each in found if not inside(each, found)])


def inside(one: tuple[int, int, str], found: list[tuple[int, int, str]]) -> bool:
    """Whether a register is named by itself in a range of the same flow."""
    return any(
        other is not one and other[0] <= one[0] <= one[1] <= other[1] and other[2] == one[2]
        for other in found
    )


def test_each_port_belongs_to_one_flow() -> None:
    cmos, serial, power = (FLOWS[f"port.{name}"].values for name in ("cmos", "serial", "power"))
    ports = [
        *(cmos["index"], cmos["data"]),
        *range(serial["base"], serial["base"] + serial["registers"]),
        *(power["sleep_control"], power["sleep_status"], power["reset"]),
        FLOWS["kvm.hypercall-exit"].values["port"],
    ]
    assert len(ports) == len(set(ports))


def test_each_message_of_vmbus() -> None:
    inbound = {shape.flow for shape in messages.INBOUND.values()}
    assert inbound == set(family("vmbus.", "guest-to-host"))
    outbound = {*messages._OUTBOUND, "vmbus.offer-channel"}
    assert outbound == set(family("vmbus.", "host-to-guest"))


def test_each_frame_of_the_agent() -> None:
    assert set(frames._PARSER_OF) == set(family("agent.", "guest-to-host"))
    agent = (ROOT / "guest/src/frames.rs").read_text(encoding="utf-8")
    taken = {kebab(name) for name in re.findall(r"=> Flow::(Agent\w+)", agent)}
    assert taken == {name.replace(".", "-") for name in family("agent.", "host-to-guest")}


def test_each_command_of_a_disk() -> None:
    no_command = re.compile(r".*_(max|action)")
    named = {
        value: flow.id
        for flow in FLOWS.values()
        if flow.id.startswith("scsi.")
        for name, value in flow.values.items()
        if not no_command.fullmatch(name)
    }
    served = {code: command.flow for code, command in scsi.COMMANDS.items()}
    assert served | {scsi.REPORT_LUNS: "scsi.report-luns"} == named


def test_each_operation_of_the_storage_channel() -> None:
    assert set(storvsp._FLOWS.values()) == set(family("storvsp.", "guest-to-host"))


def test_each_message_of_the_adapter() -> None:
    inbound = {shape.flow for shape in nvsp._INBOUND.values()} | {"nvsp.taken"}
    assert inbound == set(family("nvsp.", "guest-to-host"))
    assert set(rndis._NUMBERS.values()) == set(family("rndis.", "guest-to-host"))


def test_each_integration_service() -> None:
    services = (heartbeat.Heartbeat, kvp.KeyValuePairs, shutdown.Shutdown, timesync.TimeSync)
    answers = {service.flow for service in services} | {"integration.negotiation"}
    assert answers == set(family("integration.", "guest-to-host"))
