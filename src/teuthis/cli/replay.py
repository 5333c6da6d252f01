"""`teuthis replay`: a recorded run once more, bit for bit, without anything around it."""

from pathlib import Path
from typing import Annotated

import typer

from teuthis.cli import attach, options

PARTED = 1
"""The exit code when the replay did something else than the recorded run."""


def main(
    file: Annotated[Path, typer.Argument(help="What `teuthis run --record` wrote.")],
    until: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Stop after N instructions, and show the registers."),
    ] = None,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace", help="Show each step on stderr: instructions so far, place, what, answer."
        ),
    ] = False,
    allow_missing_wall: options.AllowMissingWall = None,
) -> None:
    """Replay a recorded virtual machine.

    The hypervisor program runs alone, in its jail, and gets from the recording what the worker
    gave it then. What the guest writes to its serial port appears on stdout. At each point where
    the recorded guest stood still, registers and all that was done so far are compared, at the end
    the memory too.

    The exit code is 0 when the replay was the same as the recorded run, 1 when it was not (and
    where they part is said), 125 when it cannot be replayed.

    For example:

        teuthis run --record run.rec --console -- uname -a
        teuthis replay run.rec
        teuthis replay --until 30000000 run.rec
        teuthis replay --trace run.rec 2>&1 | grep Hypercall
    """
    from teuthis.root.recording import read
    from teuthis.root.replay import Outcome, Replay

    with attach.verb(), read(file) as recording:
        console, report = attach.Log(attach.STDOUT), attach.Log()
        outcome = Replay(
            recording,
            console,
            report,
            until=until,
            trace=trace,
            allow_missing_walls=allow_missing_wall or (),
        ).run()
        console.close()
        report.close()
    raise typer.Exit(PARTED if outcome is Outcome.PARTED else 0)
