"""`teuthis start`: a virtual machine that outlives the command."""

from contextlib import suppress
from typing import Annotated

import typer

from teuthis.cli import attach, options
from teuthis.errors import ConfigurationError, VMClosed


def main(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME | COMMAND…]",
            help="With --name: a program that the VM is for. Without: the VM to start again.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of a new VM.")] = None,
    memory: options.Memory = "256M",
    env: options.Env = None,
    workdir: Annotated[str, typer.Option(help="Working directory of the program.")] = "/",
    user: options.User = None,
    image: options.Image = "tiny",
    disk: options.Disks = None,
    net: options.Net = None,
    publish: options.Publish = None,
    host_port: options.HostPorts = None,
    mac: options.Mac = None,
    mtu: options.Mtu = None,
    net_rate: options.NetRate = None,
    kernel: options.Kernel = None,
    on_hang: options.OnHang = "report",
    processor: options.Processor = "auto",
    cpus: options.Cpus = 1,
    no_agent: Annotated[
        bool,
        typer.Option("--no-agent", help="For an image that boots by itself, without our agent."),
    ] = False,
    restore: Annotated[
        str | None,
        typer.Option(
            metavar="DIRECTORY",
            help="Go on from a snapshot (`teuthis snapshot`), with memory, disks and network of "
            "the VM that was saved. What the guest writes to disks goes with the VM's end.",
        ),
    ] = None,
    allow_missing_wall: options.AllowMissingWall = None,
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
        teuthis start --name web-2 --restore prepared
        teuthis start web
    """
    from teuthis.root import named

    words = words or []
    # Its program may have ended before we connect: `teuthis ls -a` says how.
    with attach.verb(), suppress(VMClosed):
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
                user=user,
                on_hang=on_hang,
                processor=processor,
                cpus=cpus,
                agent=not no_agent,
                restore=restore,
                allow_missing_walls=allow_missing_wall or (),
            ).close()
        elif len(words) == 1:
            named.start_again(words[0]).close()
        else:
            raise ConfigurationError(
                "say --name NAME for a new VM, or the name of one that is to be started again"
            )
