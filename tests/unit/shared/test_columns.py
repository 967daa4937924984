"""The body ``columns``: byte for byte what was sent, and what a decoder must refuse."""

from __future__ import annotations

import json
import random
import struct
import zlib
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from waybill.errors import Corrupt
from waybill.frames import Row, columns, decode, encode_plain, in_columns, read_header, zstd
from waybill.frames.body import LARGE, MAX_MESSAGE, MAX_RAW
from waybill.frames.header import COLUMNS, PLAIN, pack_header

SOURCES = [("vehicles/V1/telemetry", "V1"), ("vehicles/V2/telemetry", "V2")]


def rows(payloads: list[bytes]) -> list[Row]:
    return [(at % 2, at * 7 - 3, 1, payload, b"") for at, payload in enumerate(payloads)]


def plain(made: list[Row], sources: list[tuple[str, str]] = SOURCES) -> bytes:
    return encode_plain(
        epoch=11,
        prev_epoch=7,
        prev_last=41,
        oldest_epoch=7,
        lane="telemetry",
        order="arrival",
        durability="relaxed",
        clock="corrected",
        first=3,
        base_ms=1_700_000_000_000,
        sources=sources,
        rows=made,
    )


def telemetry(count: int) -> list[bytes]:
    rng = random.Random(1)
    return [
        json.dumps(
            {"ts": 1_700_000_000_000 + 50 * at, "speed": round(rng.uniform(0, 99), 2), "on": at % 3 == 0, "n": at}
        ).encode()
        for at in range(count)
    ]


def test_a_frame_in_columns_says_the_same_in_fewer_bytes() -> None:
    made = rows(telemetry(1000))
    before = plain(made)
    after = in_columns(before)
    assert len(after) < len(before) / 2
    assert read_header(after).codec == COLUMNS
    one, two = decode(before), decode(after)
    assert (two.sources, two.rows) == (SOURCES, made)
    changed: dict[str, Any] = {"codec": COLUMNS, "raw_size": two.header.raw_size, "body_size": two.header.body_size}
    assert two.header == replace(one.header, **changed)


