"""The gate: what grows is noticed, what shrinks is welcome."""

import re
import tomllib

import pytest
from tests.register import evidence, lock, measure, report, threat_model
from tests.register.evidence import Evidence

from teuthis.flows import FLOWS
from teuthis.flows.squid import draw

BEFORE: lock.Surface = {
    "flows": {"ring/worker": 2},
    "limits": {"ring.packet": 100},
    "system_calls": {"worker": ["read", "write"]},
    "kvm_requests": {"vm": ["0x1"]},
    "unsafe": {"hypervisor": 20},
    "bytes": {"hypervisor": 500_000},
    "lines": {"ring.packet": 20},
}


def changed(section: str, name: str, value: object) -> list[lock.Change]:
    now = {**BEFORE, section: {**BEFORE[section], name: value}}
    return list(lock.changes(BEFORE, now))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("flows", "ring/worker", 3),
        ("flows", "ring/root", 1),
        ("limits", "ring.packet", 101),
        ("limits", "ring.packet/queue_max", 1),
        ("system_calls", "worker", ["read", "write", "openat"]),
        ("kvm_requests", "vm", ["0x1", "0x2"]),
        ("unsafe", "hypervisor", 21),
        ("bytes", "hypervisor", 600_000),
        ("lines", "ring.packet", 30),
    ],
)
def test_growth_is_noticed(section: str, name: str, value: object) -> None:
    (change,) = changed(section, name, value)
    assert change.grew
    assert name in str(change)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("flows", "ring/worker", 1),
        ("limits", "ring.packet", 99),
        ("system_calls", "worker", ["read"]),
        ("bytes", "hypervisor", 400_000),
        ("lines", "ring.packet", 10),
    ],
)
def test_shrinking_is_fine(section: str, name: str, value: object) -> None:
    (change,) = changed(section, name, value)
    assert not change.grew


def test_small_moods_of_the_compiler_are_tolerated() -> None:
    assert not changed("bytes", "hypervisor", 505_000)
    assert not changed("bytes", "hypervisor", None)
    assert not changed("lines", "ring.packet", 24)


def test_the_lock_survives_its_file() -> None:
    text = lock.text(BEFORE, ["2026-01-01: a “reason” with \\ and \n in it"])
    document = tomllib.loads(text)
    assert document.pop("reasons") == ["2026-01-01: a “reason” with \\ and \n in it"]
    assert document == BEFORE


@pytest.mark.parametrize("flow", FLOWS)
def test_every_handler_is_measured(flow: str) -> None:
    spans = measure.spans(FLOWS[flow])
    assert spans
    for span in spans:
        text = span.path.read_text().splitlines()[span.first - 1 : span.last]
        assert "\n".join(text) == span.text.rstrip("\n")
        assert 0 < span.code_lines() <= len(text)


def test_code_is_counted_without_comments_and_documentation() -> None:
    span = measure.Span(
        measure.ROOT / "x.py",
        1,
        '    def f():\n        """Doc."""\n\n        # why\n        pass\n',
    )
    assert span.code_lines() == 2
    assert span.last == 5


def test_the_system_calls_are_those_of_the_filters() -> None:
    calls = measure.system_calls()
    assert {"read", "write", "exit_group"} <= set(calls["worker"])
    assert {"ppoll", "exit_group"} <= set(calls["hypervisor"])
    assert not {"open", "openat", "execve", "socket"} & {
        call for of in calls.values() for call in of
    }
    assert "ioctl" not in calls["hypervisor"]
    assert {"ioctl", *calls["hypervisor"]} < set(calls["hypervisor-kvm"])


def test_the_program_for_kvm_is_small() -> None:
    # "About 600 kB" is what the essay behind this project says of a good hypervisor.
    size = measure.program_bytes("hypervisor-kvm")
    assert size is None or size <= 600_000


def test_the_requests_to_kvm_are_those_of_the_filter() -> None:
    requests = measure.kvm_requests()
    assert "0xAE80" in requests["vcpu"], "KVM_RUN"
    assert set(requests) == {"vm", "vcpu", "save", "restore"}


def test_a_kind_of_bad_input_that_no_test_raises_is_found() -> None:
    flow = FLOWS["ring.packet"]
    test, kind = flow.tests[0], (flow.id, "bounds")
    assert kind in evidence.unproven(Evidence())
    proven = Evidence({test: {kind}})
    assert kind not in evidence.unproven(proven)
    assert (flow.id, "type") in evidence.unproven(proven)
    assert evidence.refusing(flow, "bounds", proven) == [test]
    assert kind in evidence.unproven(Evidence({test: {("ring.send", "bounds")}}))
    assert kind in evidence.unproven(Evidence({"tests/elsewhere.py::test": {kind}}))


def test_a_fuzz_target_that_does_not_reach_its_handler_is_found() -> None:
    flow = FLOWS["ring.packet"]
    assert flow in evidence.unreached(Evidence())
    assert flow not in evidence.unreached(Evidence(reached={flow.fuzz: {flow.id}}))
    assert set().union(*evidence.handlers(flow.fuzz).values()) >= {flow.id}


def test_the_threat_model_names_every_flow() -> None:
    text = threat_model.text()
    assert "{{" not in text
    for flow in FLOWS.values():
        assert f"**`{flow.id}`**" in text
        assert flow.threat in text


def test_coverage_is_read_for_the_handler_alone(tmp_path: object) -> None:
    from pathlib import Path

    (span,) = measure.spans(FLOWS["ring.packet"])
    records = [
        f"SF:{span.path}",
        f"DA:{span.first},3",
        f"BRDA:{span.first},0,0,1",
        f"BRDA:{span.first},0,1,-",
        f"DA:{span.last},1",
        f"DA:{span.last + 1},0",
        "end_of_record",
    ]
    directory = Path(str(tmp_path))
    (directory / "some.info").write_text("\n".join(records))
    hits = report.coverage(directory)
    assert report.covered(FLOWS["ring.packet"], hits) == "50%"
    assert report.covered(FLOWS["agent.hello"], hits) == ""


def test_the_attack_surface_has_not_grown() -> None:
    grown = [change for change in lock.changes(lock.read()[0], lock.surface()) if change.grew]
    assert not grown, (
        "the attack surface grew:\n  "
        + "\n  ".join(map(str, grown))
        + '\nif it must: make flows-lock REASON="what grew and why it must"'
    )


def test_each_agreement_gave_a_reason() -> None:
    locked, reasons = lock.read()
    assert reasons
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d: \S.{9,}", reason) for reason in reasons)
    assert lock.PATH.read_text() == lock.text(locked, reasons)


def test_the_drawing_is_up_to_date() -> None:
    drawing = (measure.ROOT / "docs/squid.svg").read_text(encoding="utf-8")
    assert drawing == draw(), "the register has changed: make docs"


def test_the_threat_model_is_up_to_date() -> None:
    page = threat_model.PATH.read_text(encoding="utf-8")
    assert page == threat_model.text(), "the register or its prose has changed: make docs"
