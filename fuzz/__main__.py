"""`make fuzz MINUTES=n [FLOW=x]`: all targets, or those of one flow or with `x` in their name.

Every target gets the same short turn first; after that, time goes to those whose coverage still
grows. Exit status 1 when something was found. What was learnt stays in `build/fuzz`.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from fuzz.target import WORK, Target, all_targets, build

_TURN = 60.0


class Report:
    """What this campaign and those before it did, by target; kept while it runs."""

    def __init__(self) -> None:
        self.path = WORK / "report.json"
        self._before = json.loads(self.path.read_text()) if self.path.exists() else {}

    def write(self, targets: list[Target]) -> None:
        """Adds what became of `targets` in this campaign to what was there before it."""
        nothing = {"runs": 0, "seconds": 0.0, "processor_seconds": 0.0, "branches": 0}
        report = dict(self._before)
        for target in targets:
            before = nothing | self._before.get(target.name, {})
            report[target.name] = {
                "flows": target.flows,
                "runs": before["runs"] + target.runs,
                "seconds": before["seconds"] + target.seconds,
                "processor_seconds": before["processor_seconds"] + target.processor_seconds,
                "branches": max(before["branches"], target.coverage),
                "findings": target.findings,
            }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(report, indent=1))
        partial.replace(self.path)


def main() -> int:
    """Runs a campaign."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--flow", default="")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slow", type=int, default=20, help="seconds; more on a busy host")
    options = parser.parse_args()
    targets = [
        target
        for target in all_targets()
        if options.flow in target.name or any(options.flow in flow for flow in target.flows)
    ]
    if not targets:
        print(f"no fuzz target has to do with {options.flow!r}", file=sys.stderr)
        return 2
    report = Report()
    build(targets)
    _campaign(targets, options, report)
    total = sum(target.runs for target in targets)
    found = sum(len(target.findings) for target in targets)
    print(f"{len(targets)} targets, {total} runs, {found} findings; all in {report.path}")
    return 1 if any(target.findings for target in targets) else 0


def _campaign(targets: list[Target], options: argparse.Namespace, report: Report) -> None:
    seconds, workers = 60 * options.minutes, min(len(targets), options.workers)
    deadline = time.monotonic() + seconds
    turn = max(5.0, min(_TURN, seconds * workers / len(targets)))
    with ThreadPoolExecutor(workers) as pool:
        while (left := deadline - time.monotonic()) > 5:
            chosen = [target for target in targets if target.growing and not target.findings]
            if not chosen:
                chosen = [target for target in targets if not target.findings]
            if not chosen:
                return
            each = min(turn, max(5.0, left * workers / len(chosen)))
            outputs = pool.map(Target.run, chosen, repeat(each), repeat(options.slow))
            for target, output in zip(chosen, outputs, strict=True):
                print(
                    f"{target.short}: {target.coverage} branches, {target.runs} runs"
                    + (" +" if target.growing else ""),
                    flush=True,
                )
                report.write(targets)
                if target.findings:
                    print(output[-4000:], *target.findings, sep="\n", flush=True)


sys.exit(main())
