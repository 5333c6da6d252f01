"""The user's cache directory: downloads, unpacked kernels, initrds. Safe to delete at any time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from teuthis import data


def directory(name: str) -> Path:
    """The cache's subdirectory `name`, made if it is missing; `TEUTHIS_CACHE` moves the cache."""
    chosen = os.environ.get("TEUTHIS_CACHE")
    top = Path(chosen) if chosen else data.user_path("XDG_CACHE_HOME", ".cache")
    path = top / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def used(path: Path, keep: int) -> Path:
    """Marks a cached file as used now and removes all but the `keep` last used beside it."""
    os.utime(path)
    files = [file for file in path.parent.iterdir() if not file.name.startswith(".")]
    with contextlib.suppress(FileNotFoundError):  # another process does the same
        for old in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[keep:]:
            old.unlink()
    return path


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path` complete or not at all."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        try:
            yield file
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keeps two processes from doing the same work: the second one waits."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