PAYLOADS: dict[str, list[bytes]] = {
    "whole numbers": [b"%d" % (n * n - 50) for n in range(100)],
    "zeros before": [b"%04d" % (n * 19) for n in range(100)],
    "zeros before a sign's digits": [b"-%02d" % n for n in range(100)],
    "numbers that are none": [b"-", b".", b"1.", b".5", b"--1", b"1-2", b"1.2.3", b"-0", b"-0.0", b"+1", b"1e5"] * 9,
    "what float and int also read": [b"inf", b"nan", b"1_0", b" 1", b"1\n", b"1.5", b"infinity", b"0x1.0p3"] * 9,
    "the same with numbers around": [b"5 %b 6.25" % x for x in (b"inf", b"nan", b"1_0", b" ", b"-") for _ in range(9)],
    "fixed decimals": [b"%.3f" % (n / 7) for n in range(-50, 50)],
    "fixed decimals, zeros before": [b"%07.3f" % (n / 7) for n in range(100)],
    "decimals cut": [json.dumps(round(n / 64, 4)).encode() for n in range(-50, 50)],
    "decimals bare": [b"%g" % (n / 4) for n in range(-50, 50)],
    "decimals mixed": [b"1.50", b"1.5", b"2", b"2.0", b"-3.25"] * 9,
    "a hundred-thousandth and less": [b"%.7f" % (n * 1e-7) for n in range(100)],
    "a hundred-thousandth and less, cut": [(b"%.7f" % (n * 1e-7)).rstrip(b"0") for n in range(1, 100) if n % 10],
    "exponents": [b'{"v":%de-%02d}' % (n, n) for n in range(1, 50)],
    "18 digits": [b"%d" % (10**18 - n) for n in range(1, 100)],
    "62 bits": [b"%d" % (2**62 - n) for n in range(-50, 50)],
    "64 bits": [b"%d" % (2**64 - n) for n in range(100)],
    "far jumps": [b"%d" % (n * (-1) ** n) for n in range(10**17, 10**18, 10**16)],
    "too many digits for a double": [b"%d.%015d" % (n, n * 10**12) for n in range(100)],
    "a number of four hundred decimals": [b"1", b"1." + b"5" * 400] * 9,
    "a number of a thousand digits": [b"9" * 1000, b"8" * 1000] * 10,
    "strings": [b'{"id":"%b","n":[1,2,"x"]}' % hex(n * 7919**3).encode() for n in range(100)],
    "strings with escapes": [b'{"id":"a\\"%d\\\\b","k":"%d"}' % (n, n) for n in range(100)],
    "dates": [b"2026-11-21T10:%02d:%02d.%03dZ" % (n // 60, n % 60, n * 7 % 1000) for n in range(100)],
    "nested": [json.dumps({"a": {"b": [{"c": n}, [n / 2, -n]]}}).encode() for n in range(100)],
    "nested deep": [b"[" * 500 + b"%d" % n + b"]" * 500 for n in range(50)],
    "binary": [random.Random(n).randbytes(n) for n in range(100)],
    "not UTF-8": [b"\xff\xfe%d\x80" % n for n in range(100)],
    "empty": [b""] * 100,
    "empty and not": [b"", b"1"] * 50,
    "duplicates": [b'{"n":1}'] * 100,
    "one": [b'{"n":1}'],
    "one empty": [b""],
    "two": [b'{"n":1}', b'{"n":2}'],
    "percent and null": [b"%%d%d\0%s" % (n, b"%b") for n in range(100)],
    "other line ends and spaces": [b' {"n" : %d ,\r\n "s":\t"%d" } ' % (n, n) for n in range(100)],
    "many numbers": [b",".join(b"%d" % (n * k) for k in range(1000)) for n in range(20)],
    "huge": [b'{"blob":"%b","n":%d}' % (b"ab" * 200_000, n) for n in range(3)],
    "a few of each kind": [x for n in range(20) for x in (b"a%d" % n, b"b%d" % n, b"c", random.Random(n).randbytes(9))],
}


@pytest.mark.parametrize("payloads", [pytest.param(payloads, id=name) for name, payloads in PAYLOADS.items()])
def test_any_payload_comes_back_byte_for_byte(payloads: list[bytes]) -> None:
    made = rows(payloads)
    raw = columns.pack(SOURCES, made, MAX_RAW)
    sources, back, size = columns.unpack(raw, len(made), MAX_RAW)
    assert (sources, back) == (SOURCES, made)
    assert size >= sum(map(len, payloads))
    before = plain(made)
    after = in_columns(before)
    assert len(after) <= len(before)
    assert decode(after).rows == made


def test_topics_clients_flags_properties_and_times_come_back_too() -> None:
    rng = random.Random(3)
    sources = [(f"t/{n}/ü", f"c{n}") for n in range(5)]
    made: list[Row] = [
        (rng.randrange(5), rng.randrange(-(10**12), 10**12), rng.randrange(16), payload, rng.choice([b"", b"\1\2\3"]))
        for payload in telemetry(500)
    ]
    after = in_columns(plain(made, sources))
    assert read_header(after).codec == COLUMNS
    assert decode(after).rows == made
    assert decode(after).sources == sources


def test_many_names_are_compressed_hard_only_where_bytes_count_more_than_work() -> None:
    rng = random.Random(5)
    names = [f"WVWZZZ1JZ{rng.randrange(10**8):08d}" for _ in range(2000)]
    sources = [(f"vehicles/{name}/telemetry", name) for name in names]
    made = [(at % len(sources), at, 1, payload, b"") for at, payload in enumerate(telemetry(4000))]
    before = plain(made, sources)
    quick, fewest = in_columns(before), in_columns(before, fewest=True)
    assert read_header(quick).raw_size > LARGE
    assert len(fewest) < len(quick) < len(before)
    assert decode(quick).rows == decode(fewest).rows == made
    assert decode(quick).sources == decode(fewest).sources == sources


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"%d", columns.FIXED),
        (b"%05d", columns.FIXED),
        (b"-%d", columns.FIXED),
        (b"%d.25", columns.FIXED),
        (b"%d.5 and more", columns.FIXED),
        (b"%dx%%d" % 10**20, columns.FIXED),
    ],
)
def test_what_differs_as_numbers_is_stored_as_numbers(payload: bytes, kind: int) -> None:
    body = msgspec.msgpack.decode(columns.pack(SOURCES, rows([payload % n for n in range(1, 100)]), MAX_RAW))
    (((_, made),),) = (body[4],)
    assert [column[0] for column in made] == [kind]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([b"%.2f" % (n / 100) for n in range(1, 100)], columns.FIXED),
        ([json.dumps(n / 100).encode() for n in range(100)], columns.CUT),
        ([b"%g" % (n / 100) for n in range(101)], columns.BARE),
        ([(b"%.7f" % (n * 1e-7)).rstrip(b"0") for n in range(1, 100)], columns.CUT),
        ([(b"%.7f" % (n * 1e-7)).rstrip(b"0").rstrip(b".") for n in range(100)], columns.BARE),
        ([b"1.50", b"1.5"] * 9, columns.TEXT),
    ],
)
def test_decimals_are_kept_as_their_writer_prints_them(cells: list[bytes], kind: int) -> None:
    (template,) = msgspec.msgpack.decode(columns.pack(SOURCES, rows(cells), MAX_RAW))[4]
    assert [column[0] for column in template[1]] == [kind]


