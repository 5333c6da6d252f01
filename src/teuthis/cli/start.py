"""`teuthis start`: a virtual machine that outlives the command."""

from pathlib import Path
from typing import Annotated

import typer

from teuthis.cli import attach
from teuthis.errors import ConfigurationError


def main(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME | COMMAND…]",
            help="With --name: a program that the VM is for. Without: the VM to start again.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of a new VM.")] = None,
    memory: Annotated[str, typer.Option(help="Guest memory: 256M, 2G, …")] = "256M",
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An environment variable; may be repeated."),
    ] = None,
    workdir: Annotated[str, typer.Option(help="Working directory of the program.")] = "/",
    image: Annotated[
        str, typer.Option(metavar="NAME", help="The image to boot; its disk is never changed.")
    ] = "tiny",
    disk: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[,ro|,cow]",
            help="A disk: written to, read only, or with what is written kept apart until `rm`.",
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
    host_port: Annotated[
        list[int] | None,
        typer.Option(help="A port of this machine's loopback that the guest may reach."),
    ] = None,
    mac: Annotated[str | None, typer.Option(help="The guest's MAC address.")] = None,
    mtu: Annotated[int | None, typer.Option(help="Largest payload of a network frame.")] = None,
    net_rate: Annotated[
        str | None, typer.Option(help="Bytes a second that the guest may send, such as 10M.")
    ] = None,
    kernel: Annotated[
        Path | None,
        typer.Option(help="A vmlinuz or vmlinux instead of the image's own kernel."),
    ] = None,
    on_hang: Annotated[
        str, typer.Option(metavar="report|kill", help="What becomes of a guest that hangs.")
    ] = "report",
    processor: Annotated[
        str, typer.Option(metavar="auto|kvm|soft", help="What runs the guest's instructions.")
    ] = "auto",
    no_agent: Annotated[
        bool,
        typer.Option("--no-agent", help="For an image that boots by itself, without our agent."),
    ] = False,
    allow_missing_wall: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run without a wall that this host cannot give."),
    ] = None,
) -> None:
    """Start a virtual machine that goes on when this command ends.

    It is ready when the command returns. With a program, the VM ends when that does, and `teuthis
    logs` shows what it wrote; without one, the VM runs until `teuthis stop`. `teuthis exec` runs
    more programs in it, `teuthis ls` lists all. A VM that has ended keeps its name and its disk
    until `teuthis rm`, and can be started again by its name.

    For example:

        teuthis start --name web
        teuthis start --name site --image debian --net user --publish 8080:80
        teuthis start --name job --memory 1G -- sh -c 'sleep 60; echo done'
        teuthis start --name stock --image debian-stock --memory 512M --no-agent
        teuthis start web
    """
    from teuthis.root import named

    words = words or []
    with attach.verb():
        if on_hang not in ("report", "kill"):
            raise ConfigurationError(f"--on-hang {on_hang}: say report or kill")
        if name is not None:
            named.start(
                name,
                words,
                memory=memory,
                image=image,
                disks=[attach.disk(text) for text in disk or ()],
                network=net,
                publish=publish or (),
                host_ports=host_port or (),
                mac=mac,
                mtu=mtu,
                net_rate=net_rate,
                kernel=kernel,
                env=dict(attach.variable(text) for text in env or ()),
                cwd=workdir,
                on_hang="kill" if on_hang == "kill" else "report",
                processor=processor,
                agent=not no_agent,
                allow_missing_walls=allow_missing_wall or (),
            ).close()
        elif len(words) == 1:
            named.start_again(words[0]).close()
        else:
            raise ConfigurationError(
                "say --name NAME for a new VM, or the name of one that is to be started again"
            )
