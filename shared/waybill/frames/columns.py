"""The body ``columns``: like payloads transposed, byte for byte what the devices sent. No schema, any bytes.

Before compression it is MessagePack, an array of five::

    [sources, series, order, offsets, templates]
    sources:   [[topic: str, client: str], …]                                          as in ``plain``
    series:    [[template: int, source: int, flags: int, properties: bin], …]          what messages have in common
    order:     integers: the series of each message, in order of seq
    offsets:   integers: milliseconds relative to the header's base time, in order of seq
    templates: [[pieces: [bin, …], columns: [[kind, width, decimals, integers, text: bin], …]], …]

A payload is its template's pieces with one cell of each column between two of them, so there is one piece more than
there are columns. The rows of a template stand series by series, in order of seq within each.

*Integers* are ``[first: int, planes: bin]``: the first number, then the differences, each as zigzag (0, -1, 1, -2 … are
0, 1, 2, 3 …) in w bytes; of all of them the lowest byte, then of all the next, and so on. The planes' length says what
w is, 0 to 8. Every number is below 2**62, its sign aside.

===== ========= ===================================================================================================
kind  name      cell of the integer n
===== ========= ===================================================================================================
0     text      the next n bytes of ``text``
1     fixed     n / 10**decimals with exactly ``decimals`` decimals, filled up with zeros after the sign to ``width``
2     cut       the same, without the zeros at the end, but for one decimal
3     bare      the same, without the zeros at the end, nor a point behind which nothing is left
===== ========= ===================================================================================================

Kinds 2 and 3 have at least one decimal. Where there are decimals, there are at most 15 and n is below 10**15.
"""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise, repeat
from operator import sub
from typing import Annotated, Final, NamedTuple

import msgspec

from waybill.errors import Corrupt
from waybill.frames.plain import Flags, Index, Row

TEXT: Final = 0
FIXED: Final = 1
CUT: Final = 2
BARE: Final = 3

ROW_COST: Final = 64
COLUMN_COST: Final = 256
CELL_COST: Final = 20
"""What a message, a column and a cell count in the size of what a body is put together to, bytes: what they cost."""

MAX_INTEGER: Final = 2**62
MAX_SCALED: Final = 10**15
"""A double tells all numbers below this from each other, with up to 15 decimals."""
MAX_DECIMALS: Final = 15

MIN_ROWS: Final = 8
"""Fewer messages that are alike are not worth columns of their own."""
MAX_COLUMNS: Final = 256
"""Payloads of more numbers than this are stored as they are: work has a limit."""

# What may differ between like payloads: numbers (a date is one cell: it is the same all day) …
_NUMBERS: Final = re.compile(rb"([-.0-9]+)")
# … and where that does not make them alike, the strings of JSON that are no keys.
_VALUES: Final = re.compile(rb'([-.0-9]+|"[^"\\]*"(?=\s*[],}]))')

_Integers = tuple[int, bytes]
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Column(NamedTuple):
    kind: Annotated[int, msgspec.Meta(ge=TEXT, le=BARE)]
    width: _Byte
    decimals: Annotated[int, msgspec.Meta(ge=0, le=MAX_DECIMALS)]
    integers: _Integers
    text: bytes


class _Template(NamedTuple):
    pieces: list[bytes]
    columns: list[_Column]


class _Series(NamedTuple):
    template: Index
    source: Index
    flags: Flags
    properties: bytes


class _Body(NamedTuple):
    sources: list[tuple[str, str]]
    series: list[_Series]
    order: _Integers
    offsets: _Integers
    templates: list[_Template]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode
_json = msgspec.json.Encoder().encode


def pack(sources: Sequence[tuple[str, str]], rows: Sequence[Row], max_size: int) -> bytes:
    """Return the body of ``rows`` (at least one).

    Raises ValueError where it cannot hold them: an offset of 2**62 or more, or over ``max_size`` to :func:`unpack`.
    """
    series: list[_Series] = []
    templates: list[_Template] = []
    order = [0] * len(rows)
    for pieces, alike in _alike([row[3] for row in rows]):
        found: defaultdict[tuple[int, int, bytes], list[int]] = defaultdict(list)
        for at in alike:
            source, _, flags, _, properties = rows[at]
            found[source, flags, properties].append(at)
        for (source, flags, properties), members in found.items():
            for at in members:
                order[at] = len(series)
            series.append(_Series(len(templates), source, flags, properties))
        cells = zip(*[alike[at] for at in chain.from_iterable(found.values())], strict=True)
        templates.append(_template(pieces, list(cells)))
    body = _Body(list(sources), series, _integers(order), _integers([row[1] for row in rows]), templates)
    if _size(body, Counter(order)) > max_size:
        raise ValueError(f"columns of more than {max_size} bytes")
    return _encode(body)


