"""The command line: one file per verb."""

import sys


def main() -> None:
    """Entry point of the program `teuthis`."""
    from teuthis.cli import plain

    words = sys.argv[1:]
    if (said := plain.parse(words)) is not None:
        from teuthis.root import hatch

        hatch.start()  # it loads what it needs while we load what we need

        from teuthis.cli import run

        run.main(**said)
    else:
        from teuthis.cli.verbs import app

        app(words[0] if words else "")()
