"""What is typed, and the way out."""

import pytest

from teuthis.cli.terminal import Keys


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (b"ls ~/x\r", b"ls ~/x\r"),
        (b"\x1b[A\x03\r", b"\x1b[A\x03\r"),
        (b"\r~~.\r", b"\r~.\r"),
        (b"\r~x.\r", b"\r~x.\r"),
        (b"a~.\r", b"a~.\r"),
    ],
)
def test_keys_go_to_the_guest(typed: bytes, sent: bytes) -> None:
    keys = Keys()
    assert keys.typed(typed) == sent
    assert not keys.left
    keys = Keys()
    assert b"".join(keys.typed(bytes([key])) for key in typed) == sent


@pytest.mark.parametrize("before", [b"", b"ls\r", b"ls\n"])
def test_the_way_out(before: bytes) -> None:
    keys = Keys()
    assert keys.typed(before + b"~") == before
    assert keys.typed(b".rest") == b""
    assert keys.left
