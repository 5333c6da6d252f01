"""`teuthis squid`: the register as a drawing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from teuthis.flows import Count


def main(
    command: Annotated[
        list[str] | None, typer.Argument(help="With --run: the program and its arguments.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to, if not stdout.")
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines as thick as the traffic in this file's run."),
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Run a program in a VM and draw its traffic.")
    ] = False,
) -> None:
    """Draw every way out of a virtual machine, as an SVG.

    The body is the guest, every line a flow of the register, its colour what falls if its receiver
    falls. Made from the register alone, or with the traffic of a run:

        teuthis squid -o squid.svg
        teuthis run --counts counts.json -- true; teuthis squid --counts counts.json -o squid.svg
        teuthis squid -o squid.svg --run -- sh -c 'ls -R / | sha256sum'
    """
    from teuthis.errors import TeuthisError
    from teuthis.flows.squid import draw

    if run != bool(command):
        raise typer.BadParameter("--run and a program belong together: --run -- uname -a")
    if run and counts:
        raise typer.BadParameter("either --run or --counts")
    try:
        drawing = draw(_counts(command, counts))
        if output is None:
            sys.stdout.write(drawing)
        else:
            output.write_text(drawing, encoding="utf-8")
    except (TeuthisError, OSError) as error:
        typer.echo(f"teuthis: {error}", err=True)
        raise typer.Exit(1) from None


def _counts(command: list[str] | None, path: Path | None) -> dict[str, Count] | None:
    if path is not None:
        from teuthis.flows.counts import read

        return read(path)
    if command:
        from teuthis.root.vm import VM

        with VM() as vm:
            result = vm.run(command)
        sys.stderr.buffer.write(result.stdout + result.stderr)
        return vm.flows()
    return None
