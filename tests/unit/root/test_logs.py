import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from teuthis.root import logs
from teuthis.root.logs import LogFile


def content(path: Path) -> bytes:
    return b"".join(logs.read(path))


def test_a_log_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(path, 1000)
    lines = [b"%06d\n" % number for number in range(1000)]
    for line in lines:
        log.write(line)
    log.close()
    kept = content(path)
    assert b"".join(lines).endswith(kept)
    assert 500 <= len(kept) <= 1000
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) == len(kept)
    assert path.stat().st_mode & 0o777 == 0o600


def test_more_at_once_than_it_may_hold(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 1000)
    log.write(bytes(range(256)) * 100)
    log.close()
    assert (bytes(range(256)) * 100).endswith(content(tmp_path / "log"))


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = LogFile(tmp_path / "log")
        log.write(text)
        log.close()
    assert content(tmp_path / "log") == b"one\ntwo\n"


def test_a_log_that_cannot_begin_anew_writes_nowhere_else(tmp_path: Path) -> None:
    """Its descriptor's number may be another file's by then."""
    home = tmp_path / "vm"
    home.mkdir()
    log = LogFile(home / "log", 1000)
    log.write(b"1" * 500)
    shutil.rmtree(home)
    with pytest.raises(FileNotFoundError):
        log.write(b"2")
    with (tmp_path / "other").open("wb") as other:
        with pytest.raises(FileNotFoundError):
            log.write(b"3")
        assert os.fstat(other.fileno()).st_size == 0
    home.mkdir()
    log.write(b"4")
    log.close()
    assert content(home / "log") == b"4"


def test_no_log_yet(tmp_path: Path) -> None:
    assert content(tmp_path / "log") == b""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        LogFile(tmp_path / "log")


def test_following_through_rotations(tmp_path: Path) -> None:
    path = tmp_path / "log"
    over = threading.Event()
    seen: list[bytes] = []
    reader = threading.Thread(
        target=lambda: seen.extend(logs.read(path, lambda: not over.is_set()))
    )
    reader.start()
    log = LogFile(path, 20_000)
    for number in range(100):
        log.write(b"%08d\n" % number * 50)
        time.sleep(0.01)
    log.close()
    over.set()
    reader.join(100)
    assert not reader.is_alive()
    text = b"".join(seen)
    # It is read a few times a second: what is older than two files then may be missed, no more.
    assert text.endswith(b"%08d\n" % 99 * 50)
    assert set(text.split()) <= {b"%08d" % number for number in range(100)}


def test_a_rotation_just_before_the_end(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 20)
    log.write(b"the first\n")
    lines = [b"", b"the last\n"]

    def go_on() -> bool:
        if lines:
            log.write(lines.pop(0))
        return bool(lines)

    assert b"".join(logs.read(tmp_path / "log", go_on)) == b"the first\nthe last\n"
    log.close()
