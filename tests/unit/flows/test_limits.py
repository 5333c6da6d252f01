"""A limit that is changed in the register, and nowhere else, changes what happens."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from teuthis import programs
from teuthis.flows import REGISTER_PATH

ROOT = Path(__file__).parents[3]
SERVER = "tests/unit/worker/test_server.py::"


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The package beside a register with a smaller limit."""
    shutil.copytree(
        ROOT / "src/teuthis", tmp_path / "src/teuthis", ignore=shutil.ignore_patterns("__pycache__")
    )
    register = Path(REGISTER_PATH).read_text(encoding="utf-8")
    assert register.count("channel_gpadls_max = 16") == 1
    smaller = register.replace("channel_gpadls_max = 16", "channel_gpadls_max = 3")
    (tmp_path / "flows.toml").write_text(smaller, encoding="utf-8")
    return tmp_path / "src"


def python(
    package: Path, *arguments: str, programs: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["TEUTHIS_PROGRAMS"] = str(programs)
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_it_changes_the_behaviour_and_the_test(changed: Path) -> None:
    limit = "from teuthis.worker.vmbus.gpadl import MAX_PER_CHANNEL; print(MAX_PER_CHANNEL)"
    assert python(changed, "-c", limit).stdout == "3\n"
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:tests.register.recorder")
    run = python(changed, "-m", "pytest", *options, f"{SERVER}test_too_many_descriptions_fail")
    assert run.returncode == 0, run.stdout


def test_programs_of_another_register_are_refused(changed: Path) -> None:
    program = programs.find(programs.HYPERVISOR)
    find = "from teuthis import programs; programs.find(programs.HYPERVISOR)"
    run = python(changed, "-c", find, programs=program.parent)
    assert "made from another register" in run.stderr
    assert "make programs" in run.stderr
