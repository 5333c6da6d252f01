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

from fuzz.target import WORK, Target, all_targets

_TURN = 60.0


def main() -> int:
    """Runs a campaign."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--flow", default="")
    options = parser.parse_args()
    targets = [
        target
        for target in all_targets()
        if options.flow in target.name or any(options.flow in flow for flow in target.flows)
    ]
    if not targets:
        print(f"no fuzz target has to do with {options.flow!r}", file=sys.stderr)
        return 2
    _campaign(targets, 60 * options.minutes)
    _report(targets)
    return 1 if any(target.findings for target in targets) else 0


def _campaign(targets: list[Target], seconds: float) -> None:
    workers = min(len(targets), os.cpu_count() or 1)
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
            outputs = pool.map(Target.run, chosen, [each] * len(chosen))
            for target, output in zip(chosen, outputs, strict=True):
                print(
                    f"{target.short}: {target.coverage} branches, {target.runs} runs"
                    + (" +" if target.growing else ""),
                    flush=True,
                )
                if target.findings:
                    print(output[-4000:], *target.findings, sep="\n", flush=True)


def _report(targets: list[Target]) -> None:
    """What this campaign and those before it did, by target."""
    path = WORK / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for target in targets:
        before = report.get(target.name, {"runs": 0, "seconds": 0.0})
        report[target.name] = {
            "flows": target.flows,
            "runs": before["runs"] + target.runs,
            "seconds": before["seconds"] + target.seconds,
            "branches": target.coverage,
            "findings": target.findings,
        }
    path.write_text(json.dumps(report, indent=1))
    total = sum(target.runs for target in targets)
    found = sum(len(target.findings) for target in targets)
    print(f"{len(targets)} targets, {total} runs, {found} findings; all in {path}")


sys.exit(main())
