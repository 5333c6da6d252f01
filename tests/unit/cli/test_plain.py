"""What is read without typer means what it means to typer."""

import subprocess
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from teuthis.cli import plain
from teuthis.cli.verbs import app

_RUN = typer.main.get_group(app("run")).commands["run"]
_WORDS = (
    *("--memory", "--image", "--timeout", "--workdir", "--env", "--cold", "--warm", "--user"),
    *("--mem", "--memory=1G", "-t", "-", "--", "", "A=1", "512M", "sh", "-c", "python", "--disk"),
)


def typers(words: list[str]) -> dict[str, object]:
    """What typer would call `run.main` with."""
    found: dict[str, object] = _RUN.make_context("run", list(words)).params
    return {name: list(value) if value and isinstance(value, list | tuple) else value or None
            for name, value in found.items()}  # fmt: skip


@given(st.lists(st.sampled_from(_WORDS), max_size=8))
def test_both_say_the_same(words: list[str]) -> None:
    said = plain.parse(["run", *words])
    if said is not None:
        assert typers(words) == typers(["x"]) | said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run true", {"command": ["true"], "env": None}),
        ("run -- true --x", {"command": ["true", "--x"], "env": None}),
        (
            "run --memory 1G --env A=1 --env B=2 --cold sh -c --memory",
            {"memory": "1G", "cold": True, "command": ["sh", "-c", "--memory"],
             "env": ["A=1", "B=2"]},
        ),
    ],
)  # fmt: skip
def test_the_everyday(line: str, said: dict[str, object]) -> None:
    assert plain.parse(line.split()) == said


@pytest.mark.parametrize("option", ["--memory", "--image", "--workdir", "--env"])
def test_an_empty_value_is_left_to_typer(option: str) -> None:
    assert plain.parse(["run", option, "", "true"]) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ls",
        "run",
        "run --",
        "run --help",
        "run -h true",
        "run --memory",
        "run --memory -- true",
    ],
)
def test_the_rest_is_left_to_typer(line: str) -> None:
    assert plain.parse(line.split()) is None


def test_the_everyday_loads_no_typer() -> None:
    code = (
        "import sys; from teuthis.cli import plain, run; "
        "print([name for name in ('typer', 'rich', 'zstandard') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"
