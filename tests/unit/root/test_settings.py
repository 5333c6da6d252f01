import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.errors import ConfigurationError
from teuthis.root import settings

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [
        ("256M", 256),
        ("256m", 256),
        ("256MiB", 256),
        ("256 MB", 256),
        ("1G", 1024),
        ("0.5G", 512),
        ("131072K", 128),
        ("134217728", 128),
        (134217728, 128),
        (100 * MIB + 1, 101),
    ],
)
def test_memory_sizes(text: int | str, mebibytes: int) -> None:
    assert settings.memory_size(text) == mebibytes * MIB


@pytest.mark.parametrize("memory", ["", "M", "-256M", "256X", "256M 1", "1e9", "٣M", "9" * 400])
def test_what_is_no_memory_size(memory: str) -> None:
    with pytest.raises(ConfigurationError, match="not a size"):
        settings.memory_size(memory)


@pytest.mark.parametrize("memory", [0, -1, 1, "0", "95M", "0M", 95 * MIB])
def test_too_little_memory_names_the_minimum(memory: int | str) -> None:
    with pytest.raises(ConfigurationError, match="at least 96M"):
        settings.memory_size(memory)


@pytest.mark.parametrize("memory", ["999999T", 1 << 70])
def test_more_memory_than_the_host_has(memory: int | str) -> None:
    with pytest.raises(ConfigurationError, match="more than this host has"):
        settings.memory_size(memory)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("1.5s", 1.5), ("500ms", 0.5), ("2m", 120), ("1h", 3600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert settings.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "5d", "s", "1 s s", "inf", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a time limit"):
        settings.duration(text)


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan")])
def test_what_is_no_time_limit(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="positive"):
        settings.time_limit(seconds)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_a_configuration_error(text: str) -> None:
    for parse in (settings.memory_size, settings.duration, settings.guest_path):
        with contextlib.suppress(ConfigurationError):
            parse(text)


def test_arguments() -> None:
    assert settings.arguments(("echo", "", "ä")) == ["echo", "", "ä"]


@pytest.mark.parametrize(
    "argv", ["ls -l", [], [""], ["a\0b"], ["ls", 3], ["ls", b"x"], [os.fsdecode(b"\xff")]]
)
def test_what_cannot_be_a_command_line(argv: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        settings.arguments(argv)


def test_environment_layers() -> None:
    assert settings.environment({"A": "1", "B": "1"}, None, {"B": "2"}) == {"A": "1", "B": "2"}


@pytest.mark.parametrize("layer", [{"": "x"}, {"A=B": "x"}, {"A": "x\0"}, {"A": 1}])
def test_what_cannot_be_an_environment(layer: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        settings.environment(layer)


@pytest.mark.parametrize("path", ["", "etc/passwd", "./x", "/a\0b", b"/x", 3])
def test_what_cannot_be_a_guest_path(path: str) -> None:
    with pytest.raises((ConfigurationError, TypeError)):
        settings.guest_path(path)


@pytest.mark.parametrize("user", ["app", "0", "1000:1000", "app:staff", "x" * 256, "ü:"])
def test_users_are_for_the_guest_to_judge(user: str) -> None:
    assert settings.user(user) == user


@pytest.mark.parametrize("user", ["", "x" * 257, "ü" * 129, "a\0b", "\udcff", 0])
def test_what_no_guest_has_for_a_user(user: str) -> None:
    with pytest.raises(ConfigurationError, match="user"):
        settings.user(user)
