"""`teuthis surface`: what a process could do if it fell."""

from typing import Annotated

import typer

_COLUMNS = 4


def main(
    pid: Annotated[
        list[int] | None,
        typer.Option(help="Any process, ours or not; may be repeated. Default: all of our VMs'."),
    ] = None,
    vm: Annotated[
        str | None, typer.Option(metavar="NAME", help="All processes of the VM of that name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what a process could do if an attacker took it over.

    User, capabilities, system calls, namespaces, descriptors, file systems and limits, for the
    processes of running VMs or for any other, so that both can be put side by side:

        teuthis surface --vm web
        teuthis surface --pid $(pgrep -n qemu-system)
    """
    import msgspec

    from teuthis.errors import TeuthisError
    from teuthis.jail.surface import processes, surface

    try:
        roles = _of_vm(vm) if vm is not None else {}
        wanted = [*roles, *(pid or ())] if vm or pid else processes()
        found = [surface(number) for number in wanted]
    except TeuthisError as error:
        typer.echo(f"teuthis: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    if not found:
        typer.echo("teuthis: no VM is running here that you may see; --pid shows any process")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for few in (found[at : at + _COLUMNS] for at in range(0, len(found), _COLUMNS)):
        table = Table(
            "", *(f"{roles.get(each.pid, each.program)} {each.pid}" for each in few), box=None
        )
        for name in few[0].__struct_fields__[2:]:
            table.add_row(name.replace("_", " "), *(_cell(getattr(each, name)) for each in few))
        console.print(table)


def _of_vm(name: str) -> dict[int, str]:
    """What the processes of a VM are, by process id."""
    from teuthis.root import named

    with named.connect(name) as vm:
        return {number: role for role, number in vm.processes.items()}


def _cell(value: object) -> str:
    match value:
        case None:
            return "[dim]not readable[/]"
        case bool():
            return "yes" if value else "no"
        case dict():
            return "\n".join(f"{k}: {v}" for k, v in value.items() if v != "unlimited")
        case list():
            return " ".join(map(str, value)) or "none of its own"
    return str(value)