def unpack(raw: bytes | bytearray, count: int, max_size: int) -> tuple[list[tuple[str, str]], list[Row], int]:
    """Return the sources and the ``count`` rows of a body, and its size: what the rows take at most, bytes.

    Nothing is put together before it is known that it stays within ``max_size``. Raises Corrupt.
    """
    try:
        body = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"frame: body: {error}") from error
    if count * ROW_COST > max_size:
        raise Corrupt(f"frame: {count} messages are over the limit of {max_size} bytes")
    order = _numbers(body.order, count)
    counts = Counter(order)
    if min(counts) < 0 or max(counts) >= len(body.series):
        raise Corrupt("frame: a message names a series that is not there")
    if max(one.template for one in body.series) >= len(body.templates):
        raise Corrupt("frame: a series names a template that is not there")
    size = _size(body, counts)
    if size > max_size:
        raise Corrupt(f"frame: a body of {size} bytes is over the limit of {max_size}")
    rows_of = _rows_of(body, counts)
    payloads = [_payloads(template, rows) for template, rows in zip(body.templates, rows_of, strict=True)]
    starts = [0] * len(body.templates)
    feeds: list[Iterator[bytes]] = []
    for number, one in enumerate(body.series):
        start, starts[one.template] = starts[one.template], starts[one.template] + counts[number]
        feeds.append(iter(payloads[one.template][start : starts[one.template]]))
    sources = [one.source for one in body.series]
    flags = [one.flags for one in body.series]
    properties = [one.properties for one in body.series]
    rows = list(
        zip(
            map(sources.__getitem__, order),
            _numbers(body.offsets, count),
            map(flags.__getitem__, order),
            map(next, map(feeds.__getitem__, order)),
            map(properties.__getitem__, order),
            strict=True,
        )
    )
    return body.sources, rows, size


def _rows_of(body: _Body, counts: Counter[int]) -> list[int]:
    """Return how many messages each template has. ``counts``: of each series."""
    rows = [0] * len(body.templates)
    for number, one in enumerate(body.series):
        rows[one.template] += counts[number]
    return rows


def _size(body: _Body, counts: Counter[int]) -> int:
    """Return what the messages take at most when they are put together, bytes."""
    size = sum(counts[number] * (ROW_COST + len(one.properties)) for number, one in enumerate(body.series))
    for (pieces, columns), rows in zip(body.templates, _rows_of(body, counts), strict=True):
        widths = sum(max(CELL_COST, column.width) for column in columns)
        size += rows * (sum(map(len, pieces)) + widths) + sum(COLUMN_COST + len(column.text) for column in columns)
    return size


# --- templates ---


def _alike(payloads: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], dict[int, Sequence[bytes]]]]:
    """Yield templates: the pieces, and the cells of each payload by its index."""
    rest: Sequence[int] = range(len(payloads))
    for cut in (_NUMBERS.split, _VALUES.split):
        groups: defaultdict[tuple[bytes, ...], dict[int, Sequence[bytes]]] = defaultdict(dict)
        for at in rest:
            parts = cut(payloads[at])
            groups[tuple(parts[::2])][at] = parts[1::2]
        few: list[int] = []
        for pieces, alike in groups.items():
            if len(alike) >= MIN_ROWS and len(pieces) <= MAX_COLUMNS:
                yield pieces, alike
            else:
                few += alike
        rest = sorted(few)
    if rest:
        yield (b"", b""), {at: (payloads[at],) for at in rest}


def _template(pieces: Sequence[bytes], columns: Sequence[Sequence[bytes]]) -> _Template:
    """Make columns of what differs; what does not becomes part of the pieces."""
    kept: list[_Column] = []
    joined = [pieces[0]]
    for cells, piece in zip(columns, pieces[1:], strict=True):
        if cells.count(cells[0]) == len(cells):
            joined[-1] += cells[0] + piece
        else:
            kept.append(_column(cells))
            joined.append(piece)
    return _Template(joined, kept)


def _payloads(template: _Template, rows: int) -> list[bytes]:
    """Return the payloads of a template's rows. Raises Corrupt."""
    pieces, columns = template
    if len(pieces) != len(columns) + 1:
        raise Corrupt(f"frame: a template of {len(pieces)} pieces and {len(columns)} columns")
    if not rows:
        return []
    parts: list[Iterable[bytes]] = [repeat(pieces[0], rows)]
    for column, piece in zip(columns, pieces[1:], strict=True):
        parts += _cells(column, rows), repeat(piece, rows)
    return list(map(b"".join, zip(*parts, strict=True)))


# --- columns ---


def _column(cells: Sequence[bytes]) -> _Column:
    """Return cells as numbers where these print the very same bytes again, else as text."""
    return _number(cells) or _Column(TEXT, 0, 0, _integers([len(cell) for cell in cells]), b"".join(cells))


