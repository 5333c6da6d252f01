"""`teuthis shell`: a terminal in a virtual machine."""

from pathlib import Path
from typing import Annotated

import typer

from teuthis.cli import attach, terminal
from teuthis.errors import GuestPowerOff
from teuthis.flows import Counters
from teuthis.root.guest import Guest


def main(
    name: Annotated[
        str | None, typer.Argument(help="A VM that was started by name; else a new one.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Guest memory: 256M, 2G, …")] = "256M",
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An environment variable; may be repeated."),
    ] = None,
    image: Annotated[
        str, typer.Option(metavar="NAME", help="The image to boot; its disk is never changed.")
    ] = "tiny",
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep what the guest writes above its image, to be given again."
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[,ro|,cow]",
            help="A disk: written to, read only, or with what is written thrown away.",
        ),
    ] = None,
    net: Annotated[
        str | None,
        typer.Option(
            metavar="user|switch:NAME",
            help="A network: the host's, as far as you reach it, or one between VMs.",
        ),
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ADDR:]HOST:GUEST[/udp]",
            help="Lead a port of this machine's loopback, or of ADDR, to the guest.",
        ),
    ] = None,
) -> None:
    """Open a shell in a virtual machine, on this terminal.

    In a VM that was started by name, which goes on when the shell ends; or in a new one, of which
    nothing is left then. Full-screen programs, colours, resizing and ^C work as in any shell; what
    a guest could use to reach beyond the screen (the clipboard, for instance) does not pass. After
    the Enter key, `~.` ends the session, whatever the guest does.

    The exit code is the shell's own.

    For example:

        teuthis shell
        teuthis shell web
        teuthis shell --image debian --net user
    """
    with attach.verb():
        terminal.check()
        variables = dict(attach.variable(text) for text in env or ())
        guest: Guest
        if name is not None:
            from teuthis.root import named

            guest = named.connect(name)
        else:
            from teuthis.root.vm import VM

            guest = VM(
                memory,
                image=image,
                keep=keep,
                disks=[attach.disk(text) for text in disk or ()],
                network=net,
                publish=publish or (),
            )
        with guest:
            try:
                code = terminal.run(guest, terminal.SHELL, "/", None, Counters(), variables)
                if name is None and (keep is not None or disk):
                    guest.run(["sync"])  # what is written to be kept must not stay in the guest
            except GuestPowerOff:
                attach.say("the guest has switched itself off")
                code = 0
        raise typer.Exit(code)
