"""`teuthis flows`: the register of every way that data crosses a boundary."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from teuthis.cli import attach
from teuthis.flows import FLOWS, RECEIVERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from teuthis.flows import Count


def main(
    name: Annotated[
        str | None, typer.Argument(help="A running VM: its counters, instead of the register.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="With a VM: again every second, until it ends.")
    ] = False,
    receiver: Annotated[
        str | None, typer.Option(help=f"Only what this process parses: {', '.join(RECEIVERS)}.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only this kind, such as hypercall, message or link.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole register, as JSON.")] = False,
) -> None:
    """List every way that data crosses from a VM to the host or back.

    The list is the register `flows.toml`, from which the programs themselves are made: what is not
    in it cannot happen. `teuthis run --flows` counts each flow during a run, `teuthis flows NAME`
    shows the counters of a VM that was started by name.
    """
    if name is not None:
        _live(name, receiver, kind, watch=watch, as_json=as_json)
        return
    chosen = [
        flow
        for flow in FLOWS.values()
        if receiver in (None, flow.receiver) and kind in (None, flow.kind)
    ]
    if not chosen:
        kinds = ", ".join(sorted({flow.kind for flow in FLOWS.values()}))
        raise typer.BadParameter(
            f"no such flows; receivers are {', '.join(RECEIVERS)}; kinds are {kinds}"
        )
    if as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(chosen)).decode())
        return
    from rich.table import Table

    table = Table(box=None)
    table.add_column("flow", no_wrap=True)
    for heading in ("kind", "direction", "receiver", "bytes", "shape"):
        table.add_column(heading)
    for flow in chosen:
        table.add_row(
            flow.id, flow.kind, flow.direction, flow.receiver, f"≤ {flow.max_bytes}", flow.shape
        )
    attach.print_table(table)
    print(f"{len(chosen)} flows")


def _live(name: str, receiver: str | None, kind: str | None, *, watch: bool, as_json: bool) -> None:
    """Shows the counters of a running VM."""
    from teuthis.root import named

    with attach.verb(), named.connect(name) as vm:
        while True:
            counts = {
                flow: count
                for flow, count in vm.flows().items()
                if receiver in (None, FLOWS[flow].receiver) and kind in (None, FLOWS[flow].kind)
            }
            if as_json:
                attach.print_json(counts)
            else:
                print_counts(counts, stderr=False)
            if not watch or vm.closed:
                return
            time.sleep(1)


def print_counts(counts: Mapping[str, Count], *, stderr: bool = True) -> None:
    """Writes counters: the flows that happened or were refused."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("flow", no_wrap=True)
    table.add_column("receiver")
    for heading in ("count", "bytes", "refused"):
        table.add_column(heading, justify="right")
    table.add_column("why")
    for name, count in counts.items():
        if count:
            numbers = (count.count, count.bytes, count.rejected)
            why = ", ".join(f"{kind} {number:,}" for kind, number in count.kinds.items())
            table.add_row(name, FLOWS[name].receiver, *(f"{number:,}" for number in numbers), why)
    attach.print_table(table, stderr=stderr)
