"""One fuzz target: how it is started, where it keeps what it learnt, what its output says."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from teuthis.flows import FLOWS

ROOT: Final = Path(__file__).parents[1]
WORK: Final = ROOT / "build/fuzz"
"""Corpora, findings and the report; the corpora are worth keeping."""
_RUST: Final = re.compile(r"hypervisor/tests/fuzz/(\w+)\.rs#run")
_COVERAGE: Final = re.compile(r"^#\d+\s.*\bcov: (\d+)", re.MULTILINE)
_RUNS: Final = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
_MAX_INPUT: Final = 12_000
_SLOW_SECONDS: Final = 20
"""An input that takes longer is a finding: a guest must not be able to hold anything up."""
_GRACE_SECONDS: Final = 300.0


@dataclass
class Target:
    """A target, and what became of it in this campaign."""

    name: str
    """As the register's `fuzz` fields say it."""
    flows: list[str]
    runs: int = 0
    coverage: int = 0
    """Branches it has reached, as libFuzzer counts them."""
    seconds: float = 0.0
    growing: bool = True
    """Whether its last turn reached something new."""
    findings: list[str] = field(default_factory=list)

    @property
    def short(self) -> str:
        """A name for directories."""
        rust = _RUST.fullmatch(self.name)
        return rust[1] if rust else self.name.replace("/", ".").replace(".py::", ".")

    def run(self, seconds: float) -> str:
        """Fuzzes for so long; the output, of which `findings` has what matters."""
        corpus, findings = WORK / "corpus" / self.short, WORK / "findings" / self.short
        for directory in (corpus, findings):
            directory.mkdir(parents=True, exist_ok=True)
        before = set(findings.iterdir())
        done = subprocess.run(
            [
                *(*self._program(), str(corpus)),
                *(["--"] if _RUST.fullmatch(self.name) else []),
                f"-max_total_time={seconds:.0f}",
                f"-max_len={_MAX_INPUT}",
                f"-timeout={_SLOW_SECONDS}",
                f"-artifact_prefix={findings}/",
                *("-print_final_stats=1", "-len_control=0", "-rss_limit_mb=4096"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds + _GRACE_SECONDS,
            check=False,
        )
        reached = max(map(int, _COVERAGE.findall(done.stdout)), default=0)
        self.growing = reached > self.coverage
        self.coverage = max(self.coverage, reached)
        self.runs += sum(map(int, _RUNS.findall(done.stdout)))
        self.seconds += seconds
        self.findings += [str(path) for path in sorted(set(findings.iterdir()) - before)]
        if done.returncode != 0 and not self.findings:
            self.findings.append(f"exit status {done.returncode}")
        return done.stdout

    def _program(self) -> list[str]:
        if rust := _RUST.fullmatch(self.name):
            # Without a sanitizer stable Rust will do; safe Rust has bounds and overflow checks.
            return [
                *("cargo", "fuzz", "run", "--fuzz-dir", "fuzz/rust", "--sanitizer", "none"),
                *("--target-dir", "target/fuzz", rust[1]),
            ]
        return [sys.executable, str(ROOT / "fuzz/drive.py"), self.name]


def all_targets() -> list[Target]:
    """Every target that some flow names, with its flows."""
    flows: dict[str, list[str]] = {}
    for flow in FLOWS.values():
        if flow.fuzz:
            flows.setdefault(flow.fuzz, []).append(flow.id)
    return [Target(name, named) for name, named in sorted(flows.items())]
