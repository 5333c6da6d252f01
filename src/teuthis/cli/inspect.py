"""`teuthis inspect`: all that is known of one virtual machine."""

import shlex
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import typer

from teuthis.cli import attach
from teuthis.errors import NoFacts


def main(
    name: Annotated[str, typer.Argument(help="The VM's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show how a virtual machine was started, what it is doing, and its processes."""
    from teuthis.cli.ls import description
    from teuthis.root import named, store

    with attach.verb():
        record = store.find(name)
        known = description(record)
        if record.state in ("running", "paused"):
            with named.connect(name) as vm:
                known["processes"] = vm.processes
                known["health"] = vm.health.name.lower()
                if not record.plan.agent and not vm.paused:  # our agent tells no facts
                    with suppress(NoFacts):
                        known["facts"] = vm.facts()
        if as_json:
            attach.print_json(known)
            return
        for key, value in known.items():
            if value:
                print(f"{key:10} {attach.shown(_text(value))}")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(each)}" for name, each in value.items() if each)
    if isinstance(value, list):
        return shlex.join(map(str, value))
    if isinstance(value, float):
        return datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds")
    return str(value)
