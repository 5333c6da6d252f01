"""`teuthis resume`: lets a paused virtual machine go on."""

from typing import Annotated

import typer

from teuthis.cli import attach


def main(names: Annotated[list[str], typer.Argument(help="The VMs' names.")]) -> None:
    """Let virtual machines go on that `teuthis pause` has stopped."""
    from teuthis.root import named

    with attach.verb():
        for name in names:
            with named.connect(name) as vm:
                vm.resume()
