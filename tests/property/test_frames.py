"""Frames: every frame comes back, and no bytes do harm."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from waybill.errors import Corrupt
from waybill.frames import decode, encode_plain

EPOCHS = st.integers(1, 2**63 - 1)
SOURCES = st.lists(st.tuples(st.text(max_size=30), st.text(max_size=10)), min_size=1, max_size=5)


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, str]], list[tuple[int, int, int, bytes, bytes]]]:
    sources = draw(SOURCES)
    row = st.tuples(
        st.integers(0, len(sources) - 1),
        st.integers(-(2**40), 2**40),
        st.integers(0, 15),
        st.binary(max_size=200),
        st.binary(max_size=20),
    )
    rows = draw(st.lists(row, min_size=1, max_size=30))
    epoch = draw(EPOCHS)
    data = encode_plain(
        epoch=epoch,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=epoch,
        lane=draw(st.text(st.characters(codec="ascii"), min_size=1, max_size=64)),
        order=draw(st.sampled_from(["fifo", "fresh-first", "arrival"])),
        durability=draw(st.sampled_from(["every-commit", "relaxed"])),
        clock=draw(st.sampled_from(["unknown", "synced", "corrected"])),
        first=draw(st.integers(1, 2**40)),
        base_ms=draw(st.integers(-(2**62), 2**62)),
        sources=sources,
        rows=rows,
    )
    return data, sources, rows


@given(frames())
def test_what_was_encoded_is_decoded(
    made: tuple[bytes, list[tuple[str, str]], list[tuple[int, int, int, bytes, bytes]]],
) -> None:
    data, sources, rows = made
    frame = decode(data)
    assert frame.sources == sources
    assert frame.rows == rows
    assert frame.header.count == len(rows)


@given(st.binary(max_size=400))
def test_any_bytes_are_refused_or_decoded_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(Corrupt):
        decode(data)
    with contextlib.suppress(Corrupt):
        decode(b"WB\x01\x01" + data)


@given(frames(), st.integers(0, 10**6), st.integers(1, 255))
def test_no_changed_byte_passes(
    made: tuple[bytes, list[tuple[str, str]], list[tuple[int, int, int, bytes, bytes]]], at: int, change: int
) -> None:
    data = bytearray(made[0])
    data[at % len(data)] ^= change
    if (
        at % len(data) == 3
    ):  # the codec stands before the checksum's range: the decoder refuses the ones it does not know
        return
    try:
        decode(bytes(data))
    except Corrupt:
        return
    raise AssertionError
