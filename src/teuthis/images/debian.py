"""Debian root file systems, by mmdebstrap: as root, or as an ordinary user in a user namespace.

What is downloaded is checked by apt against the archive's keys; maintainer scripts run in the new
root file system, not in the host's. The result comes as a tar archive and is applied to a `Tree`.
"""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from teuthis.errors import ConfigurationError, HostError
from teuthis.images import host

Say = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """What is in a Debian root file system beside the essential packages."""

    packages: tuple[str, ...]
    files: dict[str, str]
    own_kernel: bool
    """Whether it boots by its own kernel, initrd and init, without our agent."""


_USUAL: Final = (
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "netbase",
    "procps",
    "python3",
)
_HOSTS: Final = "127.0.0.1 localhost teuthis\n::1 localhost\n"
_FILES: Final = {"etc/hostname": "teuthis\n", "etc/hosts": _HOSTS}
FLAVOURS: Final = {
    "debian": Flavour(_USUAL, _FILES, own_kernel=False),
    "debian-stock": Flavour(
        (
            *_USUAL,
            "dbus",
            "hyperv-daemons",
            "initramfs-tools",
            "linux-image-cloud-amd64",
            "systemd-sysv",
            "udev",
            "zstd",
        ),
        {**_FILES, "etc/fstab": "/dev/sda / ext4 errors=remount-ro 0 1\n"},
        own_kernel=True,
    ),
}
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MAX_LINES: Final = 20


def suite() -> str:
    """The release that this host's archive gives: the host's own, if it is Debian, else stable."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return release.get("VERSION_CODENAME", "stable") if release.get("ID") == "debian" else "stable"


def epoch() -> int:
    """The time that new files get: SOURCE_DATE_EPOCH if it is set, else the start of today."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given and not given.isdecimal():
        raise ConfigurationError(f"SOURCE_DATE_EPOCH={given!r} is no number of seconds")
    return int(given) if given else int(time.time()) // 86400 * 86400


def missing() -> Iterator[str]:
    """What this host lacks for building Debian images, a sentence each."""
    for name in [*host.PACKAGES, *(host.ROOTLESS if os.geteuid() else ())]:
        try:
            host.program(name)
        except HostError as error:
            yield str(error)
    if not _KEYRING.exists():
        yield f"there is no {_KEYRING}: apt-get install debian-archive-keyring"


def bootstrap(
    flavour: Flavour, include: Sequence[str], mirror: str | None, archive: Path, time: int, say: Say
) -> None:
    """Makes a root file system, as a tar archive.

    Args:
        flavour: what is in it.
        include: more packages.
        mirror: the URL of an archive instead of Debian's own.
        archive: the file that is made.
        time: seconds since 1970; no file in it is newer.
        say: told each step.

    Raises:
        HostError: the host lacks something, or the bootstrap failed.
    """
    for sentence in missing():
        raise HostError(sentence)
    packages = ",".join(sorted({*flavour.packages, *include}))
    command = [
        host.program("mmdebstrap"),
        "--mode=unshare" if os.geteuid() else "--mode=root",
        "--variant=minbase",
        "--architectures=amd64",
        "--format=tar",
        f"--include={packages}",
        # A build that the power cut short is thrown away anyway: no need to wait for the disk.
        "--dpkgopt=force-unsafe-io",
        '--customize-hook=rm -f "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"',
        f"--keyring={_KEYRING}",
        suite(),
        "-",
        *([mirror] if mirror else ()),
    ]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(time), "LC_ALL": "C.UTF-8"}
    lines: list[str] = []
    # The root of its user namespace may not enter our directories; it gets the open file.
    with (
        archive.open("xb") as file,
        subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        assert process.stderr is not None
        for raw in process.stderr:
            line = raw.decode("utf-8", "replace").strip()
            lines = [*lines[-_MAX_LINES:], line]
            if line.startswith("I: "):
                say(line.removeprefix("I: "))
    if process.returncode:
        words = "\n".join(lines)
        raise HostError(f"mmdebstrap failed with status {process.returncode}:\n{words}")
