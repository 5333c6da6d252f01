"""Drives one test: `python fuzz/drive.py FILE::TEST [libFuzzer's arguments]`.

A test that hypothesis can run on random data can also be run on a fuzzer's bytes, which become the
choices hypothesis would have made; so each property is written once. `--replay DIRECTORY` only runs
it on each file there, and once as `make test` does.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MODULES = ["teuthis"]
"""Whose branches guide the fuzzer."""


def _property(target: str) -> Any:
    file, _, name = target.partition("::")
    return getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)


def load(target: str) -> Callable[[bytes], Any]:
    """What runs a target once on a fuzzer's bytes.

    Of a property, these are the choices; a test without one has the function `run` beside it.
    """
    test = _property(target)
    run: Callable[[bytes], Any]
    if hasattr(test, "hypothesis"):
        run = test.hypothesis.fuzz_one_input
    else:
        run = sys.modules[test.__module__].run
    return run


def _fuzz(target: str, arguments: list[str]) -> None:
    """Fuzzes until libFuzzer's limits are reached; exits with its status."""
    import atheris

    with atheris.instrument_imports(include=_MODULES):
        run = load(target)
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def _replay(target: str, directory: Path) -> None:
    importlib.import_module("tests.conftest")  # its settings: no deadlines
    _property(target)()
    run = load(target)
    for file in sorted(directory.glob("*")):
        run(file.read_bytes())


def main(target: str, arguments: list[str]) -> None:
    """Fuzzes a target, or replays what it has kept."""
    sys.path.insert(0, str(ROOT))
    match arguments:
        case ["--replay", directory]:
            _replay(target, Path(directory))
        case _:
            _fuzz(target, arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
