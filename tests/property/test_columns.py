"""Columns: whatever was sent comes back, and no body does harm."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from waybill.errors import Corrupt
from waybill.frames import Row, columns, decode, encode_plain, in_columns, read_header, zstd
from waybill.frames.body import MAX_RAW
from waybill.frames.header import COLUMNS, pack_header

SOURCES = [("a/b", "c"), ("a/ü", ""), ("d", "e")]
NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(lambda n: b"%d" % n),
    st.integers(-(2**70), 2**70).map(lambda n: b"%d" % n),
    st.integers(0, 9999).map(lambda n: b"%05d" % n),
    st.floats(-1000, 1000).map(lambda x: b"%.2f" % x),
    st.floats(-1000, 1000).map(lambda x: repr(round(x, 3)).encode()),
    st.floats(allow_nan=True).map(lambda x: repr(x).encode()),
    st.floats(-1, 1).map(lambda x: b"%g" % x),
    st.text("0123456789.-e", max_size=20).map(str.encode),
)


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Payloads of one shape: pieces that stay, cells that do not, of a few kinds a column."""
    pieces = draw(st.lists(st.one_of(st.binary(max_size=6), st.sampled_from([b'{"a":', b',"b":"', b'"}'])), max_size=5))
    cells = st.one_of(NUMBERS, st.binary(max_size=8), st.text(max_size=6).map(str.encode))
    kinds = [draw(st.sampled_from([NUMBERS, cells])) for _ in pieces]
    count = draw(st.integers(1, 30))
    return [b"".join(piece + draw(kind) for piece, kind in zip(pieces, kinds, strict=True)) for _ in range(count)]


@st.composite
def many(draw: st.DrawFn) -> list[Row]:
    payloads = [one for group in draw(st.lists(alike(), min_size=1, max_size=3)) for one in group]
    return [
        (
            draw(st.integers(0, 2)),
            draw(st.integers(-(2**40), 2**40)),
            draw(st.integers(0, 15)),
            payload,
            b"p" * (at % 2),
        )
        for at, payload in enumerate(draw(st.permutations(payloads)))
    ]


def plain(rows: list[Row]) -> bytes:
    return encode_plain(
        epoch=1,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=1,
        lane="telemetry",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=1,
        base_ms=0,
        sources=SOURCES,
        rows=rows,
    )


def framed(raw: bytes, count: int) -> bytes:
    """A frame with a right header around any body."""
    header = read_header(plain([(0, 0, 0, b"", b"")]))
    body, _ = zstd.compress(raw, 1)
    return pack_header(replace(header, codec=COLUMNS, count=count, raw_size=len(raw)), body)


@given(many())
def test_what_was_put_in_columns_comes_back(rows: list[Row]) -> None:
    raw = columns.pack(SOURCES, rows, MAX_RAW)
    assert columns.unpack(raw, len(rows), MAX_RAW)[:2] == (SOURCES, rows)
    before = plain(rows)
    after = in_columns(before)
    assert len(after) <= len(before)
    assert decode(after).rows == rows


@given(st.lists(NUMBERS, min_size=8, max_size=40))
def test_a_column_of_whatever_looks_like_numbers_comes_back(cells: list[bytes]) -> None:
    rows: list[Row] = [(0, 0, 0, b'{"n":%b}' % cell, b"") for cell in cells]
    assert columns.unpack(columns.pack(SOURCES, rows, MAX_RAW), len(rows), MAX_RAW)[1] == rows


@given(many(), st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_body_is_refused_or_decoded_and_nothing_else(rows: list[Row], at: int, change: int) -> None:
    raw = bytearray(columns.pack(SOURCES, rows, MAX_RAW))
    raw[at % len(raw)] ^= change
    with contextlib.suppress(Corrupt):
        frame = decode(framed(bytes(raw), len(rows)))
        assert sum(len(row[3]) + len(row[4]) for row in frame.rows) <= frame.size <= MAX_RAW


def tree(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    integers = st.tuples(st.integers(-(2**63), 2**64 - 1), st.binary(max_size=40))
    column = st.tuples(st.integers(0, 4), st.integers(0, 300), st.integers(0, 20), integers, st.binary(max_size=20))
    template = st.tuples(st.lists(st.binary(max_size=5), max_size=4), st.lists(column, max_size=3))
    series = st.tuples(st.integers(-1, 2), st.integers(-1, 3), st.integers(0, 16), leaves)
    return st.tuples(
        st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=3),
        st.lists(series, max_size=4),
        st.tuples(st.integers(0, 2), st.binary(max_size=10)),
        integers,
        st.lists(template, max_size=3),
    )


@given(tree(st.binary(max_size=8)), st.one_of(st.integers(1, 12), st.integers(1, 2**32 - 1)))
def test_any_body_of_the_right_types_is_refused_or_decoded_and_nothing_else(body: Any, count: int) -> None:
    with contextlib.suppress(Corrupt):
        frame = decode(framed(msgspec.msgpack.encode(body), count))
        assert len(frame.rows) == count
        assert sum(len(row[3]) + len(row[4]) for row in frame.rows) <= frame.size <= MAX_RAW


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_refused_or_decoded_and_nothing_else(raw: bytes, count: int) -> None:
    with contextlib.suppress(Corrupt):
        decode(framed(raw, count))
