"""``waybill edge plan``: figures that add up, and agree with what was measured elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.setup.sample import made_up, read
from edge_agent.setup.sizing import Given, Message, sizing
from waybill.console.main import main
from waybill.errors import ConfigError

PAGE = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()

GIVEN = Given(
    rate=1.0, devices=1, gather_ms=0, max_bytes=8 << 30, frame_messages=4000, linger_ms=200, ping_s=14,
    outage_s=3 * 86_400, tbw=10.0,
)  # fmt: skip


def given(**other: Any) -> Given:
    return msgspec.structs.replace(GIVEN, **other)


def test_it_agrees_with_what_was_measured() -> None:
    """docs/bench.md, of JSON of 174 bytes: 384 bytes a message alone with a dictionary, 80 in frames of ten."""
    found = sizing(GIVEN, made_up(1, 174))
    month = 30 * 86_400
    alone, tens = found.traffic[0], found.traffic[2]
    assert (alone.a_frame, tens.a_frame) == (1, 10)
    assert alone.plain_dictionary is not None
    assert alone.plain_dictionary * 1e6 / month == pytest.approx(384, rel=0.2)
    assert tens.columns * 1e6 / month == pytest.approx(80, rel=0.3)
    assert found.ping_mb == pytest.approx(37.8, abs=0.1)  # docs/data-plan.md


@pytest.mark.parametrize(("gather_ms", "measured"), [(0, 19_500), (20, 12_400), (50, 7_200), (200, 3_500)])
def test_what_is_written_agrees_with_the_table(gather_ms: int, measured: int) -> None:
    """docs/configuration.md: 50 devices that send 200 bytes every second."""
    sample = [Message(f"devices/{number:02}/t", bytes(200)) for number in range(50)]
    found = sizing(given(rate=50.0, devices=50, gather_ms=gather_ms), sample)
    assert found.written_message / 1.1 == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("row", re.findall(r"(?m)^\| (\d+, \d+ s \|.*) \|$", PAGE))
def test_the_pages_table_is_what_it_says(row: str) -> None:
    first, *cells = (cell.strip().replace(",", "") for cell in row.split("|"))
    devices, every = (int(each) for each in re.findall(r"\d+", first))
    found = sizing(
        given(rate=devices / every, devices=devices, gather_ms=20, ping_s=89, outage_s=7 * 86_400),
        made_up(devices, 174),
    )
    of = {each.linger_ms: each.columns_dictionary or each.columns for each in found.traffic}
    said = (found.outage_bytes / 1e9, found.written_day / 1e9, of[200], of[10_000], of[60_000])
    for cell, value in zip(cells, said, strict=True):
        assert float(cell) == pytest.approx(value, rel=0.15)


def test_the_page_has_the_table() -> None:
    assert len(re.findall(r"(?m)^\| \d+, \d+ s \|", PAGE)) == 3


def test_more_of_a_thing_takes_more_of_another() -> None:
    sample = made_up(5, 174)[:1000]
    base, twice = sizing(GIVEN, sample), sizing(given(rate=2.0, outage_s=6 * 86_400), sample)
    assert twice.outage_bytes == pytest.approx(4 * base.outage_bytes, rel=0.01)
    assert twice.holds_days == pytest.approx(base.holds_days / 2, rel=0.01)
    assert twice.card_years == pytest.approx(base.card_years / 2, rel=0.01)
    for each in base.traffic:
        assert each.columns <= each.plain
        assert each.plain_dictionary is None or each.plain_dictionary < each.plain
    months = [each.columns for each in base.traffic]
    assert months == sorted(months, reverse=True)
    rare = sizing(given(rate=0.001), sample)
    assert all(each.plain > rare.ping_mb for each in rare.traffic)  # pings are due between frames


def test_a_sample_is_read_as_mosquitto_sub_prints_it(tmp_path: Path) -> None:
    path = tmp_path / "sample"
    path.write_bytes(b'a/b {"n": 1}\n\n{"n": 2}\na/c \xff\x00 x\n')
    assert read(path) == [
        Message("a/b", b'{"n": 1}'),
        Message("devices/1/telemetry", b'{"n": 2}'),
        Message("a/c", b"\xff\x00 x"),
    ]
    for wrong, text in ((b"a/b 1\nalone\n", ":2: write TOPIC PAYLOAD"), (b"", "no messages"), (b"a/# x", ":1:")):
        path.write_bytes(wrong)
        with pytest.raises(ConfigError, match=text):
            read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none")


def test_the_command_takes_a_configuration_and_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, sample = tmp_path / "agent.toml", tmp_path / "sample"
    config.write_text(
        'gateway = "g"\ndata = "d"\n[[uplink]]\nurl = "mqtt://h"\nkeepalive = 300\n[forward]\nlinger_ms = 5000\n'
        "[buffer]\ngather_ms = 50\nmax_bytes = 1000000000\n"
    )
    sample.write_text("".join(f'v/1/t {{"speed": {number % 90}, "odo": {number}}}\n' for number in range(500)))
    options = ["--config", str(config), "--sample", str(sample), "--devices", "10", "--every", "5"]
    assert main(["edge", "plan", *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    asked = {"rate": 2.0, "gather_ms": 50, "linger_ms": 5000, "ping_s": 224, "max_bytes": 10**9}
    assert asked.items() <= said["given"].items()
    assert said["messages"] == 500
    assert main(["edge", "plan", *options]) == 0
    assert "as 500 messages of the sample" in " ".join(capsys.readouterr().out.split())


def test_a_sample_shorter_than_a_frame_is_taken_again_and_again() -> None:
    found = sizing(given(rate=100.0), [Message("a", b'{"n": 1}')])
    assert found.traffic[-1].a_frame == 4000
    assert found.traffic[-1].plain > 0


@pytest.mark.parametrize("option", ["--every", "--outage-days", "--tbw"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_no_number_to_size_for_is_told(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edge", "plan", option, value]) == 2
    said = capsys.readouterr().err
    assert option in said
    assert "Traceback" not in said
