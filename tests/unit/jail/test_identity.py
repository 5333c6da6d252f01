"""User ids for VMs: never the same for two that live."""

import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from teuthis.errors import HostError
from teuthis.jail import identity

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives user ids away")


@needs_root
def test_two_vms_never_share_a_user_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "PAIRS", 3)
    with ExitStack() as vms:
        leases = [vms.enter_context(identity.lease(tmp_path)) for _ in range(3)]
        uids = [uid for lease in leases for uid in lease]
        assert len(set(uids)) == 6
        assert all(uid is not None and uid >= identity.FIRST for uid in uids)
        with pytest.raises(HostError, match="taken"), identity.lease(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
    with identity.lease(tmp_path) as again:
        assert again in leases


@needs_root
def test_a_lock_that_its_holder_removed_guards_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "PAIRS", 2)
    flock = fcntl.flock
    removed: list[Path] = []

    def late(lock: int, how: int) -> None:
        if not removed:  # whoever held it is done
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with identity.lease(tmp_path):
        (file,) = tmp_path.iterdir()
        assert file.name != removed[0].name


@needs_root
def test_a_pair_is_not_reused_while_a_process_of_a_former_vm_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "PAIRS", 1)
    with identity.lease(tmp_path) as first:
        assert first.worker is not None
        leftover = subprocess.Popen(
            ["setpriv", f"--reuid={first.worker}", "--clear-groups", "sleep", "60"],
        )
    try:
        while not identity._lives(first.worker):
            pass
        with pytest.raises(HostError, match="taken"), identity.lease(tmp_path):
            pass
    finally:
        leftover.kill()
        leftover.wait()
    with identity.lease(tmp_path) as second:
        assert second == first


def test_an_ordinary_user_keeps_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with identity.lease(tmp_path) as own:
        assert own == identity.Identity(None, None)
    assert not list(tmp_path.iterdir())


@needs_root
def test_where_nothing_can_be_reserved_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with identity.lease(tmp_path / "file" / "locks") as own:
        assert own == identity.Identity(None, None)


@needs_root
def test_root_without_a_user_id_of_its_own_is_refused() -> None:
    program = "from teuthis.jail import identity; identity.assume(None)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "started by root without a user id" in result.stderr
