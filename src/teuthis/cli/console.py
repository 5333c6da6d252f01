"""`teuthis console`: the kernel's log of a running virtual machine, as it comes."""

from typing import Annotated

import typer

from teuthis.cli import logs


def main(name: Annotated[str, typer.Argument(help="The VM's name.")]) -> None:
    """Show the kernel's log of a virtual machine until it ends, or ^C.

    Characters that could command a terminal are replaced. The same as `teuthis logs --kernel
    --follow`.
    """
    logs.main(name, follow=True, kernel=True)
