"""The options that several verbs share, each written once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Memory = Annotated[str, typer.Option(help="Guest memory: 256M, 2G, …")]
Env = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An environment variable; may be repeated."),
]
User = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|UID[:GROUP]",
        help="Who programs run as, by the guest's own /etc/passwd; else the image's user, or root.",
    ),
]
Image = Annotated[
    str, typer.Option(metavar="NAME", help="The image to boot; its disk is never changed.")
]
Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Keep what the guest writes above its image, to be given again."
    ),
]
Disks = Annotated[
    list[str] | None,
    typer.Option(
        "--disk",
        metavar="FILE[,ro|,cow]",
        help="A disk: written to; read only; or what is written is kept apart, as long as the VM.",
    ),
]
Net = Annotated[
    str | None,
    typer.Option(
        metavar="user|switch:NAME",
        help="A network: the host's, as far as you reach it, or one between VMs.",
    ),
]
Publish = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[ADDR:]HOST:GUEST[/udp]",
        help="Lead a port of this machine's loopback, or of ADDR, to the guest.",
    ),
]
HostPorts = Annotated[
    list[int] | None,
    typer.Option("--host-port", help="A port of this machine's loopback that the guest may reach."),
]
Mac = Annotated[str | None, typer.Option(help="The guest's MAC address.")]
Mtu = Annotated[int | None, typer.Option(help="Largest payload of a network frame.")]
NetRate = Annotated[
    str | None, typer.Option(help="Bytes a second that the guest may send, such as 10M.")
]
OnHang = Annotated[
    Literal["report", "kill"], typer.Option(help="What becomes of a guest that hangs.")
]
Kernel = Annotated[
    Path | None, typer.Option(help="A vmlinuz or vmlinux instead of the image's own kernel.")
]
AllowMissingWall = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Run without a wall that this host cannot give."),
]
Cold = Annotated[
    bool, typer.Option("--cold", help="Boot, where a VM would start from one that booted before.")
]
Warm = Annotated[
    str | None,
    typer.Option(
        metavar="python", help="Have an interpreter started already, for programs in Python."
    ),
]
Processor = Annotated[
    str,
    typer.Option(
        metavar="auto|kvm|soft", help="The host's own (kvm), ours on any host (soft), or auto."
    ),
]
Cpus = Annotated[int, typer.Option(metavar="N", help="Virtual processors; more than one need KVM.")]
