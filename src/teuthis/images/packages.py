"""Debian packages, downloaded and unpacked into the cache as an ordinary user.

apt checks signatures; nothing is installed on the host and no maintainer script runs.
"""

import sys
from pathlib import Path

from teuthis.errors import HostError
from teuthis.images import cache

_DISK_SPACE = 300 << 20
"""What the largest package (a kernel) needs to be downloaded and unpacked, in bytes."""


def dependencies(package: str) -> list[str]:
    """Names of the packages that the newest version of `package` depends on.

    Raises:
        HostError: apt is missing or does not know the package.
    """
    record = _record(package)
    if not record:
        refresh_lists()
        record = _record(package)
    if not record:
        raise HostError(
            f"apt knows no package {package}: add a Debian archive to this host's apt sources, "
            "or name a kernel with --kernel"
        )
    lines = [line for line in record.splitlines() if line.startswith("Depends:")]
    listed = lines[0].removeprefix("Depends:").split(",") if lines else []
    return [dependency.split()[0] for dependency in listed]


def unpacked(package: str) -> Path:
    """The content of `package` as a directory in the cache; downloaded if it is not there.

    Raises:
        HostError: no apt, no disk space, or the download failed.
    """
    home = cache.directory("packages")
    final = home / package
    if final.exists():
        return final
    # Loaded only now: whoever starts a VM comes here, and finds what was unpacked before.
    import shutil
    import tempfile

    with cache.lock(home / f".{package}.lock"):
        if final.exists():
            return final
        free = shutil.disk_usage(home).free
        if free < _DISK_SPACE:
            raise HostError(
                f"only {free >> 20} MiB are free in {home}; {_DISK_SPACE >> 20} MiB are needed: "
                "make room, or set TEUTHIS_CACHE to a directory elsewhere"
            )
        with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as work:
            archive = _download(package, Path(work))
            content = Path(work) / "content"
            _run(["dpkg-deb", "-x", str(archive), str(content)], "unpacking failed")
            content.rename(final)
    return final


def _download(package: str, directory: Path) -> Path:
    print(f"Fetching {package}", file=sys.stderr, flush=True)
    try:
        _fetch(package, directory)
    except HostError:
        refresh_lists()  # they may be older than the archive
        _fetch(package, directory)
    (archive,) = directory.glob("*.deb")
    return archive


def _fetch(package: str, directory: Path) -> None:
    _run(["apt-get", *_options(), "download", package], f"downloading {package} failed", directory)


def _record(package: str) -> str:
    """What apt's lists say about a package; empty if they do not know it."""
    import subprocess

    command = ["apt-cache", *_options(), "show", "--no-all-versions", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise _no_program("apt-cache") from None
    return done.stdout if done.returncode == 0 else ""


def refresh_lists() -> None:
    """Fetches the package lists into the cache: the host's own may be old, absent or not ours."""
    print("Fetching the package lists", file=sys.stderr, flush=True)
    lists = cache.directory("apt") / "lists"
    lists.mkdir(exist_ok=True)
    _run(["apt-get", *_options(), "update"], "fetching the package lists failed")


def _options() -> list[str]:
    options = ["-o", "APT::Sandbox::User=root"]
    if not sys.stderr.isatty():
        options.append("-q")  # apt draws a progress bar of its own on a terminal
    own = cache.directory("apt")
    if (own / "lists").exists():
        options += ["-o", f"Dir::State::Lists={own}/lists", "-o", f"Dir::Cache={own}"]
    return options


def _run(command: list[str], failure: str, directory: Path | None = None) -> None:
    import subprocess

    try:
        subprocess.run(command, check=True, cwd=directory, stdin=subprocess.DEVNULL, stdout=2)
    except FileNotFoundError:
        raise _no_program(command[0]) from None
    except subprocess.CalledProcessError as error:
        raise HostError(
            f"{failure} ({command[0]} ended with status {error.returncode}, see above): "
            "check the network and apt's sources, then try again"
        ) from error


def _no_program(name: str) -> HostError:
    return HostError(
        f"this host has no {name}: Teuthis takes its guest kernel from Debian's archive "
        "(on other systems name one with --kernel)"
    )
