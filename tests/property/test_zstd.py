"""Dictionaries: every body comes back, and no bytes do harm, neither as a body nor as a dictionary."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from waybill.errors import Corrupt
from waybill.frames import Dictionary, zstd
from waybill.frames.zstd import MAX_DICTIONARY, SMALL

SAMPLES = [b'{"ts":%d,"speed":%.2f,"vin":"WVWZZZ1JZ%08d"}' % (n * 50, n / 7, n % 9) for n in range(400)]
KNOWN = zstd.train(SAMPLES, 4096)

BODIES = st.one_of(
    st.binary(max_size=2 * SMALL),
    st.lists(st.sampled_from(SAMPLES), max_size=30).map(b"".join),
    st.sampled_from([KNOWN.content, b"\0" * SMALL, b"\0" * (SMALL + 1)]),
)


@given(BODIES, st.integers(1, 9), st.booleans())
def test_every_body_comes_back(raw: bytes, level: int, known: bool) -> None:  # noqa: FBT001 - drawn
    body, used = zstd.compress(raw, level, KNOWN if known else None)
    assert used in ((0, KNOWN.id) if known else (0,))
    assert zstd.decompress(body, len(raw), KNOWN if used else None) == raw


@given(BODIES, st.integers(0, 10**6), st.integers(1, 255), st.integers(0, 2 * SMALL))
def test_a_changed_body_gives_so_many_bytes_or_is_refused(raw: bytes, at: int, change: int, size: int) -> None:
    body = bytearray(zstd.compress(raw, 3, KNOWN)[0])
    body[at % len(body)] ^= change
    for dictionary in (KNOWN, None):
        with contextlib.suppress(Corrupt):
            assert len(zstd.decompress(bytes(body), size, dictionary)) == size


@settings(max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda tail: b"\x37\xa4\x30\xec\x01\0\0\0" + tail),
        st.tuples(st.integers(0, len(KNOWN.content) - 1), st.binary(min_size=1, max_size=8)).map(
            lambda where: KNOWN.content[: where[0]] + where[1] + KNOWN.content[where[0] + len(where[1]) :]
        ),
        st.integers(0, len(KNOWN.content)).map(lambda size: KNOWN.content[:size]),
    ),
    BODIES,
)
def test_any_bytes_are_a_dictionary_that_works_or_are_refused(content: bytes, raw: bytes) -> None:
    try:
        dictionary = Dictionary(content)
    except Corrupt:
        return
    assert dictionary.id
    assert len(content) <= MAX_DICTIONARY
    body, used = zstd.compress(raw, 3, dictionary)
    assert zstd.decompress(body, len(raw), dictionary if used else None) == raw
    foreign = zstd.compress(raw, 3, KNOWN)[0]
    with contextlib.suppress(Corrupt):
        zstd.decompress(foreign, len(raw), dictionary)
