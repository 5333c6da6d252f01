"""`teuthis run`: one program in a virtual machine of its own, its streams connected to ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from teuthis.cli import attach
from teuthis.errors import ConfigurationError, TeuthisError
from teuthis.flows import Count, Counters
from teuthis.root.vm import VM

if TYPE_CHECKING:
    # Words of the annotations only: `plain` calls `main` without them, `verbs` puts them here.
    import typer

    from teuthis.cli import options
    from teuthis.root.disks import Disk


def main(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The program and its arguments; the image's own unless given."),
    ] = None,
    memory: options.Memory = "256M",
    timeout: Annotated[
        str | None,
        typer.Option(help="Time limit of the program, such as 30s or 5m; then the VM is killed."),
    ] = None,
    env: options.Env = None,
    workdir: Annotated[
        str | None, typer.Option(help="Working directory in the guest; the image's, or /.")
    ] = None,
    user: options.User = None,
    image: options.Image = "tiny",
    keep: options.Keep = None,
    disk: options.Disks = None,
    net: options.Net = None,
    publish: options.Publish = None,
    host_port: options.HostPorts = None,
    mac: options.Mac = None,
    mtu: options.Mtu = None,
    net_rate: options.NetRate = None,
    tty: Annotated[
        bool, typer.Option("--tty", "-t", help="Give the program a terminal: this one.")
    ] = False,
    on_hang: options.OnHang = "report",
    kernel: options.Kernel = None,
    console: Annotated[
        bool, typer.Option("--console", help="Show the guest kernel's log on stderr.")
    ] = False,
    allow_missing_wall: options.AllowMissingWall = None,
    processor: options.Processor = "auto",
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all that the run depends on, for `replay`."),
    ] = None,
    cold: options.Cold = False,
    warm: options.Warm = None,
    cpus: options.Cpus = 1,
    restore: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on from a snapshot; all but the program is its own."),
    ] = None,
    flows: Annotated[
        bool,
        typer.Option("--flows", help="Afterwards show on stderr what crossed the VM's boundary."),
    ] = False,
    counts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Afterwards write the same as JSON, for `squid`."),
    ] = None,
) -> None:
    """Run a program in a new virtual machine.

    The program's stdout and stderr arrive here as they come, and stdin goes to it. The VM has a
    fresh file system in memory, no network unless you ask for one (--net), and no access to this
    machine's files; when the program ends, on ^C and after the time limit nothing of it stays
    behind.

    The exit code is the program's own, or 128 + n when signal n killed it; 124 after the time
    limit; 125 when Teuthis or the VM failed; 126 and 127 when the guest cannot run or find the
    program.

    For example:

        teuthis run -- uname -a
        teuthis run --memory 512M --timeout 30s -- sh -c 'exit 3'
        teuthis run --env NAME=world -- sh -c 'echo hello $NAME'
        tar c . | teuthis run -- sha256sum
        teuthis run --net user --publish 8080:80 -- httpd -f
        teuthis run --kernel ./vmlinuz --console -- dmesg
        teuthis run --image debian --keep work.layer -- apt-get clean
        teuthis run --image debian --warm python -- python3 -c 'print(1)'
        teuthis run --disk data.img --disk more.img,ro -- cat /proc/partitions
    """
    from teuthis.images import store
    from teuthis.root import settings

    with attach.verb(brief=console):
        defaults = store.find(image).defaults
        program = command or [*defaults.entrypoint, *defaults.command]
        if not program:
            raise ConfigurationError(
                f"the image {image!r} names no program of its own: name one after `--`"
            )
        limit = None if timeout is None else settings.duration(timeout)
        variables = dict(attach.variable(text) for text in env or ())
        if tty:
            from teuthis.cli import terminal

            terminal.check()
            if console:
                raise ConfigurationError("--console would write over what --tty shows: choose one")
        log = attach.Log() if console else None
        disks = [attach.disk(text) for text in disk or ()]
        shown = Counters()
        walls = allow_missing_wall or ()
        if restore is not None and (
            image != store.TINY
            or any((keep, disks, net, publish, host_port, mac, mtu, net_rate, kernel, record))
            or cold
            or warm
            or on_hang == "kill"
            or processor == "kvm"
            or cpus != 1
        ):
            raise ConfigurationError(
                "--restore starts a VM that was made before: of the options, only those of the "
                "program and --console go with it"
            )

        def start() -> VM:
            if restore is not None:
                return VM.restore(restore, console=log, env=variables, allow_missing_walls=walls)
            return VM(
                memory,
                image=image,
                keep=keep,
                disks=disks,
                network=net,
                publish=publish or (),
                host_ports=host_port or (),
                mac=mac,
                mtu=mtu,
                net_rate=net_rate,
                kernel=kernel,
                console=log,
                env=variables,
                on_hang=on_hang,
                allow_missing_walls=walls,
                processor=processor,
                record=record,
                cold=cold,
                warm=warm,
                cpus=cpus,
            )

        with start() as vm:
            try:
                directory = workdir or defaults.workdir
                if tty:
                    code = terminal.run(vm, program, directory, limit, shown, user=user)
                else:
                    code = attach.run(vm, program, directory, limit, user=user)
                if not vm.closed and (keep is not None or any(map(_is_kept, disks))):
                    _power_off(vm)
            finally:
                vm.close()
                if flows:
                    from teuthis.cli.flows import print_counts

                    print_counts(_flows(vm, shown))
                if counts is not None:
                    _write_counts(counts, _flows(vm, shown))
        sys.exit(code)


def _power_off(vm: VM) -> None:
    """In order: what was written to be kept must not stay in the guest's memory."""
    try:
        vm.shutdown()
    except TeuthisError as error:
        attach.say(f"what the guest wrote last may not have reached its disks: {error}")


def _is_kept(disk: Disk) -> bool:
    return not disk.read_only and (disk.layer is not None or not disk.copy_on_write)


def _flows(vm: VM, shown: Counters) -> dict[str, Count]:
    """The VM's counters, and ours."""
    ours = shown.snapshot()
    return {flow: count + ours[flow] for flow, count in vm.flows().items()}


def _write_counts(path: Path, counts: dict[str, Count]) -> None:
    from teuthis.flows.counts import write

    try:
        write(path, counts)
    except OSError as error:
        raise ConfigurationError(f"--counts {path}: {error.strerror}") from error
