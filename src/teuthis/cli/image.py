"""`teuthis image`: makes, lists, checks and removes the images that VMs boot from."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from teuthis.cli import attach, options
from teuthis.errors import ConfigurationError, ImageError, TeuthisError
from teuthis.images import debian, importing, make, store
from teuthis.images.store import Image

app = typer.Typer(
    help="Make, list, check and remove the images that virtual machines boot from.",
    no_args_is_help=True,
)
_SIZE: Final = re.compile(r"(\d{1,6})([MGT])")
_UNITS: Final = {"M": 20, "G": 30, "T": 40}
_MIN_SIZE: Final = 64 << 20
_MAX_SIZE: Final = 16 << 40


@app.command("build")
def build(
    flavour: Annotated[
        str, typer.Argument(help=f"What to build: {' or '.join(debian.FLAVOURS)}.")
    ] = "debian",
    name: Annotated[
        str | None, typer.Option(help="The image's name; the flavour's unless given.")
    ] = None,
    include: Annotated[
        str, typer.Option(metavar="PKG,…", help="Debian packages beside the flavour's.")
    ] = "",
    size: Annotated[str, typer.Option(help="Size of the root disk: 512M, 2G, …")] = "2G",
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="A Debian archive to take packages from.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Build it anew even if it is there.")
    ] = False,
    warm: options.Warm = None,
) -> None:
    """Build a Debian image, unless it is there.

    `debian`: Debian with python3, on the kernel that `teuthis run` uses anyway.
    `debian-stock`: Debian that boots by itself, with its own kernel, initrd and systemd and none
    of Teuthis's software.
    """
    packages = [package for package in include.split(",") if package]
    with _errors(), _steps(f"image {name or flavour}") as say:
        image = make.build(
            flavour,
            name=name,
            include=packages,
            size=_size(size),
            mirror=mirror,
            update=update,
            say=say,
        )
        _keep_template(image, say)
        if warm is not None:
            _keep_template(image, say, warm)
    _show([image])


def _keep_template(image: Image, say: debian.Say, warm: str | None = None) -> None:
    """Boots it once, so that no `teuthis run` has to."""
    from teuthis.root.processor import choose
    from teuthis.root.vm import VM

    if image.initrd is None and choose("auto") == "soft":
        say("a template: it boots once" if warm is None else f"a template with a warm {warm}")
        VM(image=image.name, warm=warm).close()


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A file, or an OCI layout directory.")],
    name: Annotated[str, typer.Option(help="The image's name.")],
    kernel: Annotated[
        Path | None, typer.Option(help="A vmlinuz instead of the distribution's cloud kernel.")
    ] = None,
    modules: Annotated[
        Path | None, typer.Option(help="Its lib/modules/RELEASE, if that is not beside it.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Size of the root disk, and the most that an archive may unpack to."),
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="The root device if the disk does not say it: sda2.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="Which image, if a container archive has several.")
    ] = None,
) -> None:
    """Make an image of a disk, a file system, a tar archive or a container image.

    Takes a raw disk with partitions, an ext4 file system, a root file system as a tar archive, an
    OCI image layout (`skopeo copy … oci:DIR` or `oci-archive:FILE`) and what `docker save` writes;
    files may be compressed by gzip, xz or zstd. The source need not be trusted.
    """
    with _errors(), _steps(f"image {name}") as say:
        image = importing.import_image(
            source,
            name=name,
            kernel=kernel,
            modules=modules,
            size=None if size is None else _size(size),
            root=root,
            tag=tag,
            say=say,
        )
    _show([image])


@app.command("ls")
def ls() -> None:
    """List the images."""
    _show(store.list_images())


@app.command("rm")
def rm(names: Annotated[list[str], typer.Argument(help="Images to remove.")]) -> None:
    """Remove images that no VM uses, nor any VM with a name that is stopped."""
    from teuthis.root import templates
    from teuthis.root.store import records

    with _errors():
        users = {record.plan.image: record.name for record in records()}
        for name in names:
            if name in users:
                raise ImageError(
                    f"the image {name!r} is in use by the VM {users[name]!r}: "
                    f"`teuthis rm {users[name]}` removes that first"
                )
            store.remove(name)
            templates.forget(name)


@app.command("verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Images; all unless given.")] = None,
) -> None:
    """Compare every file of images with the SHA-256 that was noted when they were made.

    The exit code is 0 if all are as they were.
    """
    with _errors():
        images = [store.find(name) for name in names] if names else store.list_images()
        bad = 0
        for image in images:
            wrong = make.verify(image)
            bad += bool(wrong)
            print(f"{image.name}: " + (f"changed: {', '.join(wrong)}" if wrong else "ok"))
    raise typer.Exit(1 if bad else 0)


def _show(images: list[Image]) -> None:
    from rich.table import Table

    table = Table("name", "made from", "kernel", "root", "disk", "on disk", box=None)
    for image in images:
        record = image.record
        if record is None or image.disk is None:
            continue
        status = image.disk.stat()
        table.add_row(
            image.name,
            attach.shown(record.source),
            record.release,
            image.root,
            f"{status.st_size / (1 << 30):.1f} GiB",
            f"{status.st_blocks * 512 >> 20} MiB",
        )
    attach.print_table(table)


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip().upper())
    size = int(match[1]) << _UNITS[match[2]] if match else 0
    if not _MIN_SIZE <= size <= _MAX_SIZE:
        raise ConfigurationError(f"--size {text}: say 512M or 2G; 64M to 16T")
    return size


@contextmanager
def _errors() -> Iterator[None]:
    """Ends the program with an error's message, and exit code 125 as in `teuthis run`."""
    try:
        yield
    except (TeuthisError, OSError) as error:
        attach.say(str(error))
        raise typer.Exit(125) from None


@contextmanager
def _steps(title: str) -> Iterator[debian.Say]:
    """Shows steps as they come: one line that changes on a terminal, else a line each."""
    if not sys.stderr.isatty():
        yield lambda step: print(f"{title}: {step}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title)
        yield lambda step: progress.update(task, description=f"{title}: {step}")
