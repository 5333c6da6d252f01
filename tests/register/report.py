"""Writes docs/flows.md: per flow, the code behind it and what was seen of it.

A standard run is made for it. What the tests saw refused is there after `make test`; the share of a
handler that was covered, when there are coverage files (lcov) in build/coverage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import msgspec

import teuthis
from tests.register import evidence, measure
from teuthis.flows import FLOWS, Count, Flow

PATH = measure.ROOT / "docs/flows.md"
COVERAGE = measure.ROOT / "build/coverage"
CAMPAIGNS = measure.ROOT / "build/fuzz/report.json"
FACTS = measure.ROOT / "build/flows-report.json"
HEAD = """\
# The flows, and what was seen of them

Made by `make flows-report`, never by hand. *Lines*: code of the handler. *Run*: how often the flow
happened, and its bytes, in one boot with a few commands and files. *Refused*: how many of its
kinds of bad input a test of its entry was seen to raise; nothing where nothing can be refused.
*Fuzzed*: how often its target ran in campaigns. *Covered*: share of the handler's branches (lines,
where it has none) that the fuzzers' inputs take, as `make fuzz-coverage` measured it; see
[fuzzing.md](fuzzing.md).

| flow | lines | run | bytes | refused | fuzzed | covered |
|---|--:|--:|--:|--:|--:|--:|
"""


@dataclass
class Hits:
    """What was taken of a file, by line."""

    branches: dict[int, list[int]] = field(default_factory=dict)
    """How often each branch was taken."""
    lines: dict[int, int] = field(default_factory=dict)
    """How often the line itself was."""

    def add(self, lines: Mapping[int, int], branches: Mapping[int, list[int]]) -> None:
        """Adds what another run took."""
        for line, count in lines.items():
            self.lines[line] = self.lines.get(line, 0) + count
        for line, more in branches.items():
            both = zip_longest(self.branches.get(line, []), more, fillvalue=0)
            self.branches[line] = [one + other for one, other in both]


def standard_run() -> dict[str, Count]:
    """The counters of one VM that did a little of everything."""
    with teuthis.VM() as vm:
        vm.run(
            ["sh", "-c", "uname -a; cat; echo error >&2; ls -R /proc | head -c 100000"], b"in" * 999
        )
        vm.write_file("/tmp/file", bytes(100_000))
        vm.read_file("/tmp/file")
        vm.run(["sh", "-c", "exit 3"])
    return vm.flows()


def coverage(directory: Path) -> dict[Path, Hits]:
    """Reads all lcov files of `directory`."""
    found: dict[Path, Hits] = {}
    for file in sorted(directory.glob("*.info")):
        lines: dict[int, int] = {}
        branches: dict[int, list[int]] = {}
        source = Path()
        for record in file.read_text().splitlines():
            name, _, value = record.partition(":")
            if name == "SF":
                source, lines, branches = measure.ROOT / value, {}, {}
            elif name == "DA":
                line, hits = value.split(",")[:2]
                lines[int(line)] = int(hits)
            elif name == "BRDA":
                line, _, _, taken = value.split(",")
                branches.setdefault(int(line), []).append(0 if taken == "-" else int(taken))
            elif name == "end_of_record":
                found.setdefault(source, Hits()).add(lines, branches)
    return found


def campaigns(report: Path) -> dict[str, int]:
    """How often each fuzz target has run in all campaigns of this checkout."""
    if not report.exists():
        return {}
    return {name: each["runs"] for name, each in msgspec.json.decode(report.read_bytes()).items()}


def share(flow: Flow, hits: Mapping[Path, Hits]) -> float | None:
    """How much was taken of the handler's branches, or of its lines where it has none.

    None: nobody has measured it.
    """
    branches: list[int] = []
    lines: list[int] = []
    for span in measure.spans(flow):
        of_file = hits.get(span.path, Hits())
        inside = range(span.first, span.last + 1)
        branches += (count for line in inside for count in of_file.branches.get(line, ()))
        lines += (of_file.lines[line] for line in inside if line in of_file.lines)
    counts = branches or lines
    return sum(map(bool, counts)) / len(counts) if counts else None


def untaken(span: measure.Span, hits: Mapping[Path, Hits]) -> list[int]:
    """The lines of some code where a branch was not taken, or which were not reached."""
    found = hits.get(span.path, Hits())
    return [
        line
        for line in range(span.first, span.last + 1)
        if (
            not all(branches)
            if (branches := found.branches.get(line))
            else found.lines.get(line) == 0
        )
    ]


def covered(flow: Flow, hits: Mapping[Path, Hits]) -> str:
    """The same in words, of flows that are fuzzed."""
    found = share(flow, hits) if flow.fuzz else None
    return "" if found is None else f"{found:.0%}"


def facts(
    run: Mapping[str, Count],
    seen: evidence.Evidence,
    runs: Mapping[str, int],
    hits: Mapping[Path, Hits],
) -> dict[str, dict[str, str]]:
    """What is known of each flow, by column; `runs`: how often each fuzz target ran."""
    found = {}
    for flow in FLOWS.values():
        count = run[flow.id]
        raised = sum(bool(evidence.refusing(flow, kind, seen)) for kind in flow.rejects)
        found[flow.id] = {
            "lines": str(measure.handler_lines(flow)),
            "run": f"{count.count:,}",
            "bytes": f"{count.bytes:,}",
            "refused": f"{raised} of {len(flow.rejects)}" if flow.rejects else "",
            "fuzzed": f"{runs[flow.fuzz]:,}" if flow.fuzz in runs else "",
            "covered": covered(flow, hits),
        }
    return found


def main() -> None:
    """Writes the page, and the same for `teuthis squid --live`."""
    known = facts(
        standard_run(), evidence.read(measure.ROOT), campaigns(CAMPAIGNS), coverage(COVERAGE)
    )
    rows = (f"| `{name}` | {' | '.join(each.values())} |\n" for name, each in known.items())
    PATH.write_text(HEAD + "".join(rows), encoding="utf-8")
    FACTS.parent.mkdir(exist_ok=True)
    FACTS.write_bytes(msgspec.json.encode(known))
    print(f"Wrote {PATH.relative_to(measure.ROOT)}")


if __name__ == "__main__":
    main()
