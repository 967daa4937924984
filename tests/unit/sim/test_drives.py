"""CSV files: what is read, and what an error says."""

from pathlib import Path

import pytest

from fleet_simulator.vehicles.drives import Drive, Row, json_value, recorded, recordings, rows, seconds, trips
from waybill.errors import ConfigError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_drives_that_come_with_the_package() -> None:
    assert len(recordings()) == 10
    assert all(0 <= speed < 60 for name in recordings() for speed in recorded(name).speeds)
    assert sum(1 for trip in trips() for _ in rows(trip)) == 18_559


@pytest.mark.parametrize(
    ("speeds", "told"),
    [
        ((), "drive D: it has no speeds: give one for each second"),
        ((1.0, -2.0), "drive D: -2 m/s in second 1: speeds are 0 to 150 m/s"),
        ((float("nan"),), "drive D: nan m/s in second 0"),
    ],
)
def test_a_drive_that_nobody_can_drive(speeds: tuple[float, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Drive("D", speeds)


def test_rows_with_mark_quotes_and_empty_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'\xef\xbb\xbftime, note\r\n0,"a, b"\r\n\r\n1,"c\nd"\n')
    assert list(rows(path)) == [Row(2, {"time": "0", "note": "a, b"}), Row(5, {"time": "1", "note": "c\nd"})]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", r"a\.csv:1: the file is empty: it needs a first line"),
        ("a,b\n1\n", r"a\.csv:2: 1 fields where the first line names 2: complete"),
        ("a,b\n1,2\n1,2,3\n", r"a\.csv:3: 3 fields"),
        ("a,a\n1,2\n", r"a\.csv:1: two columns are named 'a': rename"),
        ("a,,c\n", r"a\.csv:1: column 2 has no name: give it one"),
        ("0,12.5\n1,13\n", r"a\.csv:1: '0,12.5' are numbers, not names: add"),
        ('a,b\n1,2\n1,"2\n', r"a\.csv:3: not CSV: unexpected end of data; check"),
        (b"a,b\n1,\xff\n", r"a\.csv: not UTF-8 at byte \d+: convert"),
    ],
)
def test_what_is_wrong_names_file_line_and_mend(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(rows(write(tmp_path / "a.csv", content)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.csv: no such file"):
        list(rows(tmp_path / "nowhere.csv"))
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        list(rows(tmp_path))


def test_time_is_seconds_or_a_date() -> None:
    path = Path("a.csv")
    assert seconds(path, Row(2, {"t": "12.5"}), "t") == 12.5
    first = seconds(path, Row(2, {"t": "2007-05-21 06:35:46"}), "t")
    assert seconds(path, Row(3, {"t": "2007-05-21T06:36:46"}), "t") - first == 60
    with pytest.raises(ConfigError, match=r"a\.csv:4: t is 'noon', neither seconds nor a date"):
        seconds(path, Row(4, {"t": "noon"}), "t")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.14315476711", "1.14315476711"),
        ("-0", "-0"),
        ("1e3", "1e3"),
        ("007", '"007"'),
        ("NaN", '"NaN"'),
        ("1_000", '"1_000"'),
        ("", "null"),
        ("  ", "null"),
        ('say "x"', r'"say \"x\""'),
    ],
)
def test_fields_as_json(text: str, said: str) -> None:
    assert bytes(json_value(text)) == said.encode()