def test_strings_that_make_payloads_differ_get_columns_too() -> None:
    body = msgspec.msgpack.decode(columns.pack(SOURCES, rows(PAYLOADS["strings"]), MAX_RAW))
    ((pieces, made),) = body[4]
    assert pieces == [b'{"id":', b',"n":[1,2,"x"]}']
    assert [column[0] for column in made] == [columns.TEXT]


def test_payloads_of_very_many_numbers_are_stored_as_they_are() -> None:
    body = msgspec.msgpack.decode(columns.pack(SOURCES, rows(PAYLOADS["many numbers"]), MAX_RAW))
    ((pieces, made),) = body[4]
    assert (pieces, made[0][4]) == (
        [b"", b""],
        b"".join(PAYLOADS["many numbers"][::2] + PAYLOADS["many numbers"][1::2]),
    )


def test_where_columns_gain_nothing_the_frame_stays_as_it_is() -> None:
    before = plain(rows([random.Random(n).randbytes(300) for n in range(50)]))
    assert in_columns(before) is before


@pytest.mark.parametrize("offset", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_an_offset_that_columns_cannot_hold_leaves_the_frame_plain(offset: int) -> None:
    made: list[Row] = [(0, offset, 0, payload, b"") for payload in telemetry(100)]
    before = plain(made)
    assert in_columns(before) is before
    assert decode(before).rows == made


def test_what_is_no_frame_is_handed_back() -> None:
    assert in_columns(b"nothing") == b"nothing"


def test_what_a_decoder_would_refuse_as_too_large_is_not_packed() -> None:
    made = rows(telemetry(100))
    raw = columns.pack(SOURCES, made, MAX_RAW)
    *_, size = columns.unpack(raw, len(made), MAX_RAW)
    assert columns.pack(SOURCES, made, size) == raw
    with pytest.raises(ValueError, match=f"more than {size - 1} bytes"):
        columns.pack(SOURCES, made, size - 1)


# --- what a decoder must refuse ---


def framed(raw: bytes, count: int, raw_size: int | None = None) -> bytes:
    """A frame with a right header around any body."""
    body, _ = zstd.compress(raw, 3)
    header = read_header(plain(rows([b"x"])))
    return pack_header(
        replace(header, codec=COLUMNS, count=count, raw_size=len(raw) if raw_size is None else raw_size), body
    )


GOOD: list[Any] = [
    [["t", "c"]],
    [[0, 0, 1, b""]],
    [0, b"\0"],
    [5, b"\2"],
    [[[b"<", b">", b"!"], [[0, 0, 0, [1, b"\2"], b"abc"], [1, 2, 1, [100, b"\2"], b""]]]],
]


def test_a_body_made_by_hand_decodes() -> None:
    back = decode(framed(msgspec.msgpack.encode(GOOD), 2))
    assert back.rows == [(0, 5, 1, b"<a>10.0!", b""), (0, 6, 1, b"<bc>10.1!", b"")]
    assert back.size == 2 * (64 + 3 + 40) + 2 * 256 + 3


def broken(path: list[int], new: object) -> object:
    body = json_copy = msgspec.msgpack.decode(msgspec.msgpack.encode(GOOD))
    for step in path[:-1]:
        json_copy = json_copy[step]
    json_copy[path[-1]] = new
    return body


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body"),
        (b"\xc1", "body"),
        ([], "body"),
        ([*GOOD, 1], "body"),
        ([[[b"t", "c"]], *GOOD[1:]], "body"),
        (msgspec.msgpack.encode(GOOD).replace(b"\xa1t", b"\xa1\xff"), "body"),
        (broken([0], []), "a source that is not there"),
        (broken([1], []), "a series that is not there"),
        (broken([1, 0, 0], 1), "a template that is not there"),
        (broken([1, 0, 0], -1), "body"),
        (broken([1, 0, 1], 1), "a source that is not there"),
        (broken([1, 0, 2], 16), "body"),
        (broken([1, 0, 3], "text"), "body"),
        (broken([2], [1, b"\0"]), "a series that is not there"),
        (broken([2], [0, b"\1"]), "a series that is not there"),
        (broken([2], [0, bytes(9)]), "cannot be 1 integers"),
        (broken([3], [2**62 - 1, b"\2"]), "62 bits"),
        (broken([3], [-(2**62), b"\0"]), "62 bits"),
        (broken([3], [2**63, b"\0"]), "62 bits"),
        (broken([3], [2**64 - 1, b"\xff" * 8]), "62 bits"),
        (broken([4], []), "a template that is not there"),
        (broken([4, 0, 0], []), "0 pieces and 2 columns"),
        (broken([4, 0, 0], [b""] * 4), "4 pieces and 2 columns"),
        (broken([4, 0, 1, 0, 0], 4), "body"),
        (broken([4, 0, 1, 0, 3], [-1, b"\x0a"]), "lengths do not add up"),
        (broken([4, 0, 1, 0, 3], [1, b"\4"]), "lengths do not add up"),
        (broken([4, 0, 1, 0, 4], b"ab"), "lengths do not add up"),
        (broken([4, 0, 1, 1, 0], columns.CUT), ""),
        (broken([4, 0, 1, 1, 1], 256), "body"),
        (broken([4, 0, 1, 1, 1], -1), "body"),
        (broken([4, 0, 1, 1, 2], 16), "body"),
        (broken([4, 0, 1, 1], [2, 0, 0, [1, b"\2"], b""]), "have decimals"),
        (broken([4, 0, 1, 1], [1, 0, 1, [10**15, b"\2"], b""]), "too many digits"),
        (broken([4, 0, 1, 1], [3, 0, 15, [-(10**15), b"\1"], b""]), "too many digits"),
    ],
)
def test_a_body_that_is_not_rows_is_corrupt(body: object, said: str) -> None:
    raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    if said:
        with pytest.raises(Corrupt, match=said):
            decode(framed(raw, 2))
    else:
        assert len(decode(framed(raw, 2)).rows) == 2


