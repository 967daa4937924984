"""Frames: the header to the byte, and what a decoder must refuse."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import msgspec
import pytest

from waybill.errors import Corrupt, UnknownVersion
from waybill.frames import decode, encode_plain, read_header, zstd
from waybill.frames.body import MAX_MESSAGE
from waybill.frames.header import pack_header, peek_span

SOURCES = [("vehicles/V1/telemetry", "V1"), ("vehicles/V2/telemetry", "V2")]
ROWS = [(0, 0, 1, b'{"n":1}', b""), (1, 5, 5, b"\x00\xff", b"\x03\x00\x04text"), (0, -7, 2, b"", b"")]


def frame(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "epoch": 11,
        "prev_epoch": 7,
        "prev_last": 41,
        "oldest_epoch": 7,
        "lane": "telemetry",
        "order": "fifo",
        "durability": "every-commit",
        "clock": "synced",
        "first": 3,
        "base_ms": 1_700_000_000_000,
        "sources": SOURCES,
        "rows": ROWS,
    }
    return encode_plain(**fields | changes)


def sealed(data: bytes) -> bytes:
    """``data`` with the checksum made right again, so that a test reaches what is behind it."""
    return data[:4] + struct.pack(">I", zlib.crc32(data[8:])) + data[8:]


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    return sealed(data[:offset] + new + data[offset + len(new) :])


def test_a_frame_comes_back_as_it_went() -> None:
    back = decode(frame())
    assert back.sources == SOURCES
    assert back.rows == ROWS
    header = back.header
    assert (header.epoch, header.prev_epoch, header.prev_last, header.oldest_epoch) == (11, 7, 41, 7)
    assert (header.lane, header.order, header.durability, header.clock) == (
        "telemetry",
        "fifo",
        "every-commit",
        "synced",
    )
    assert (header.first, header.count, header.last) == (3, 3, 5)
    assert header.base_ms == 1_700_000_000_000


def fields_of(data: bytes) -> list[Any]:
    """The header's fields as they stand in ``data``."""
    fields: list[Any] = msgspec.msgpack.decode(data[9 : 9 + data[8]])
    return fields


def with_fields(data: bytes, fields: object, body: bytes | None = None) -> bytes:
    """``data`` with other fields in its header, and perhaps another body."""
    raw = fields if isinstance(fields, bytes) else msgspec.msgpack.encode(fields)
    return sealed(data[:8] + bytes([len(raw)]) + raw + (data[9 + data[8] :] if body is None else body))


def test_the_header_is_laid_out_as_documented() -> None:
    data = frame()
    assert data[:4] == b"WB\x01\x01"
    size = read_header(data).raw_size
    assert fields_of(data) == ["telemetry", 8, 11, 7, 7, 41, 3, 3, 1_700_000_000_000, size, 0]
    other = frame(order="arrival", durability="relaxed", clock="corrected", oldest_epoch=11)
    assert fields_of(other)[1:4] == [2 + 4 + 16, 11, 0]
    assert read_header(other).oldest_epoch == 11


def test_the_header_takes_few_bytes() -> None:
    """A message that travels alone has one of its own."""
    epoch = 2**63 - 1
    data = frame(epoch=epoch, prev_epoch=epoch - 1, oldest_epoch=epoch, first=60_000, rows=ROWS[:1])
    assert len(data) - read_header(data).body_size <= 60


def test_fields_added_to_the_header_later_are_ignored() -> None:
    data = frame()
    assert decode(with_fields(data, [*fields_of(data), "more", {"of": "it"}])).rows == ROWS


def test_a_frame_that_is_refused_can_still_say_which_one_it_was() -> None:
    data = frame()
    assert peek_span(data[:-1] + b"\x00") == (11, "telemetry", 3, 5)
    assert peek_span(data[:30]) is None
    assert peek_span(b"WB\x02" + data[3:]) is None
    assert peek_span(b"") is None
    assert peek_span(with_fields(data, b"\xc1")) is None


