"""Each kind of bad input must have been raised by a test, each handler reached by its fuzz target.

`make test` records which kinds' counters rose during which test: recorder.py for Python and for
the processes that Python tests start, hypervisor/src/evidence.rs for Rust.
"""

import sys
import types
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec

from tests.register import measure
from teuthis.flows import FLOWS, Flow

ROOT = Path(__file__).parents[2]
DIRECTORY = Path("build/evidence")
PYTHON = "python.json"
RUST = "rust.log"
ELSEWHERE = {"kvm.hypercall-exit": "exists on KVM only: `make test-kvm` makes it refuse"}
"""Flows that `make test` cannot reach, and why."""

Kind = tuple[str, str]
"""A flow, and a kind of bad input of it."""


@dataclass
class Evidence:
    """What tests saw, by their names as the register writes them."""

    refused: dict[str, set[Kind]] = field(default_factory=dict)
    """The kinds of bad input that each test raised."""
    reached: dict[str, set[str]] = field(default_factory=dict)
    """The flows whose handlers each fuzz target called."""

    def __or__(self, other: "Evidence") -> "Evidence":
        return Evidence(self.refused | other.refused, self.reached | other.reached)


def write(root: Path, seen: Evidence) -> None:
    """Keeps what a session of pytest saw; tests that it did not run keep what they had."""
    path = root / DIRECTORY / PYTHON
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _python(path) | seen
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(known, order="sorted")))
    partial.replace(path)


def read(root: Path) -> Evidence:
    """What the last run of the tests saw.

    Rust tests are known by the names of their threads: module::function, or fuzz::target.
    """
    directory = root / DIRECTORY
    seen = _python(directory / PYTHON)
    if (path := directory / RUST).exists():
        for line in path.read_text().splitlines():
            thread, flow, kind = (*line.split(" "), "")[:3]
            if kind:
                test = "#" + thread.rpartition("::")[2]
                seen.refused.setdefault(test, set()).add((flow, kind))
            else:
                target = f"hypervisor/tests/fuzz/{thread.rpartition('::')[2]}.rs#run"
                seen.reached.setdefault(target, set()).add(flow)
    return seen


def _python(path: Path) -> Evidence:
    if not path.exists():
        return Evidence()
    return msgspec.json.decode(path.read_bytes(), type=Evidence)


@cache
def handlers(target: str) -> dict[types.CodeType, set[str]]:
    """The flows that name a Python fuzz target, by the code of their handlers."""
    found: dict[types.CodeType, set[str]] = {}
    for flow in FLOWS.values():
        if flow.fuzz == target and "#" not in flow.handler:
            handler = measure.handler(flow)
            functions = vars(handler).values() if isinstance(handler, type) else [handler]
            for function in functions:
                if isinstance(function, types.FunctionType):
                    found.setdefault(function.__code__, set()).add(flow.id)
    return found


def unreached(seen: Evidence) -> list[Flow]:
    """The flows whose fuzz target does not call their handler."""
    return [
        flow
        for flow in FLOWS.values()
        if flow.fuzz and flow.id not in seen.reached.get(flow.fuzz, ())
    ]


def refusing(flow: Flow, kind: str, seen: Evidence) -> list[str]:
    """Those of the flow's tests that made it refuse that kind of bad input."""
    return [test for test in flow.tests if (flow.id, kind) in seen.refused.get(_name(test), ())]


def _name(test: str) -> str:
    return "#" + test.partition("#")[2] if "#" in test else test


def unproven(seen: Evidence) -> list[Kind]:
    """The kinds of bad input that none of their flow's tests was seen to raise."""
    return [
        (flow.id, kind)
        for flow in FLOWS.values()
        for kind in flow.rejects
        if flow.id not in ELSEWHERE and not refusing(flow, kind, seen)
    ]


def main() -> int:
    """Fails with the kinds of bad input that lack evidence."""
    seen = read(ROOT)
    missing = unproven(seen)
    for flow, kind in missing:
        others = [test for test, kinds in seen.refused.items() if (flow, kind) in kinds]
        but = f", but {others[0]} does" if others else ""
        print(f"{flow}: no test of its entry in flows.toml raises its {kind!r} counter{but}")
    lost = unreached(seen)
    for each in lost:
        print(f"{each.id}: its fuzz target {each.fuzz} does not reach {each.handler}")
    if not missing and not lost:
        number = sum(len(flow.rejects) for flow in FLOWS.values())
        print(f"{number} kinds of bad input; a test of each one's flow was seen to raise it")
        number = sum(bool(flow.fuzz) for flow in FLOWS.values())
        print(f"{number} flows are fuzzed; each one's target was seen to reach its handler")
    return 1 if missing or lost else 0


if __name__ == "__main__":
    sys.exit(main())