@pytest.mark.parametrize("count", [1, 3, 2**32 - 1])
def test_a_count_that_is_not_the_bodys_is_corrupt(count: int) -> None:
    with pytest.raises(Corrupt):
        decode(framed(msgspec.msgpack.encode(GOOD), count))


def test_a_frame_cut_short_anywhere_is_corrupt() -> None:
    data = in_columns(plain(rows(telemetry(200))))
    assert read_header(data).codec == COLUMNS
    for size in range(0, len(data), 7):
        with pytest.raises(Corrupt):
            decode(data[:size])
    header = read_header(data)
    for size in range(0, header.body_size, 7):
        with pytest.raises(Corrupt):
            decode(pack_header(header, data[-header.body_size :][:size]))  # cut short, and sealed again


def bomb(*, rows: int = 1, cells: int = 0, piece: bytes = b"", properties: bytes = b"", width: int = 0) -> bytes:
    """A small body that says much: nothing in it differs, so a row takes no byte."""
    column = [1, width, 0, [1, b""], b""]
    body = [
        [["t", "c"]],
        [[0, 0, 1, properties]],
        [0, b""],
        [0, b""],
        [[[piece] * (cells + 1), [column] * cells]],
    ]
    return framed(msgspec.msgpack.encode(body), rows)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (bomb(rows=2**32 - 1), 2**32 - 1),
        (bomb(rows=MAX_RAW // 64 + 1), MAX_RAW // 64 + 1),
        (bomb(rows=100_000, piece=bytes(1000)), 100_000),
        (bomb(rows=100_000, properties=bytes(1000)), 100_000),
        (bomb(rows=10_000, cells=1000), 10_000),
        (bomb(rows=300_000, cells=1, width=255), 300_000),
        (bomb(rows=1, cells=MAX_RAW // 256), 1),
        (bomb(rows=65, piece=bytes(MAX_MESSAGE // 4)), 65),
    ],
)
def test_a_bomb_of_columns_is_refused_before_it_is_put_together(data: bytes, rows: int) -> None:
    assert len(data) < 20_000
    with pytest.raises(Corrupt, match="over the limit"):
        decode(data)
    assert read_header(data).count == rows


def test_the_limit_is_the_callers() -> None:
    data = bomb(rows=1000, piece=bytes(100))
    assert len(decode(data).rows) == 1000
    with pytest.raises(Corrupt, match="over the limit of 163999"):
        decode(data, 1000 * 164 - 1)


def test_a_decompression_bomb_costs_no_more_than_its_header_admits() -> None:
    with pytest.raises(Corrupt, match="over the limit"):
        decode(framed(bytes(200 << 20), 1))
    with pytest.raises(Corrupt):
        decode(framed(bytes(200 << 20), 1, raw_size=1000))


def test_r5_what_no_mqtt_client_could_have_sent_does_not_decode() -> None:
    with pytest.raises(Corrupt, match=f"a message of {MAX_MESSAGE + 1} bytes"):
        decode(bomb(piece=bytes(MAX_MESSAGE + 1)))
    with pytest.raises(Corrupt, match="a message of"):
        decode(bomb(cells=3, piece=bytes(MAX_MESSAGE // 4 + 1)))
    with pytest.raises(Corrupt, match="a message of"):
        decode(bomb(cells=17_000, width=255))
    long = [[["t" * 65_536, "c"]], *GOOD[1:]]
    with pytest.raises(Corrupt, match="a topic or client of 65536 bytes"):
        decode(framed(msgspec.msgpack.encode(long), 2))


def test_a_body_of_an_unknown_codec_is_corrupt() -> None:
    header = read_header(plain(rows([b"x"])))
    for codec in (0, 3, 255):
        with pytest.raises(Corrupt, match=f"body codec {codec} is not known"):
            decode(pack_header(replace(header, codec=codec), b""))


def test_a_plain_body_under_the_codec_of_columns_is_corrupt_and_the_other_way_round() -> None:
    for data in (plain(rows(telemetry(50))), in_columns(plain(rows(telemetry(50))))):
        other = bytearray(data)
        other[3] = PLAIN + COLUMNS - other[3]
        sealed = bytes(other[:4]) + struct.pack(">I", zlib.crc32(other[8:])) + bytes(other[8:])
        with pytest.raises(Corrupt):
            decode(sealed)
