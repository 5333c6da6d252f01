"""`teuthis cp`: files and directories into a virtual machine and out of it."""

import re
from typing import Annotated

import typer

from teuthis.cli import attach
from teuthis.errors import ConfigurationError

_PLACE = re.compile(r"([^/:]+):(.*)", re.DOTALL)
_SHOWN = 20


def main(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A path, or NAME:PATH in a VM.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The same.")],
    max_size: Annotated[str, typer.Option(help="How much a guest may send: 500M, 10G, …")] = "1G",
) -> None:
    """Copy a file or a directory into a virtual machine, or out of one.

    The guest's side of it is done as root, whoever its programs run as. Into a VM, owners become
    root. Out of a VM, what is made here is yours: no devices, no setuid, and no symbolic link that
    leads out of the copy; what is left out for that is said, and the exit code is then 1.

    For example:

        teuthis cp ./site web:/srv
        teuthis cp web:/var/log/messages .
    """
    from pathlib import Path

    from teuthis.root import settings

    with attach.verb():
        there, back = _PLACE.fullmatch(target), _PLACE.fullmatch(source)
        if (there is None) == (back is None):
            raise ConfigurationError(
                "say NAME:PATH for one of both, and a path of this host for the other"
            )
        if there is not None:
            with attach.connect(there[1]) as vm:
                vm.copy_in(source, there[2])
            return
        assert back is not None
        limit = settings.byte_count(max_size)
        with attach.connect(back[1]) as vm:
            left_out = vm.copy_out(back[2], Path(target), max_size=limit)
        for name in left_out[:_SHOWN]:
            attach.say(f"left out, as it has no place on this host: {attach.shown(name)}")
        if len(left_out) > _SHOWN:
            attach.say(f"… and {len(left_out) - _SHOWN} more")
        raise typer.Exit(1 if left_out else 0)
