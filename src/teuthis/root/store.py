"""The VMs that have names: an SQLite database of their owner's, and a directory for each VM.

    <data>/teuthis.db       one row per VM, from `start` to `rm`
    <data>/vms/ID/          its logs, and its keeper's socket; an ID is never given again

The socket is not in the user's runtime directory (XDG_RUNTIME_DIR), as that is emptied when the
user logs out, and these VMs go on.

Every function is one transaction, so that several commands may be at work at once. What a row says
about a living VM is checked against the host's processes whenever it is read: whoever wrote the
row may have been killed.
"""

import os
import re
import secrets
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from teuthis import data
from teuthis.errors import ConfigurationError, HostError
from teuthis.root.life import ProcessId, this_process
from teuthis.root.plan import Plan
from teuthis.root.record import Ending, Record

VERSION: Final = 1
DATABASE: Final = "teuthis.db"
_PATIENCE: Final = 60.0
"""Seconds that a transaction waits for those of other commands."""
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SCHEMA: Final = """
CREATE TABLE vm (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    plan TEXT NOT NULL,
    created REAL NOT NULL,
    run TEXT NOT NULL UNIQUE,
    starter TEXT NOT NULL,
    keeper TEXT,
    ready REAL,
    ending TEXT
) STRICT
"""


def check_name(name: str) -> str:
    """The name, if a VM may have it.

    Raises:
        ConfigurationError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name[:80]!r} cannot be the name of a VM: use up to 63 lower-case letters, digits "
            "and hyphens, no hyphen first or last"
        )
    return name


def find(name: str) -> Record:
    """The VM of that name.

    Raises:
        ConfigurationError: there is none.
        HostError: the database cannot be used.
    """
    with _transaction() as database:
        return _find(database, name)


def find_run(run: str) -> Record:
    """The VM that was started as `run`.

    Raises:
        ConfigurationError: it has been removed, or started again.
        HostError: the database cannot be used.
    """
    with _transaction() as database:
        rows = database.execute("SELECT * FROM vm WHERE run = ?", (run,)).fetchall()
    if not rows:
        raise ConfigurationError("this VM has been removed or started again meanwhile")
    return _record(rows[0])


def lives(run: str) -> bool:
    """Whether the VM started as `run` still starts or runs."""
    try:
        return find_run(run).live
    except ConfigurationError:
        return False


def records() -> list[Record]:
    """All VMs, by name.

    Raises:
        HostError: the database cannot be used.
    """
    with _transaction() as database:
        rows = database.execute("SELECT * FROM vm ORDER BY name").fetchall()
    return [_record(row) for row in rows]


def running() -> list[Record]:
    """The VMs that run or are paused, by name; `remote.connect` reaches them.

    Raises:
        HostError: the database cannot be used.
    """
    return [record for record in records() if record.state in ("running", "paused")]


def add(name: str, plan: Plan) -> Record:
    """A new VM, about to be started by this process.

    Raises:
        ConfigurationError: the name is taken, or cannot be one.
        HostError: the database cannot be used.
    """
    record = Record(check_name(name), _token(), plan, time.time(), _token(), this_process())
    with _transaction() as database:
        if database.execute("SELECT 1 FROM vm WHERE name = ?", (name,)).fetchone():
            raise ConfigurationError(
                f"there is a VM {name!r} already: choose another name, or remove it "
                f"(`teuthis rm {name}`)"
            )
        database.execute(
            "INSERT INTO vm VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, NULL)",
            (name, record.id, _text(plan), record.created, record.run, _text(record.starter)),
        )
        record.directory.mkdir(mode=0o700)
    return record


def again(name: str) -> Record:
    """The VM of that name, about to be started again by this process.

    Raises:
        ConfigurationError: there is none, or it runs.
        HostError: the database cannot be used.
    """
    with _transaction() as database:
        old = _find(database, name)
        if old.live:
            raise ConfigurationError(f"the VM {name!r} is {old.state}: there is nothing to start")
        new = msgspec.structs.replace(
            old, run=_token(), starter=this_process(), keeper=None, ready=None, ending=None
        )
        database.execute(
            "UPDATE vm SET run = ?, starter = ?, keeper = NULL, ready = NULL, ending = NULL "
            "WHERE name = ?",
            (new.run, _text(new.starter), name),
        )
    old.socket.unlink(missing_ok=True)
    return new


def kept(run: str) -> None:
    """From now on this process is the keeper of the VM started as `run`."""
    _update(run, "keeper", _text(this_process()))


def ready(run: str) -> None:
    """The guest of the VM started as `run` has booted."""
    _update(run, "ready", time.time())


def ended(run: str, ending: Ending) -> None:
    """The VM started as `run` has ended; does nothing if it has been removed meanwhile."""
    with suppress(ConfigurationError):
        _update(run, "ending", _text(ending))


def remove(name: str) -> None:
    """Forgets a VM that does not run, and removes its files.

    Raises:
        ConfigurationError: there is none, or it runs.
        HostError: the database cannot be used.
    """
    with _transaction() as database:
        record = _find(database, name)
        if record.live:
            raise ConfigurationError(
                f"the VM {name!r} is {record.state}: stop it first (`teuthis stop {name}`), "
                f"or `teuthis rm --force {name}`"
            )
        database.execute("DELETE FROM vm WHERE name = ?", (name,))
    _discard(record)


def forget(record: Record) -> None:
    """Forgets a VM that its starter could not start."""
    with _transaction() as database:
        database.execute("DELETE FROM vm WHERE run = ?", (record.run,))
    _discard(record)


def _discard(record: Record) -> None:
    record.socket.unlink(missing_ok=True)
    shutil.rmtree(record.directory, ignore_errors=True)


def _token() -> str:
    return secrets.token_hex(8)


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _update(run: str, column: str, value: object) -> None:
    with _transaction() as database:
        done = database.execute(f"UPDATE vm SET {column} = ? WHERE run = ?", (value, run))  # noqa: S608
        if done.rowcount != 1:
            raise ConfigurationError("this VM has been removed or started again meanwhile")


def _find(database: sqlite3.Connection, name: str) -> Record:
    row = database.execute("SELECT * FROM vm WHERE name = ?", (check_name(name),)).fetchone()
    if row is None:
        raise ConfigurationError(f"there is no VM {name!r}: `teuthis ls -a` lists those there are")
    return _record(row)


def _record(row: tuple[Any, ...]) -> Record:
    name, identity, plan, created, run, starter, keeper, is_ready, ending = row
    try:
        return Record(
            name,
            identity,
            msgspec.json.decode(plan, type=Plan),
            created,
            run,
            msgspec.json.decode(starter, type=ProcessId),
            None if keeper is None else msgspec.json.decode(keeper, type=ProcessId),
            is_ready,
            None if ending is None else msgspec.json.decode(ending, type=Ending),
        )
    except msgspec.DecodeError as error:
        raise HostError(f"{_path()}: the row of {name!r} is damaged: {error}") from error


# ---- the database --------------------------------------------------------------------------------


def _path() -> Path:
    return data.directory() / DATABASE


@contextmanager
def _transaction() -> Iterator[sqlite3.Connection]:
    """A connection in a transaction that is committed at the end of the block.

    Raises:
        HostError: the database cannot be opened, read or written, or is another version's.
    """
    path = _path()
    try:
        _make(path)
        with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            _check_version(database, path)
            yield database
            database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise HostError(f"the list of VMs, {path}, cannot be used: {error}") from error


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.execute(_SCHEMA)
        database.execute(f"PRAGMA user_version = {VERSION}")
    elif version != VERSION:
        raise HostError(
            f"the list of VMs, {path}, is of version {version} and this Teuthis knows version "
            f"{VERSION}: use the Teuthis that made it, or another data directory (TEUTHIS_DATA)"
        )


def _make(path: Path) -> None:
    """Makes the file, for its owner alone, or sees that it is so.

    A file of this name is never opened here: closing it would give up the locks that SQLite holds
    on it in other threads (fcntl(2), F_SETLK).
    """
    try:
        data.see_private(path, stat.S_ISREG)
    except FileNotFoundError:
        with (
            tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-") as file,
            suppress(FileExistsError),  # another command was faster
        ):
            os.link(file.name, path)
