"""VMs with names in a data directory of the test's own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guests.processes import run
from teuthis.root import named, store


@contextmanager
def home(path: Path) -> Iterator[Path]:
    """Makes `path` the data directory; at the end no VM in it is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEUTHIS_DATA", str(path))
        try:
            yield path
        finally:
            for record in store.records():
                named.remove(record.name, force=True)
            assert not list((path / "vms").iterdir())


def listed(*options: str) -> dict[str, dict[str, Any]]:
    """What `teuthis ls` says, by name."""
    done = run("ls", "--json", *options)
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)}
