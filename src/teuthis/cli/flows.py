"""`teuthis flows`: the register of every way that data crosses a boundary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from teuthis.flows import FLOWS, RECEIVERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from teuthis.flows import Count


def main(
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
    in it cannot happen. `teuthis run --flows` counts each flow during a run.
    """
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
    from rich.console import Console
    from rich.table import Table

    table = Table("flow", "kind", "direction", "receiver", "bytes", "shape", box=None)
    for flow in chosen:
        table.add_row(
            flow.id, flow.kind, flow.direction, flow.receiver, f"≤ {flow.max_bytes}", flow.shape
        )
    console = Console()
    console.print(table)
    console.print(f"{len(chosen)} flows", highlight=False)


def print_counts(counts: Mapping[str, Count]) -> None:
    """Writes the counters of one run to stderr: the flows that happened or were refused."""
    from rich.console import Console
    from rich.table import Table

    table = Table("flow", "receiver", box=None)
    for heading in ("count", "bytes", "refused"):
        table.add_column(heading, justify="right")
    for name, count in counts.items():
        if count:
            numbers = (count.count, count.bytes, count.rejected)
            table.add_row(name, FLOWS[name].receiver, *(f"{number:,}" for number in numbers))
    Console(stderr=True, highlight=False).print(table)
