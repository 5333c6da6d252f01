"""`teuthis snapshot`: saves a virtual machine to a directory."""

from typing import Annotated

import typer

from teuthis.cli import attach


def main(
    name: Annotated[str, typer.Argument(help="The VM's name.")],
    directory: Annotated[str, typer.Argument(help="A new directory.")],
) -> None:
    """Save a virtual machine, which goes on, with all that runs in it.

    Others are started from the snapshot, any number of times, as it is never written: `teuthis
    start --name NEW --restore DIRECTORY` and `teuthis run --restore DIRECTORY -- COMMAND`.
    """
    from teuthis.root import named

    with attach.verb(), named.connect(name) as vm:
        vm.snapshot(directory)
