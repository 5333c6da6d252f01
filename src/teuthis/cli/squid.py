"""`teuthis squid`: the register as a drawing, or alive in a browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from teuthis.cli import attach

if TYPE_CHECKING:
    from teuthis.flows import Count
    from teuthis.flows.live import Sources
    from teuthis.flows.live.page import Report

_REPORT = Path("build/flows-report.json")


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
    live: Annotated[
        bool, typer.Option("--live", help="Serve a page whose lines move with running VMs.")
    ] = False,
    port: Annotated[int, typer.Option(help="With --live: the port; 0 takes a free one.")] = 0,
) -> None:
    """Draw every way out of a virtual machine, as an SVG or alive in a browser.

    The body is the guest, every line a flow of the register, its colour what falls if its receiver
    falls. Made from the register alone, or with the traffic of a run:

        teuthis squid -o squid.svg
        teuthis run --counts counts.json -- true; teuthis squid --counts counts.json -o squid.svg
        teuthis squid -o squid.svg --run -- sh -c 'ls -R / | sha256sum'

    With --live the lines move with the counters of all running VMs that have names, and of the
    one that --run starts; what is refused flashes. The page is for this machine only.

        teuthis squid --live --run -- sh -c 'while :; do ls -R /; done'
    """
    if run != bool(command):
        raise typer.BadParameter("--run and a program belong together: --run -- uname -a")
    if run and counts:
        raise typer.BadParameter("either --run or --counts")
    if live and (output or counts):
        raise typer.BadParameter("--live takes neither --output nor --counts")
    with attach.verb():
        if live:
            _live(command, port)
            return
        from teuthis.errors import ConfigurationError
        from teuthis.flows.squid import draw

        drawing = draw(_counts(command, counts))
        try:
            if output is None:
                sys.stdout.write(drawing)
            else:
                output.write_text(drawing, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{output}: {error.strerror}") from error


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


def _live(command: list[str] | None, port: int) -> None:
    import threading

    from teuthis.flows.live import Page, Sources, address, listen, serve

    sources = Sources()
    page = Page(sources, _report())
    with listen(port) as listener:
        print(f"The squid lives at {address(page, listener)} until ^C", flush=True)
        sources.watch()
        if command:
            threading.Thread(target=_run, args=(command, sources), daemon=True).start()
        try:
            serve(page, listener)
        finally:
            sources.close()


def _run(command: list[str], sources: Sources) -> None:
    """Runs the program in a VM whose counters the page shows, also when it has ended."""
    from teuthis.errors import TeuthisError
    from teuthis.root.vm import VM

    try:
        with VM() as vm:
            sources.add("this run", vm.flows)
            code = attach.run(vm, command, "/", None)
        attach.say(f"the program ended with exit code {code}; the page stays until ^C")
    except TeuthisError as error:
        attach.say(str(error))


def _report() -> Report:
    """What `make flows-report` found in this directory, if it ran here."""
    import msgspec

    try:
        return msgspec.json.decode(_REPORT.read_bytes(), type=dict[str, dict[str, str]])
    except (OSError, msgspec.DecodeError):
        return {}