def _number(cells: Sequence[bytes]) -> _Column | None:
    texts = list(cells)
    try:
        decimals = _decimals(texts[0])
        numbers = list(map(int, b" ".join(texts).replace(b".", b"").split(b" ")))
        if _print(FIXED, 0, decimals, numbers) == texts:
            return _Column(FIXED, 0, decimals, _integers(numbers), b"")
        most = max(map(_decimals, texts))
        width = min(map(len, texts))
        if most == decimals and _print(FIXED, width, decimals, numbers) == texts:
            return _Column(FIXED, width, decimals, _integers(numbers), b"")
        if most:
            scale = 10.0**most
            numbers = [round(float(text) * scale) for text in texts]
            for kind in (CUT, BARE):
                if _print(kind, 0, most, numbers) == texts:
                    return _Column(kind, 0, most, _integers(numbers), b"")
    except (ValueError, OverflowError):  # they only looked like numbers
        pass
    return None


def _cells(column: _Column, rows: int) -> list[bytes]:
    """Return the cells of a column. Raises Corrupt."""
    kind, width, decimals, integers, text = column
    numbers = _numbers(integers, rows)
    if kind != TEXT:
        try:
            return _print(kind, width, decimals, numbers)
        except ValueError as error:
            raise Corrupt(f"frame: a column: {error}") from error
    ends = list(accumulate(numbers, initial=0))
    if min(numbers) < 0 or ends[-1] != len(text):
        raise Corrupt("frame: a column of text: its lengths do not add up")
    return [text[start:end] for start, end in pairwise(ends)]


def _decimals(text: bytes) -> int:
    point = text.find(b".")
    return 0 if point < 0 else len(text) - point - 1


def _print(kind: int, width: int, decimals: int, numbers: Sequence[int]) -> list[bytes]:
    """Print numbers as the module's table says. Raises ValueError where they are out of range."""
    if not decimals:
        if kind != FIXED:
            raise ValueError("numbers that are cut have decimals")
        if not width:
            return _json(numbers)[1:-1].split(b",")
        return (b"%%0%dd " % width * len(numbers) % tuple(numbers)).split(b" ")[:-1]
    if decimals > MAX_DECIMALS or max(numbers) >= MAX_SCALED or min(numbers) <= -MAX_SCALED:
        raise ValueError("a number has too many digits for its decimals")
    scale = 10.0**decimals
    values = [number / scale for number in numbers]
    if kind == FIXED:
        return (b"%%0%d.%df " % (width, decimals) * len(values) % tuple(values)).split(b" ")[:-1]
    # The shortest text that says the same double is the one without zeros at its end.
    texts = _json(values)[1:-1]
    cells = (texts + b",").replace(b".0,", b",")[:-1].split(b",") if kind == BARE else texts.split(b",")
    if b"e" in texts:  # it begins at a hundred-thousandth
        for at, cell in enumerate(cells):
            if b"e" in cell:
                cells[at] = (b"%.*f" % (decimals, values[at])).rstrip(b"0")
    return cells


# --- integers ---


def _integers(numbers: Sequence[int]) -> _Integers:
    """Raises ValueError on a number that is too large."""
    if max(numbers) >= MAX_INTEGER or min(numbers) <= -MAX_INTEGER:
        raise ValueError("a number of more than 62 bits")
    zigzag = [(step << 1) ^ (step >> 63) for step in map(sub, numbers[1:], numbers)]
    width = (max(zigzag, default=0).bit_length() + 7) // 8
    wide = struct.pack(f"<{len(zigzag)}Q", *zigzag)
    return numbers[0], b"".join([wide[plane::8] for plane in range(width)])


def _numbers(integers: _Integers, count: int) -> list[int]:
    """Return the ``count`` numbers, at least one. Raises Corrupt."""
    first, planes = integers
    steps = count - 1
    width = len(planes) // steps if steps else 0
    if width > 8 or width * steps != len(planes):  # noqa: PLR2004 - bytes of 64 bits
        raise Corrupt(f"frame: {len(planes)} bytes cannot be {steps} integers")
    numbers = list(accumulate(_zigzag(planes, steps, width), initial=first))
    # Most columns are too narrow to come near the limit.
    if abs(first) + (steps << 8 * width) >= MAX_INTEGER and (
        max(numbers) >= MAX_INTEGER or min(numbers) <= -MAX_INTEGER
    ):
        raise Corrupt("frame: an integer of more than 62 bits")
    return numbers


def _zigzag(planes: bytes, count: int, width: int) -> Sequence[int]:
    """Return the ``count`` differences. One large integer holds them all, 64 bits each: half the time of a loop."""
    wide = bytearray(8 * count)
    for plane in range(width):
        wide[plane::8] = planes[plane * count : (plane + 1) * count]
    both = int.from_bytes(wide, "little")
    odd = both & int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
    signed = (both ^ odd) >> 1 ^ (odd << 64) - odd
    return struct.unpack(f"<{count}q", signed.to_bytes(8 * count, "little"))
