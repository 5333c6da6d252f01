"""`teuthis exec`: one more program in a virtual machine that runs."""

from typing import Annotated

import typer

from teuthis.cli import attach, options, terminal
from teuthis.flows import Counters


def main(
    name: Annotated[str, typer.Argument(help="The VM's name.")],
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    timeout: Annotated[
        str | None, typer.Option(help="Time limit, such as 30s or 5m; then the program is killed.")
    ] = None,
    env: options.Env = None,
    workdir: Annotated[str, typer.Option(help="Working directory in the guest.")] = "/",
    user: options.User = None,
    tty: Annotated[
        bool, typer.Option("--tty", "-t", help="Give the program a terminal: this one.")
    ] = False,
) -> None:
    """Run a program in a virtual machine that was started by name.

    Streams and exit codes are as with `teuthis run`. When this command ends, by ^C, its time limit
    or in whatever way, the program is killed; the VM goes on.

    For example:

        teuthis exec web -- ps
        tar c . | teuthis exec web -- tar x -C /tmp
    """
    from teuthis.root import settings

    if command[0] == "--":  # behind the VM's name the parser takes it for a word
        del command[0]
    with attach.verb():
        limit = None if timeout is None else settings.duration(timeout)
        variables = dict(attach.variable(text) for text in env or ())
        with attach.connect(name) as vm:
            if tty:
                code = terminal.run(vm, command, workdir, limit, Counters(), variables, user)
            else:
                code = attach.run(vm, command, workdir, limit, variables, user)
        raise typer.Exit(code)
