"""Demands of every kind of bad input in the register that a test of its flow was seen to raise it.

`make test` records which kinds' counters rose during which test: recorder.py for Python and for
the processes that Python tests start, hypervisor/src/evidence.rs for Rust.
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
ELSEWHERE = {"kvm.hypercall-exit": "exists on KVM only: `make test-kvm` makes it refuse"}
"""Flows that `make test` cannot reach, and why."""

Kind = tuple[str, str]
"""A flow, and a kind of bad input of it."""
Seen = Mapping[str, set[Kind]]
"""What each test saw refused, by the test's name as the register writes it."""


def write(root: Path, refused: Seen) -> None:
    """Keeps what a session of pytest saw; tests that it did not run keep what they had."""
    path = root / DIRECTORY / PYTHON
    path.parent.mkdir(parents=True, exist_ok=True)
    known = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    known |= {test: sorted(flows) for test, flows in refused.items()}
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(known.items())))))
    partial.replace(path)


def read(root: Path) -> dict[str, set[Kind]]:
    """What the last run of the tests saw.

    Rust tests are known by the names of their threads: module::function.
    """
    directory = root / DIRECTORY
    found: dict[str, set[Kind]] = {}
    if (path := directory / PYTHON).exists():
        found |= msgspec.json.decode(path.read_bytes(), type=dict[str, set[Kind]])
    if (path := directory / RUST).exists():
        for line in path.read_text().splitlines():
            thread, flow, kind = line.rsplit(" ", 2)
            found.setdefault("#" + thread.rpartition("::")[2], set()).add((flow, kind))
    return found


def refusing(flow: Flow, kind: str, seen: Seen) -> list[str]:
    """Those of the flow's tests that made it refuse that kind of bad input."""
    return [
        test
        for test in flow.tests
        if (flow.id, kind) in seen.get("#" + test.partition("#")[2] if "#" in test else test, ())
    ]


def unproven(seen: Seen) -> list[Kind]:
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
        others = [test for test, kinds in seen.items() if (flow, kind) in kinds]
        but = f", but {others[0]} does" if others else ""
        print(f"{flow}: no test of its entry in flows.toml raises its {kind!r} counter{but}")
    if not missing:
        number = sum(len(flow.rejects) for flow in FLOWS.values())
        print(f"{number} kinds of bad input; a test of each one's flow was seen to raise it")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
