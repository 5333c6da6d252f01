"""`teuthis rm`: forgets a virtual machine that was started by name."""

from typing import Annotated

import typer

from teuthis.cli import attach


def main(
    names: Annotated[list[str], typer.Argument(help="The VMs' names.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Also those that run.")] = False,
) -> None:
    """Remove virtual machines that have ended: names, disks and logs."""
    from teuthis.root import named

    with attach.verb():
        for name in names:
            named.remove(name, force=force)
