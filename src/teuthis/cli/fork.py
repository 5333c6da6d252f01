"""`teuthis fork`: running copies of a virtual machine."""

from typing import Annotated

import typer

from teuthis.cli import attach


def main(
    name: Annotated[str, typer.Argument(help="The VM's name.")],
    copies: Annotated[list[str], typer.Argument(metavar="NEW…", help="Names of the copies.")],
) -> None:
    """Make running copies of a virtual machine, which goes on.

    What runs in it runs on in each copy. They share its memory until they change it; each has a
    network adapter of its own, and disks that are thrown away with it. Ports of this host go on
    leading to the VM itself. A copy that has ended and is started again begins where it was made.
    """
    from teuthis.root import named

    with attach.verb(), named.connect(name) as vm:
        for copy in vm.fork(*copies):
            copy.close()
