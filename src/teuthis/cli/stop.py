"""`teuthis stop`: ends a virtual machine that was started by name."""

from typing import Annotated

import typer

from teuthis.cli import attach


def main(
    names: Annotated[list[str], typer.Argument(help="The VMs' names.")],
    now: Annotated[bool, typer.Option("--now", help="At once, without asking the guest.")] = False,
    timeout: Annotated[
        str, typer.Option(help="How long a guest may take to end in order; then it is ended.")
    ] = "30s",
) -> None:
    """Stop virtual machines: each guest is asked to end in order, and ended if it does not.

    One that is paused goes on for that. They keep their names and disks: `teuthis start NAME`
    starts one again, `teuthis rm` forgets it.
    """
    from teuthis.root import named, settings

    with attach.verb():
        seconds = settings.duration(timeout)
        for name in names:
            named.stop(name, seconds, now=now)
