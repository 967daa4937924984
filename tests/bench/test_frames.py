"""The two bodies of a frame: bytes, and µs of one core, a message; JSON of ten fields from twenty vehicles.

The vehicles are made up: what they report drifts as sensors do, and is rounded as their makers round it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from edge_agent.forward.dictionaries import Sample, train
from waybill.frames import Dictionary, Row, decode, encode_plain, in_columns

pytestmark = pytest.mark.bench

VEHICLES, SECONDS = 20, 1000
START_MS = 1_790_000_000_000


def rows(seed: int = 7) -> Iterator[Row]:
    """Give what ``VEHICLES`` publish once a second, as rows whose offsets are milliseconds since ``START_MS``."""
    rng = random.Random(seed)
    fleet: list[dict[str, Any]] = [
        {
            "ts": START_MS,
            "vin": f"WVWZZZ1JZ{rng.randrange(10**8):08d}",
            "speed": rng.uniform(0, 120),
            "rpm": 800.0,
            "lat": rng.uniform(52.4, 52.6),
            "lon": rng.uniform(13.3, 13.5),
            "heading": rng.uniform(0, 360),
            "odo": rng.uniform(0, 100_000),
            "soc": rng.uniform(20, 100),
            "temp": 20.0,
        }
        for _ in range(VEHICLES)
    ]
    decimals = {"speed": 1, "lat": 6, "lon": 6, "heading": 1, "odo": 2, "soc": 1, "temp": 1}
    for second in range(SECONDS):
        for number, car in enumerate(fleet):
            at = second * 1000 + number * 37
            speed = car["speed"] = min(max(car["speed"] + rng.gauss(0, 1.5), 0), 160)
            car["ts"] = START_MS + at + rng.randrange(16)
            car["rpm"] = int(800 + speed * 32 + rng.gauss(0, 12))
            car["lat"] += speed * rng.uniform(-1, 2) * 2.5e-6
            car["lon"] += speed * rng.uniform(-1, 2) * 4e-6
            car["heading"] = (car["heading"] + rng.gauss(0, 2)) % 360
            car["odo"] += speed / 3600
            car["soc"] -= speed * 6e-7
            car["temp"] += rng.gauss(0, 0.02)
            shown = {name: round(value, decimals[name]) if name in decimals else value for name, value in car.items()}
            yield number, at, 1, json.dumps(shown).encode(), b""


def frame(part: list[Row], first: int, dictionary: Dictionary | None = None) -> bytes:
    numbers = sorted({row[0] for row in part}) if len(part) < VEHICLES else list(range(VEHICLES))
    return encode_plain(
        epoch=1,
        prev_epoch=0,
        prev_last=0,
        oldest_epoch=1,
        lane="telemetry",
        order="fifo",
        durability="every-commit",
        clock="synced",
        first=first,
        base_ms=START_MS + part[0][1],
        sources=[(f"vehicles/{number:04d}/telemetry", f"vehicle-{number:04d}") for number in numbers],
        rows=[(numbers.index(number), at - part[0][1], flags, payload, b"") for number, at, flags, payload, _ in part],
        dictionary=dictionary,
    )


@pytest.mark.parametrize("count", [100, 1000, 5000])
def test_frames(count: int) -> None:
    made = list(rows())
    parts = [(made[at : at + count], at + 1) for at in range(0, len(made), count)]
    clock = [time.process_time()]
    plain = [frame(*part) for part in parts]
    clock.append(time.process_time())
    columns = [in_columns(each) for each in plain]
    clock.append(time.process_time())
    told = [decode(each) for each in plain]
    clock.append(time.process_time())
    back = [decode(each) for each in columns]
    clock.append(time.process_time())
    assert [each.rows for each in back] == [each.rows for each in told]
    encode, change, read, put_together = (1e6 * (after - before) / len(made) for before, after in pairwise(clock))
    payload = sum(len(row[3]) for row in made) / len(made)
    print(f"\n\nframes of {count} messages of {payload:.0f} bytes, header and topics included:")
    for name, frames, to, out in (
        ("plain", plain, encode, read),
        ("columns", columns, encode + change, put_together),
    ):
        size = sum(map(len, frames)) / len(made)
        print(f"  {name:8} {size:6.2f} bytes   encode {to:6.2f} µs   decode {out:5.2f} µs   a message")


@pytest.mark.parametrize("count", [1, 10, 100])
def test_frames_with_a_dictionary(count: int) -> None:
    """Trained as the agent does it, on frames as they were sent; measured on later ones."""
    made = list(rows())
    parts = [(made[at : at + count], at + 1) for at in range(0, len(made), count)]
    some, rest = parts[: len(parts) // 3], parts[len(parts) // 3 :]
    print(f"\n\nframes of {count} messages, header and topics included:")
    for name, change in (("plain", _as_it_is), ("columns", in_columns)):
        clock = [time.process_time()]
        bare = [change(frame(*part)) for part in rest]
        clock.append(time.process_time())
        known = train(Sample([change(frame(*part)) for part in some[-1000:]], 86_400.0, None))
        clock.append(time.process_time())
        assert known is not None
        small = [change(frame(*part, known), known) for part in rest]
        clock.append(time.process_time())
        back = [decode(each, dictionary=known) for each in small]
        clock.append(time.process_time())
        assert [each.rows for each in back] == [decode(each).rows for each in bare]
        took = [after - before for before, after in pairwise(clock)]
        messages = sum(len(part) for part, _ in rest)
        for kind, frames, seconds in (("", bare, took[0]), ("with a dictionary", small, took[2])):
            size = sum(map(len, frames)) / messages
            print(f"  {name:7} {kind:17} {size:6.2f} bytes   encode {1e6 * seconds / messages:6.2f} µs   a message")
        print(f"  {'':25} decode {1e6 * took[3] / messages:5.2f} µs, training {1e3 * took[1]:.0f} ms")


def _as_it_is(data: bytes, _dictionary: Dictionary | None = None) -> bytes:
    return data