@pytest.mark.parametrize("at", [0, 1, 4, 8, 9, 12, 20, 40, -40, -1])
def test_one_flipped_bit_anywhere_is_found(at: int) -> None:
    data = bytearray(frame())
    data[at] ^= 0x10
    with pytest.raises(Corrupt):
        read_header(bytes(data))


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 30, 60])
def test_a_frame_cut_short_is_corrupt(size: int) -> None:
    with pytest.raises(Corrupt):
        decode(frame()[:size])
    with pytest.raises(Corrupt):
        decode(sealed(frame()[:size]) if size > 8 else b"WB")


def test_another_version_names_those_spoken() -> None:
    with pytest.raises(UnknownVersion) as caught:
        read_header(patched(frame(), 2, b"\x02"))
    assert caught.value.version == 2
    assert caught.value.spoken == (1,)


LANE, KIND, EPOCH, OLDEST, PREV, PREV_LAST, FIRST, COUNT, BASE, RAW, DICTIONARY = range(11)


@pytest.mark.parametrize(
    ("field", "new"),
    [
        (LANE, ""),
        (LANE, "x" * 65),
        (LANE, "ü" * 33),  # 66 bytes
        (LANE, b"telemetry"),
        (KIND, 3),  # unknown order
        (KIND, 24),  # unknown clock
        (KIND, 32),
        (KIND, -1),
        (EPOCH, 0),
        (EPOCH, 2**63),
        (EPOCH, 1.5),
        (OLDEST, 2**63),
        (PREV, 0),  # no previous epoch, but a last seq of it
        (PREV, 11),  # its own predecessor
        (PREV_LAST, 0),
        (PREV_LAST, -1),
        (FIRST, 0),
        (FIRST, 2**63 - 1),  # and two more after it
        (COUNT, 0),
        (COUNT, 2),  # fewer messages than the body has
        (COUNT, 2**32),
        (BASE, 2**63),
        (RAW, 5),  # the body is larger than it says
        (RAW, 500),  # or smaller
        (RAW, 2**32),
        (DICTIONARY, 3),  # one nobody knows
        (DICTIONARY, 2**32),
        (DICTIONARY, None),
    ],
)
def test_a_header_that_lies_is_corrupt(field: int, new: object) -> None:
    fields = fields_of(frame())
    fields[field] = new
    with pytest.raises(Corrupt):
        decode(with_fields(frame(), fields))


@pytest.mark.parametrize(
    "fields",
    [b"", b"\xc1", b"\x90", {"lane": "telemetry"}, "telemetry", b"\x91" * 200, b"\x9b\xa2\xff\xff" + bytes(10)],
)
def test_what_is_no_header_is_corrupt(fields: object) -> None:
    for data in (
        with_fields(frame(), fields),
        with_fields(frame(), msgspec.msgpack.encode(fields_of(frame())) + b"\0"),
    ):
        with pytest.raises(Corrupt):
            read_header(data)
    short = fields_of(frame())[:-1]
    with pytest.raises(Corrupt):
        read_header(with_fields(frame(), short))


def test_a_header_longer_than_the_frame_is_corrupt() -> None:
    data = frame()
    with pytest.raises(Corrupt):
        read_header(sealed(data[:8] + b"\xff" + data[9:60]))


