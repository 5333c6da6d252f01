"""The host's programs that make images."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Final

from teuthis.errors import HostError

PACKAGES: Final = {
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "depmod": "kmod",
    "mmdebstrap": "mmdebstrap",
}
"""The Debian package of each program."""
ROOTLESS: Final = {"newuidmap": "uidmap"}
"""What building as an ordinary user needs beside them."""
_PATH: Final = ":/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian keeps some of them, and what is not in an ordinary user's PATH."""


def program(name: str) -> str:
    """The path of a program.

    Raises:
        HostError: this host does not have it.
    """
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + _PATH)
    if not found:
        package = {**PACKAGES, **ROOTLESS}[name]
        raise HostError(f"this host has no {name}, which makes images: apt-get install {package}")
    return found


def run(command: list[str], failure: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs a program to its end, without a word if all is well.

    Raises:
        HostError: it is missing, or failed; with the end of what it said.
    """
    done = subprocess.run(
        [program(command[0]), *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        words = done.stdout.decode("utf-8", "replace").strip().splitlines()[-3:]
        raise HostError(f"{failure} ({command[0]}: {'; '.join(words)})")
