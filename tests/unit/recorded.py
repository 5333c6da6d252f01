"""What a real Debian sent, for properties: as it was, or damaged somewhere (`fuzz/seeds`)."""

from fuzz.recorded.seeds import kept
from hypothesis import strategies as st

MEMORY_SIZE = 256 << 20
"""RAM of the guest that was recorded: the pages that its messages name are below."""


def recorded(*flows: str) -> st.SearchStrategy[bytes]:
    """Inputs of these flows: one in two as it was recorded."""
    seeds = [seed for flow in flows for seed in kept(flow)]
    assert seeds
    changes = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=3)
    return st.sampled_from(seeds).map(lambda seed: whole(seed)) | st.builds(
        damaged, st.sampled_from(seeds), changes, st.none() | st.integers(0, 255)
    )


def whole(seed: bytes) -> bytes:
    """A seed as it was recorded; `fuzz.corpora` looks here which choices lead to it."""
    return seed


def damaged(seed: bytes, changes: list[tuple[int, int]], size: int | None) -> bytes:
    """A seed with some bytes set to others, cut to a size."""
    raw = bytearray(seed)
    for at, value in changes:
        raw[at % len(raw)] = value
    return bytes(raw[:size])
