"""Starts an interpreter in a guest that waits there for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from teuthis.errors import CommandNotExecutable, CommandNotFound, ConfigurationError
from teuthis.protocol import ROOT
from teuthis.root.console import harmless

if TYPE_CHECKING:
    from teuthis.images.store import Image
    from teuthis.root.guest import Guest

_READ: Final = "__import__('sys').stdin.read()"
_COMMAND: Final = ("python3", "-c", f"exec(compile({_READ}, '<warm>', 'exec'), {{}})")


def kind(warm: str | None) -> str | None:
    """`warm`, which says what kind of interpreter a VM is to have, if any.

    Raises:
        ConfigurationError: there is no such kind.
    """
    if warm not in (None, "python"):
        raise ConfigurationError(f"warm={warm!r}: say 'python'")
    return warm


def start(guest: Guest, image: Image) -> None:
    """Lets the guest's own Python start, and returns when it waits.

    Raises:
        ConfigurationError: the guest has none, or none that can wait.
        VMError: the VM is no more.
    """
    source = Path(__file__).with_name("python.py").read_bytes()
    try:
        # Each program says its own PYTHONPATH.
        result = guest.run(_COMMAND, input=source, env={"PYTHONPATH": ""}, user=ROOT)
    except (CommandNotFound, CommandNotExecutable) as error:
        raise ConfigurationError(
            f"the image {image.name!r} has no python3 that could be kept warm: leave out `warm`, "
            "or add python3 to the image"
        ) from error
    if result.exit_code:
        words = harmless(result.stderr).strip().rpartition("\n")[2]
        raise ConfigurationError(
            f"the Python of the image {image.name!r} cannot be kept warm (3.9 or later can): "
            f"{words or f'exit code {result.exit_code}'}"
        )
