"""Demands of every flow that refuses something that a test named in the register makes it do so.

`make test` records which flows' rejected counters rose during which test: recorder.py for
Python and for the processes that Python tests start, hypervisor/src/evidence.rs for Rust.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from teuthis.flows import FLOWS, Flow

ROOT = Path(__file__).parents[2]
DIRECTORY = Path("build/evidence")
PYTHON = "python.json"
RUST = "rust.log"
UNCOUNTED = {
    "memory.ram": "a mapping; what names a bad range counts the refusal",
    "kvm.hypercall-exit": "exists on KVM only: `make test-kvm` makes it refuse",
}
"""Flows without a counter of their own, and why."""


def write(root: Path, refused: Mapping[str, set[str]]) -> None:
    """Keeps what a session of pytest saw; tests that it did not run keep what they had."""
    path = root / DIRECTORY / PYTHON
    path.parent.mkdir(parents=True, exist_ok=True)
    known = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    known |= {test: sorted(flows) for test, flows in refused.items()}
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(known.items())))))
    partial.replace(path)


def read(root: Path) -> dict[str, set[str]]:
    """The flows that each test saw refused, by the test's name as the register writes it.

    Rust tests are known by the names of their threads: module::function.
    """
    directory = root / DIRECTORY
    found: dict[str, set[str]] = {}
    if (path := directory / PYTHON).exists():
        found |= {
            name: set(flows) for name, flows in msgspec.json.decode(path.read_bytes()).items()
        }
    if (path := directory / RUST).exists():
        for line in path.read_text().splitlines():
            thread, _, flow = line.rpartition(" ")
            found.setdefault("#" + thread.rpartition("::")[2], set()).add(flow)
    return found


def refusing(flow: Flow, seen: Mapping[str, set[str]]) -> list[str]:
    """Those of the flow's tests that raised its rejected counter."""
    return [
        test
        for test in (*flow.tests, flow.fuzz)
        if flow.id in seen.get("#" + test.partition("#")[2] if "#" in test else test, ())
    ]


def unproven(seen: Mapping[str, set[str]]) -> list[Flow]:
    """The flows that are said to refuse something, and none of whose tests made them do so."""
    return [
        flow
        for flow in FLOWS.values()
        if flow.rejects and flow.id not in UNCOUNTED and not refusing(flow, seen)
    ]


def main() -> int:
    """Fails with the names of the flows that lack evidence."""
    missing = unproven(read(ROOT))
    for flow in missing:
        print(f"{flow.id}: no test of its entry in flows.toml raises its rejected counter")
    if not missing:
        number = sum(bool(flow.rejects) for flow in FLOWS.values())
        print(
            f"{number} flows refuse something; a named test of each was seen to raise its counter"
        )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
