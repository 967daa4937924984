"""Configuration errors name file, line or key, and the mend."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest

from waybill.config import address, load, milliseconds
from waybill.errors import ConfigError


class Inner(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    port: int = 1883
    kind: Literal["tcp", "unix"] | None = None


class Outer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    gateway: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    pace: float | Literal["max"] = 1.0


def error_of(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, Outer)
    return str(caught.value)


def test_a_good_file_fills_in_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('gateway = "g"\n[[many]]\nport = 7\n')
    assert load(path, Outer) == Outer("g", Inner(1883), (Inner(7),))


def test_each_mistake_is_named_with_its_place_and_mend(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    with pytest.raises(ConfigError, match="no such file"):
        load(path, Outer)
    assert "line 2" in error_of(path, 'gateway = "g"\ninner = = 3\n')
    for number in ("nan", "-inf", "1e999"):
        assert error_of(path, f'gateway = "g"\npace = {number}\n').endswith(
            f"{number}: no key takes that; give a number"
        )
    assert "did you mean 'gateway'" in error_of(path, 'gatway = "g"\n')
    assert "'gateway' is missing" in error_of(path, "")
    text = error_of(path, 'gateway = "g"\n[inner]\nport = "x"\n')
    assert str(path) in text
    assert "inner.port" in text
    assert "int" in text
    text = error_of(path, 'gateway = "g"\n[inner]\nprot = 1\n')
    assert "[inner]" in text
    assert "did you mean 'port'" in text
    text = error_of(path, 'gateway = "g"\nport = 1\n')
    assert "unknown key 'port'; it belongs below [inner] or [many]" in text
    assert error_of(path, 'gateway = "g"\nzzz = 1\n').endswith("known keys are: gateway, inner, many, pace")
    assert error_of(path, 'gateway = "g"\n[[many]]\nzzz = 1\n').endswith(
        "[many[0]] unknown key 'zzz'; known keys are: kind, port"
    )
    assert error_of(path, 'gateway = "g"\n[many]\nport = 1\n').endswith("write [[many]], once for each")
    text = error_of(path, 'gateway = "g"\n[[many]]\n[[many]]\nkind = "udp"\n')
    assert text == f'{path}: many[1].kind: \'udp\': write "tcp" or "unix"'
    assert error_of(path, 'gateway = "g"\npace = "fast"\n') == f"{path}: pace: 'fast': write \"max\""


def test_a_file_that_cannot_be_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path, Outer)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, Outer)


def test_addresses() -> None:
    assert address("127.0.0.1:1883") == ("127.0.0.1", 1883)
    assert address("[::1]:0") == ("::1", 0)
    for bad in ("1883", ":1883", "host:", "host:x", "host:70000"):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            address(bad)


@pytest.mark.parametrize(
    ("text", "expected"), [("60s", 60_000), ("5m", 300_000), ("1.5h", 5_400_000), ("2d", 172_800_000), ("250ms", 250)]
)
def test_time_spans(text: str, expected: int) -> None:
    assert milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "0s", "1 s", "1y"])
def test_what_is_no_time_span(text: str) -> None:
    with pytest.raises(ConfigError, match="no time span"):
        milliseconds(text)
