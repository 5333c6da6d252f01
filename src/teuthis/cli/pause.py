"""`teuthis pause`: lets a virtual machine stand still."""

from typing import Annotated

import typer

from teuthis.cli import attach


def main(names: Annotated[list[str], typer.Argument(help="The VMs' names.")]) -> None:
    """Let virtual machines stand still: no instruction runs in them, and their time stops.

    Programs that others run in them wait. `teuthis resume` lets them go on; their clocks are set to
    the time of day then. `teuthis snapshot`, `fork` and `stop` take VMs that are paused, too.
    """
    from teuthis.root import named

    with attach.verb():
        for name in names:
            with named.connect(name) as vm:
                vm.pause()