def with_body(raw: bytes, count: int = 1) -> bytes:
    """A frame with a right header around any body."""
    good = frame(rows=ROWS[:1])
    fields = fields_of(good)
    fields[COUNT], fields[RAW] = count, len(raw)
    return with_fields(good, fields, zstd.compress(raw, 3)[0])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        [],
        [[["t", "c"]], [[0, 0, 0, b"", b""]], 3],
        [[["t"]], [[0, 0, 0, b"", b""]]],
        b"\x92\x91\x92\xa1\xff\xa1c\x91\x95\x00\x00\x00\xc4\x00\xc4\x00",  # a topic that is not UTF-8
        [[["t", "c"]], [[0, 0, 0, b""]]],
        [[["t", "c"]], [[1, 0, 0, b"", b""]]],
        [[["t", "c"]], [[-1, 0, 0, b"", b""]]],
        [[["t", "c"]], [[0, 0, 16, b"", b""]]],
        [[["t", "c"]], [[0, 0, 0, "text", b""]]],
        [[["t", "c"]], [[0, 0.5, 0, b"", b""]]],
        [[], []],
    ],
)
def test_a_body_that_is_not_rows_is_corrupt(body: object) -> None:
    raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    with pytest.raises(Corrupt):
        decode(with_body(raw))


def test_a_decompression_bomb_costs_no_more_than_its_header_admits() -> None:
    bomb, _ = zstd.compress(bytes(200 << 20), 3)
    good = frame(rows=ROWS[:1])
    for raw_size, error in ((200 << 20, "over the limit"), (1000, "has not the 1000 bytes")):
        fields = fields_of(good)
        fields[RAW] = raw_size
        with pytest.raises(Corrupt, match=error):
            decode(with_fields(good, fields, bomb))


@pytest.mark.parametrize(
    "bad", [{"lane": ""}, {"lane": "x" * 65}, {"epoch": -1}, {"epoch": 1 << 64}, {"prev_last": -1}]
)
def test_a_header_field_out_of_range_is_refused_at_encoding(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lane|header"):
        frame(**bad)


@pytest.mark.parametrize(
    ("sources", "row", "error"),
    [
        ([("t", "c")], (0, 0, 1, bytes(MAX_MESSAGE + 1), b""), f"a message of {MAX_MESSAGE + 1} bytes"),
        ([("t", "c")], (0, 0, 1, b"", bytes(MAX_MESSAGE + 1)), f"a message of {MAX_MESSAGE + 1} bytes"),
        ([("t" * 65_536, "c")], (0, 0, 1, b"", b""), "a topic or client of 65536 bytes"),
        ([("t", "ü" * 32_768)], (0, 0, 1, b"", b""), "a topic or client of 65536 bytes"),
    ],
)
def test_r5_what_no_mqtt_client_could_have_sent_does_not_decode(sources: Any, row: Any, error: str) -> None:
    """Some hundred bytes of zstd can hold a record that not even the dead letters take: it would stop a partition."""
    data = frame(sources=sources, rows=[row])
    assert len(data) < 2_000
    with pytest.raises(Corrupt, match=error):
        decode(data)


def test_the_largest_message_decodes() -> None:
    sources = [("t" * 65_535, "c" * 65_535)]
    rows = [(0, 0, 1, bytes(MAX_MESSAGE), b"")]
    back = decode(frame(sources=sources, rows=rows))
    assert (back.sources, back.rows) == (sources, rows)


@pytest.mark.parametrize("behind", [b"\0", zstd.compress(b"", 3)[0], zstd.compress(b"more", 3)[0]])
def test_what_stands_behind_the_body_is_refused(behind: bytes) -> None:
    good = frame(rows=ROWS[:1])
    header = read_header(good)
    body = good[-header.body_size :] + behind
    with pytest.raises(Corrupt, match="behind"):
        decode(pack_header(header, body))


def test_a_body_whose_zstd_frame_is_cut_short_is_refused() -> None:
    good = frame(rows=ROWS[:1])
    header = read_header(good)
    for size in range(header.body_size):
        with pytest.raises(Corrupt):
            decode(pack_header(header, good[-header.body_size :][:size]))


def test_a_window_of_more_memory_than_the_largest_body_is_refused() -> None:
    good = frame(rows=ROWS[:1])
    header = read_header(good)
    body = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(27 - 10) << 3]) + b"\x01\x00\x00"  # RFC 8878, 3.1.1: 128 MiB
    with pytest.raises(Corrupt, match="zstd"):
        decode(pack_header(header, body))
