"""Drives one property test by coverage: `python fuzz/drive.py FILE::TEST [libFuzzer's arguments]`.

A test that hypothesis can run on random data can also be run on a fuzzer's bytes, which become the
choices hypothesis would have made; so each property is written once.
"""

import importlib
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
_MODULES = ["teuthis"]
"""Whose branches guide the fuzzer."""


def main(target: str, arguments: list[str]) -> None:
    """Fuzzes until libFuzzer's limits are reached; exits with its status."""
    file, _, name = target.partition("::")
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=_MODULES):
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    test = getattr(module, name)
    atheris.Setup([sys.argv[0], *arguments], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
