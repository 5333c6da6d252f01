"""Writes docs/fuzzing.md: what campaigns did and which branches of the handlers they took.

`python -m fuzz.report [DIRECTORY]`: the campaign's directory, `build/fuzz` if none is given.
"""

import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.register import measure, report

from fuzz.target import ROOT, WORK, Target, all_targets
from teuthis.flows import FLOWS

PROSE = ROOT / "docs/fuzzing.in.md"
PATH = ROOT / "docs/fuzzing.md"
REASONS = ROOT / "fuzz/unreached.toml"
"""By handler, by line of code: why no fuzzer gets there."""
_WIDTH = 70
_AIM = 0.85


def text(work: Path) -> str:
    """The whole page."""
    done = json.loads((work / "report.json").read_text())
    shares = handlers()
    parts = {
        "runs": f"{sum(each['runs'] for each in done.values()):,}",
        "targets": str(len(all_targets())),
        "hours": f"{sum(each['seconds'] for each in done.values()) / 3600:.1f}",
        "processor": f"{sum(each['processor_seconds'] for each in done.values()) / 60:.0f}",
        "table": "\n".join(_targets(done, work)),
        "handlers": str(len(shares)),
        "reached": str(sum(share >= _AIM for share in shares.values())),
        "whole": str(sum(share == 1 for share in shares.values())),
        "left": "\n".join(_left({name: share for name, share in shares.items() if share < 1})),
    }
    page = PROSE.read_text(encoding="utf-8")
    for name, value in parts.items():
        page = page.replace("{{" + name + "}}", value)
    return page


def handlers() -> dict[str, float]:
    """By handler of a fuzzed flow: the share of its branches that were taken."""
    hits = report.coverage(report.COVERAGE)
    found = {}
    for flow in FLOWS.values():
        if flow.fuzz and (share := report.share(flow, hits)) is not None:
            found[flow.handler] = share
    return found


def _targets(done: Mapping[str, Any], work: Path) -> Iterable[str]:
    yield "| target | flows | runs | minutes | of the processor | branches | inputs kept |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for target in all_targets():
        each = done.get(target.name)
        if each is not None:
            yield (
                f"| `{_name(target)}` | {len(target.flows)} | {each['runs']:,} "
                f"| {each['seconds'] / 60:.0f} | {each['processor_seconds'] / 60:.0f} "
                f"| {each['branches']:,} | {_kept(work, target):,} |"
            )


def _name(target: Target) -> str:
    return target.name.removesuffix("#run").removeprefix("tests/unit/")


def _kept(work: Path, target: Target) -> int:
    directory = work / "corpus" / target.short
    return len(list(directory.iterdir())) if directory.exists() else 0


def _left(shares: Mapping[str, float]) -> Iterable[str]:
    """Of each handler that is not taken as a whole: the lines where something is not."""
    hits = report.coverage(report.COVERAGE)
    reasons: dict[str, dict[str, str]] = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    yield "| handler | taken | line | not taken there | why not |"
    yield "|---|--:|--:|---|---|"
    flows = {flow.handler: flow for flow in FLOWS.values()}
    for name, share in sorted(shares.items(), key=lambda each: each[1]):
        known = dict(reasons.get(name, {}))
        first = True
        for span in measure.spans(flows[name]):
            lines = span.path.read_text(encoding="utf-8").splitlines()
            for number in report.untaken(span, hits):
                code = lines[number - 1].strip()
                why = known.pop(code, "")
                head = f"`{name}` | {share:.0%}" if first else " | "
                yield f"| {head} | {number} | `{_cell(code)}` | {why} |"
                first = False
        for code in known:
            print(f"{REASONS.name}: {name} does not leave {code!r} any more")


def _cell(code: str) -> str:
    """Code inside a table."""
    return code.replace("|", "\\|") if len(code) <= _WIDTH else _cell(code[: _WIDTH - 1]) + "…"


def main() -> int:
    """Writes the page."""
    PATH.write_text(text(Path(sys.argv[1]) if len(sys.argv) > 1 else WORK), encoding="utf-8")
    print(f"Wrote {PATH.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
