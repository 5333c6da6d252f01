"""`teuthis shell`: a terminal in a virtual machine."""

from typing import Annotated

import typer

from teuthis.cli import attach, options, terminal
from teuthis.errors import GuestPowerOff
from teuthis.flows import Counters
from teuthis.protocol import ROOT
from teuthis.root.guest import Guest


def main(
    name: Annotated[
        str | None, typer.Argument(help="A VM that was started by name; else a new one.")
    ] = None,
    memory: options.Memory = "256M",
    env: options.Env = None,
    user: options.User = None,
    image: options.Image = "tiny",
    keep: options.Keep = None,
    disk: options.Disks = None,
    net: options.Net = None,
    publish: options.Publish = None,
    warm: options.Warm = None,
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
            guest = attach.connect(name)
        else:
            from teuthis.root.vm import VM

            guest = VM(
                memory,
                image=image,
                keep=keep,
                disks=[attach.disk(text) for text in disk or ()],
                network=net,
                publish=publish or (),
                warm=warm,
            )
        with guest:
            try:
                code = terminal.run(guest, terminal.SHELL, "/", None, Counters(), variables, user)
                if name is None and (keep is not None or disk):
                    # What is written to be kept must not stay in the guest.
                    guest.run(["sync"], user=ROOT)
            except GuestPowerOff:
                attach.say("the guest has switched itself off")
                code = 0
        raise typer.Exit(code)
