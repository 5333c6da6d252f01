"""The user's data directory: images, and the VMs that have names."""

import os
from collections.abc import Callable
from pathlib import Path

from teuthis.errors import HostError


def directory(name: str = "") -> Path:
    """The data directory or its subdirectory `name`, made if missing; `TEUTHIS_DATA` moves it."""
    chosen = os.environ.get("TEUTHIS_DATA")
    top = Path(chosen).absolute() if chosen else user_path("XDG_DATA_HOME", ".local/share")
    path = top / name
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def user_path(variable: str, default: str) -> Path:
    """Ours of the user's directories (XDG Base Directory Specification)."""
    named = Path(os.environ.get(variable, ""))
    return (named if named.is_absolute() else Path.home() / default) / "teuthis"


def see_private(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Raises `HostError` unless `path` is our user's own, of that kind, and nobody else's."""
    status = path.lstat()
    if not is_kind(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise HostError(
            f"{path} must be yours and nobody else's: look who made it, then `chmod go= {path}`"
        )
