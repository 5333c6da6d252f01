"""Facts as the client decodes them: a worker may have been taken over, a guest always may lie."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teuthis.errors import NoFacts
from teuthis.root.integration import decode_facts


def fact(key: str, value: str) -> bytes:
    keys, values = ((text + "\0").encode("utf-16-le", "surrogatepass") for text in (key, value))
    return struct.pack("<HH", len(keys), len(values)) + keys + values


def test_facts_are_decoded() -> None:
    data = fact("OSName", "Debian GNU/Linux") + fact("größe", "") + fact("OSName", "later")
    assert decode_facts(data) == {"OSName": "later", "größe": ""}
    assert decode_facts(b"") == {}


def test_no_fact_can_command_a_terminal() -> None:
    text = "a\nb\x1b]52;c;aGk=\x07b\x9b31m\u202ec\ud800"
    ((key, value),) = decode_facts(fact(text, text)).items()
    for part in (key, value):
        assert all(c.isprintable() for c in part), part


@pytest.mark.parametrize(
    "data", [b"\0", fact("a", "b")[:-1], b"\xff\xff\0\0", fact("a", "b") + b"x"]
)
def test_malformed_facts_are_refused(data: bytes) -> None:
    with pytest.raises(NoFacts):
        decode_facts(data)


@given(
    st.binary(max_size=200)
    | st.lists(st.builds(fact, st.text(max_size=8), st.text(max_size=8)), max_size=6).map(b"".join)
)
def test_any_facts_are_decoded_or_refused(data: bytes) -> None:
    try:
        facts = decode_facts(data)
    except NoFacts:
        return
    assert all(c.isprintable() for pair in facts.items() for c in "".join(pair))
