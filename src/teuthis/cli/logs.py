"""`teuthis logs`: what a virtual machine wrote."""

from typing import Annotated

import typer

from teuthis.cli import attach


def main(
    name: Annotated[str, typer.Argument(help="The VM's name.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the VM ends, or ^C.")
    ] = False,
    kernel: Annotated[
        bool, typer.Option("--kernel", "-k", help="The kernel's log, not the program's output.")
    ] = False,
) -> None:
    """Show the output of a virtual machine's program, or its kernel's log.

    A VM that was started without a program has the kernel's log only. The newest 5 to 10 MiB of
    each are kept. Characters that could command a terminal are replaced.
    """
    from teuthis.root import logs, store

    with attach.verb():
        record = store.find(name)
        which = logs.KERNEL if kernel or not record.plan.command else logs.OUTPUT
        log = attach.Log(attach.STDOUT)
        for data in logs.read(record.directory / which, lambda: follow and store.lives(record.run)):
            log.write(data)
        log.close()
