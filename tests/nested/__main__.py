"""Runs a command in the nested machine: `python -m tests.nested [--timeout SECONDS] COMMAND …`."""

import argparse
import sys

from . import machine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nested", description=__doc__)
    parser.add_argument("--timeout", type=float, default=600)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        result = machine.run(
            options.command, timeout=options.timeout, echo=lambda line: print(line, flush=True)
        )
    except machine.NestedError as error:
        print(error, file=sys.stderr)
        return 125
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
