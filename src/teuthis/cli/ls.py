"""`teuthis ls`: the virtual machines with names."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teuthis.cli import attach

if TYPE_CHECKING:
    from teuthis.root.record import Record


def main(
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the virtual machines that were started by name.

    A VM is starting, running, paused, stopped (on request), ended (by itself), or dead: its keeper
    was killed, or the host restarted. Those that are stopped or ended are shown with `-a`.
    """
    from teuthis.root import store

    with attach.verb():
        found = [
            record
            for record in store.records()
            if every or record.state in ("starting", "running", "paused", "dead")
        ]
        if as_json:
            attach.print_json([description(record) for record in found])
        else:
            _print(found)


def description(record: "Record") -> dict[str, Any]:
    """A VM as JSON: what is kept of it, and what that means now."""
    import msgspec

    kept: dict[str, Any] = msgspec.to_builtins(record)
    kept["plan"] = {
        field: msgspec.to_builtins(getattr(record.plan, field))
        for field in record.plan.__struct_fields__
    }
    now = {
        "state": record.state,
        "reason": record.reason,
        "exit_code": record.ending.exit_code if record.ending else None,
        "directory": str(record.directory),
    }
    return kept | now


def _print(records: list["Record"]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "state", "since", "image", "memory", "program", "reason", box=None)
    for record in records:
        since = record.ending.time if record.ending else record.ready or record.created
        cells = (
            record.name,
            record.state,
            _age(time.time() - since),
            _origin(record),
            str(record.plan.memory),
            " ".join(record.plan.command)[:40],
            record.reason,
        )
        table.add_row(*(Text(attach.shown(cell)) for cell in cells))
    attach.print_table(table)


def _origin(record: "Record") -> str:
    """What the VM goes on from, or boots."""
    restored = record.plan.restore is not None and not record.plan.forked
    return f"snapshot {record.plan.restore}" if restored else record.plan.image


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
