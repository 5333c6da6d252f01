"""Programs that belong to this package, and such as do not."""

from pathlib import Path

import pytest

from teuthis import programs
from teuthis.errors import ConfigurationError
from teuthis.flows.register import FINGERPRINT

_PIECE = 1 << 18
_MARK = FINGERPRINT.encode()


@pytest.mark.parametrize("before", [0, 1, _PIECE - len(_MARK), _PIECE - 5, 3 * _PIECE - 1])
def test_a_program_of_our_register_is_found(
    before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, b"\0" * before + _MARK + b"\0" * 100)
    monkeypatch.setenv("TEUTHIS_PROGRAMS", str(tmp_path))
    assert programs.find(programs.HYPERVISOR) == tmp_path / programs.HYPERVISOR


@pytest.mark.parametrize("content", [b"", _MARK[:-1], b"\0" * _PIECE + _MARK[1:]])
def test_one_of_another_register_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, content)
    monkeypatch.setenv("TEUTHIS_PROGRAMS", str(tmp_path))
    with pytest.raises(ConfigurationError, match="another register"):
        programs.find(programs.HYPERVISOR)


def _make(directory: Path, content: bytes) -> None:
    program = directory / programs.HYPERVISOR
    program.write_bytes(content)
    program.chmod(0o755)
