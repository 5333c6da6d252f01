"""The command line: one file per verb."""

import gc
import os
import sys


def main() -> None:
    """Entry point of the program `teuthis`."""
    from teuthis.cli import plain

    words = sys.argv[1:]
    if (said := plain.parse(words)) is not None:
        from teuthis.root import hatch

        hatch.start()  # it loads what it needs while we load what we need

        # As in `teuthis.worker`: msgspec asks for it first, then for `typing`, which has all of it;
        # and nothing that is loaded now is garbage, however often one looks.
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
        gc.disable()

        from teuthis.cli import run

        gc.freeze()
        gc.enable()
        try:
            run.main(**said)
        except SystemExit as end:
            # The VM is closed and nothing is left unwritten: to take the interpreter down piece by
            # piece as well would only make somebody wait.
            if isinstance(end.code, int):
                os._exit(end.code)
            raise
    else:
        from teuthis.cli.verbs import app

        app(words[0] if words else "")()
