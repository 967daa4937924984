"""The snapshot socket answers one line to one line and outlives bad requests."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from waybill.errors import ConfigError, Unavailable
from waybill.snapshot import request, serve


class Snap(msgspec.Struct, frozen=True):
    count: int


async def test_a_snapshot_is_taken_at_the_time_of_the_request(tmp_path: Path) -> None:
    count = 0

    def snapshot() -> Snap:
        nonlocal count
        count += 1
        return Snap(count)

    path = tmp_path / "a.sock"
    async with serve(path, snapshot):
        assert path.stat().st_mode & 0o777 == 0o600
        assert await request(path, "snapshot") == {"count": 1}
        assert await request(path, "snapshot") == {"count": 2}
    assert not path.exists()
    with pytest.raises(Unavailable, match="is the process running"):
        await request(path, "snapshot")


async def test_a_path_that_is_no_socket_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.sock").mkdir()
    with pytest.raises(ConfigError, match=r"a\.sock: cannot be made a socket: Is a directory; move away"):
        async with serve(tmp_path / "a.sock", lambda: Snap(1)):
            pass


async def test_handlers_answer_and_their_errors_travel(tmp_path: Path) -> None:
    async def double(asked: dict[str, Any]) -> int:
        if "n" not in asked:
            raise ConfigError("give n")
        return int(asked["n"]) * 2

    path = tmp_path / "a.sock"
    async with serve(path, lambda: Snap(0), {"double": double}):
        assert await request(path, "double", n=4) == 8
        with pytest.raises(Unavailable, match="give n"):
            await request(path, "double")
        with pytest.raises(Unavailable, match="known: double, snapshot"):
            await request(path, "triple")
        assert await request(path, "snapshot") == {"count": 0}


async def test_garbage_and_silence_cost_one_connection(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with serve(path, lambda: Snap(1)):
        silent = await asyncio.open_unix_connection(str(path))
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"\xff{not json\n")
        assert "error" in json.loads(await reader.readline())
        writer.close()
        assert await request(path, "snapshot") == {"count": 1}
        silent[1].close()


async def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    async with serve(directory / "a.sock", lambda: Snap(3)):
        assert await request(directory / "a.sock", "snapshot") == {"count": 3}


async def test_a_socket_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    (await asyncio.start_unix_server(lambda _r, _w: None, str(path))).close()
    path.touch()
    async with serve(path, lambda: Snap(5)):
        assert await request(path, "snapshot") == {"count": 5}
