"""Bodies with a dictionary: smaller, the same messages, and what a decoder must refuse."""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import replace

import pytest

from waybill.errors import Corrupt
from waybill.frames import Dictionary, Row, body, columns, decode, encode_plain, in_columns, read_header, zstd
from waybill.frames.header import COLUMNS, body_of, pack_header

SOURCES = [("vehicles/V1/telemetry", "V1"), ("vehicles/V2/telemetry", "V2")]


def rows(count: int, seed: int = 1) -> list[Row]:
    rng = random.Random(seed)
    return [
        (n % 2, 50 * n, 1, json.dumps({"ts": 50 * n, "speed": round(rng.uniform(0, 99), 2), "on": True}).encode(), b"")
        for n in range(count)
    ]


def frame(made: list[Row], dictionary: Dictionary | None = None) -> bytes:
    return encode_plain(
        epoch=11,
        prev_epoch=7,
        prev_last=41,
        oldest_epoch=7,
        lane="telemetry",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=3,
        base_ms=1_790_000_000_000,
        sources=SOURCES,
        rows=made,
        dictionary=dictionary,
    )


def trained(seed: int = 5) -> Dictionary:
    frames = [frame([row]) for row in rows(300, seed)]
    return zstd.train([body.raw_body(each, read_header(each)) for each in frames], 8192)


DICTIONARY = trained()


def test_a_small_frame_is_much_smaller_and_says_the_same() -> None:
    made = rows(1, seed=2)
    bare, small = frame(made), frame(made, DICTIONARY)
    assert read_header(small).dictionary == DICTIONARY.id == zlib.crc32(DICTIONARY.content)
    assert read_header(small).body_size < read_header(bare).body_size / 2
    back = decode(small, dictionary=DICTIONARY)
    assert (back.sources, back.rows) == (SOURCES, made)


def test_columns_take_the_dictionary_too() -> None:
    made = rows(20, seed=2)
    plain = frame(made, DICTIONARY)
    columns, bare = in_columns(plain, DICTIONARY), in_columns(frame(made))
    header = read_header(columns)
    assert (header.codec, header.dictionary) == (COLUMNS, DICTIONARY.id)
    assert header.body_size < read_header(bare).body_size
    assert decode(columns, dictionary=DICTIONARY).rows == made


def test_a_frame_whose_dictionary_is_not_there_stays_as_it_is() -> None:
    plain = frame(rows(20), DICTIONARY)
    assert in_columns(plain) is plain


def test_a_large_frame_does_without_and_decodes_with_any_dictionary_at_hand() -> None:
    made = rows(2000)
    large = frame(made, DICTIONARY)
    assert read_header(large).dictionary == 0
    assert decode(large, dictionary=DICTIONARY).rows == made


def test_a_body_that_would_not_come_back_is_sent_without_the_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of zstd has had such a fault; the frame is all that is left of its messages."""
    made = rows(1)
    for spoilt in (b"", b"\x28\xb5\x2f\xfd", zstd.compress(b"else", 3)[0]):
        monkeypatch.setattr(Dictionary, "compress", lambda _self, _raw, _level, spoilt=spoilt: spoilt)
        data = frame(made, DICTIONARY)
        assert read_header(data).dictionary == 0
        assert decode(data).rows == made


@pytest.mark.parametrize("other", [None, "another"])
def test_a_frame_of_an_unknown_dictionary_is_refused(other: str | None) -> None:
    small = frame(rows(1), DICTIONARY)
    with pytest.raises(Corrupt, match=f"dictionary {DICTIONARY.id} is not known"):
        decode(small, dictionary=trained(9) if other else None)


def test_a_frame_that_names_the_wrong_dictionary_does_harm_to_nobody() -> None:
    other = trained(9)
    small = frame(rows(1), DICTIONARY)
    lying = pack_header(replace(read_header(small), dictionary=other.id), bytes(body_of(small, read_header(small))))
    with pytest.raises(Corrupt):
        decode(lying, dictionary=other)


def test_a_dictionary_bomb_is_refused() -> None:
    raw = bytes(60 << 20)
    bomb = DICTIONARY.compress(raw, 3)
    header = read_header(frame(rows(1), DICTIONARY))
    for raw_size, error in ((100 << 20, "over the limit"), (1000, "has not the 1000 bytes")):
        with pytest.raises(Corrupt, match=error):
            decode(pack_header(replace(header, raw_size=raw_size), bomb), dictionary=DICTIONARY)


def test_what_is_no_dictionary_is_refused() -> None:
    content = DICTIONARY.content
    for bad in (b"", b"x", bytes(100), content[:20], content[:8] + bytes(200), b"\x37\xa4\x30\xec" + bytes(60)):
        with pytest.raises(Corrupt, match="not a zstd dictionary"):
            Dictionary(bad)
    with pytest.raises(Corrupt, match="over the limit"):
        Dictionary(content + bytes(zstd.MAX_DICTIONARY))


def test_no_changed_byte_of_a_dictionary_gives_another_message() -> None:
    """A dictionary that was changed on its way has another id: it is refused, or never taken for this one."""
    rng = random.Random(4)
    small = frame(rows(1), DICTIONARY)
    for _ in range(500):
        spoilt = bytearray(DICTIONARY.content)
        spoilt[rng.randrange(len(spoilt))] ^= rng.randrange(1, 256)
        try:
            changed = Dictionary(bytes(spoilt))
        except Corrupt:
            continue
        assert changed.id != DICTIONARY.id
        with pytest.raises(Corrupt):
            decode(small, dictionary=changed)


@pytest.mark.parametrize("samples", [[], [b"x"], [b""] * 100, [b"abc"] * 5])
def test_too_few_samples_make_no_dictionary(samples: list[bytes]) -> None:
    with pytest.raises(Corrupt, match="no dictionary"):
        zstd.train(samples, 8192)


def test_few_messages_stay_as_they_are() -> None:
    few = frame(rows(columns.MIN_ROWS - 1))
    assert in_columns(few) is few
