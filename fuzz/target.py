"""One fuzz target: how it is started, where it keeps what it learnt, what its output says."""

import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fuzz import corpora
from teuthis.flows import FLOWS

ROOT: Final = Path(__file__).parents[1]
WORK: Final = ROOT / "build/fuzz"
"""Corpora, findings and the report; the corpora are worth keeping."""
_PROGRAMS: Final = ROOT / "target/fuzz/x86_64-unknown-linux-gnu/release"
RUST: Final = re.compile(r"hypervisor/tests/fuzz/(\w+)\.rs#run")
_COVERAGE: Final = re.compile(r"^#\d+\s.*\bcov: (\d+)", re.MULTILINE)
_RUNS: Final = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
_MAX_INPUT: Final = 12_000
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
    processor_seconds: float = 0.0
    """Of its turns, how much the processor worked for it: less than `seconds` on a busy host."""
    growing: bool = True
    """Whether its last turn reached something new."""
    findings: list[str] = field(default_factory=list)

    @property
    def short(self) -> str:
        """A name for directories."""
        rust = RUST.fullmatch(self.name)
        return rust[1] if rust else self.name.replace("/", ".").replace(".py::", ".")

    def run(self, seconds: float, slow: int) -> str:
        """Fuzzes for so long; the output, of which `findings` has what matters.

        An input that takes more than `slow` seconds is a finding: a guest must not be able to hold
        anything up.
        """
        corpus, findings = WORK / "corpus" / self.short, WORK / "findings" / self.short
        for directory in (corpus, findings):
            directory.mkdir(parents=True, exist_ok=True)
        corpora.plant(self.name, self.short, corpus)
        before = set(findings.iterdir())
        status, output, processor_seconds = _run(
            [
                *(*self._program(), str(corpus)),
                f"-max_total_time={seconds:.0f}",
                f"-max_len={_MAX_INPUT}",
                f"-timeout={slow}",
                f"-report_slow_units={slow}",
                f"-artifact_prefix={findings}/",
                *("-print_final_stats=1", "-len_control=0", "-rss_limit_mb=4096"),
            ],
            seconds + _GRACE_SECONDS,
        )
        reached = max(map(int, _COVERAGE.findall(output)), default=0)
        self.growing = reached > self.coverage
        self.coverage = max(self.coverage, reached)
        self.runs += sum(map(int, _RUNS.findall(output)))
        self.seconds += seconds
        self.processor_seconds += processor_seconds
        self.findings += [str(path) for path in sorted(set(findings.iterdir()) - before)]
        if status != 0 and not self.findings:
            self.findings.append(f"exit status {status}")
        return output

    def _program(self) -> list[str]:
        if rust := RUST.fullmatch(self.name):
            return [str(_PROGRAMS / rust[1])]
        return [sys.executable, str(ROOT / "fuzz/drive.py"), self.name]


def _run(command: list[str], timeout: float) -> tuple[int, str, float]:
    """Runs a fuzzer to its end: exit status, output, how long the processor worked for it."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        last_resort = threading.Timer(timeout, process.kill)
        last_resort.start()
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        last_resort.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, output, usage.ru_utime + usage.ru_stime


def build(targets: list[Target]) -> None:
    """Builds the Rust targets, if there are any among `targets`.

    Without a sanitizer stable Rust will do; safe Rust has bounds and overflow checks.
    """
    if any(RUST.fullmatch(target.name) for target in targets):
        command = ("cargo", "fuzz", "build", "--fuzz-dir", "fuzz/rust", "--sanitizer", "none")
        subprocess.run([*command, "--target-dir", "target/fuzz"], cwd=ROOT, check=True)


def all_targets() -> list[Target]:
    """Every target that some flow names, with its flows."""
    flows: dict[str, list[str]] = {}
    for flow in FLOWS.values():
        if flow.fuzz:
            flows.setdefault(flow.fuzz, []).append(flow.id)
    return [Target(name, named) for name, named in sorted(flows.items())]
