"""``waybill monitor`` as people run it: on a terminal, once, and its exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.support.nobody import nobody
from tests.support.pictures import HOSTILE, commands, gateway, log
from tests.support.tools import ended
from waybill import snapshot
from waybill.errors import ConfigError, Unavailable
from waybill.fleet_state import GatewayDetail, LogState
from waybill.monitor import places

WAYBILL = [sys.executable, "-m", "waybill", "monitor"]


async def tool(*arguments: object) -> tuple[int, str, str]:
    """Run ``waybill monitor ARGUMENTS`` to its end; return exit code, stdout and stderr."""
    return await ended(*WAYBILL, *arguments)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Path]:
    """Serve what an agent serves; give its data directory."""

    async def detail(_: dict[str, object]) -> GatewayDetail:
        return gateway(HOSTILE)

    async def lines(_: dict[str, object]) -> LogState:
        return log()

    data = tmp_path / "data"
    data.mkdir()
    async with snapshot.serve(data / "agent.sock", commands, {"gateway": detail, "log": lines}):
        yield data


async def test_once_is_plain_text_and_json_is_json(agent: Path, tmp_path: Path) -> None:
    code, out, _ = await tool("--data", agent, "--once")
    assert code == 3  # a lane is full
    assert "depot-0010  ▲ online" in out
    assert all(line.isprintable() for line in out.splitlines())
    code, out, _ = await tool("--data", agent, "--json")
    assert (code, json.loads(out)["row"]["gateway"]) == (3, "depot-0010")
    code, out, _ = await tool("--data", agent, "--once", "--screen", "log", "--filter", "error")
    assert (code, len(out.splitlines())) == (0, 12)
    (tmp_path / "agent.toml").write_text('gateway = "g"\ndata = "data"\n')
    assert (await tool("--config", tmp_path / "agent.toml", "--once"))[0] == 3


async def test_what_cannot_be_asked_ends_with_1(tmp_path: Path, free_port: int) -> None:
    code, _, err = await tool("--data", tmp_path, "--once")
    assert (code, "is the process running" in err) == (1, True)
    code, _, err = await tool("--cloud", f"http://127.0.0.1:{free_port}", "--json")
    assert (code, "nobody listens there" in err) == (1, True)


async def test_wrong_arguments_end_with_2_and_say_the_mend(agent: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("a = 1\n")
    (tmp_path / "broken.toml").write_text("a = \n")
    (tmp_path / "empty").write_text("\n")
    wrong: tuple[tuple[tuple[object, ...], str], ...] = (
        (("--data", tmp_path / "none"), "no such directory"),
        (("--config", tmp_path / "none.toml"), "cannot be read"),
        (("--config", tmp_path / "broken.toml"), "cannot be read"),
        (("--config", tmp_path / "other.toml"), 'has no data = "DIR"'),
        (("--data", agent, "--config", tmp_path / "other.toml"), "give one"),
        (("--data", agent, "--cloud", "http://a"), "give one"),
        (("--data", agent, "--token-file", tmp_path / "empty"), "go with --cloud"),
        (("--data", agent, "--screen", "fleet"), "there are gateway, log here"),
        (("--data", agent, "--gateway", "g"), "an agent is one gateway"),
        (("--cloud", "nowhere", "--once"), "write http://HOST:PORT"),
        (("--cloud", "http://a", "--token-file", tmp_path / "empty", "--once"), "holds no token"),
        (("--cloud", "http://a", "--screen", "gateway", "--once"), "say --gateway ID"),
        (("--data", agent), "no terminal"),
    )
    for (arguments, said), (code, out, err) in zip(
        wrong, await asyncio.gather(*(tool(*each) for each, _ in wrong)), strict=True
    ):
        assert (code, out) == (2, ""), arguments
        assert said in err, (arguments, err)


async def test_another_user_is_told_so(agent: Path) -> None:
    source, _ = places.local(None, agent)
    agent.chmod(0)
    try:
        with nobody():
            with pytest.raises(ConfigError, match="not for this user"):
                places.local(None, agent)
            with pytest.raises(Unavailable, match="not for this user"):
                await source.ask("gateway")
    finally:
        agent.chmod(0o700)


async def test_scripts_need_no_textual(agent: Path) -> None:
    without = "import sys; sys.modules['textual'] = None; from waybill.console.main import main; sys.exit(main())"
    for more, code, said in (((), 2, b"pip install 'waybill[tui]'"), (("--once",), 3, b"")):
        arguments = ("-c", without, "monitor", "--data", str(agent), *more)
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE, stderr=PIPE)
        _, err = await process.communicate()
        assert process.returncode == code, err
        assert said in err


class Screen:
    """A real terminal with a process on it. ``seen``: all bytes that came."""

    def __init__(self, end: int) -> None:
        self.seen = bytearray()
        self._end = end
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(end, self._read)

    def _read(self) -> None:
        try:
            some = os.read(self._end, 65536)
        except OSError:  # its other end is closed
            some = b""
        if not some:
            asyncio.get_running_loop().remove_reader(self._end)
        self.seen += some
        self._more.set()

    async def shows(self, words: str) -> None:
        """Wait until ``words`` were drawn."""
        async with asyncio.timeout(60):
            while words.encode() not in self.seen:
                self._more.clear()
                await self._more.wait()

    def hang_up(self) -> None:
        """Go away, so that nobody is told: it is no terminal of a session."""
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        self._end = -1

    def close(self) -> None:
        """Let go of it."""
        if self._end >= 0:
            self.hang_up()

    def press(self, keys: bytes) -> None:
        """Send keys."""
        os.write(self._end, keys)


@contextlib.asynccontextmanager
async def on_a_terminal(*arguments: object, term: str = "xterm-256color") -> AsyncIterator[tuple[Screen, Process]]:
    """Run ``waybill monitor ARGUMENTS`` on a terminal of 80 by 24."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": term}
    process = await asyncio.create_subprocess_exec(
        *WAYBILL, *map(str, arguments), stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    screen = Screen(ours)
    try:
        yield screen, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        screen.close()


async def test_on_a_terminal_it_draws_takes_keys_and_leaves_it_as_it_was(agent: Path) -> None:
    async with on_a_terminal("--data", agent, "--interval", "3600") as (screen, process):
        await screen.shows("certificate")
        await screen.shows("q quit")
        screen.press(b"2")
        await screen.shows("partition 4 wait")
        screen.press(b"q")
        async with asyncio.timeout(60):
            assert await process.wait() == 0
        await screen.shows("\x1b[?1049l")  # back from the alternate screen
    assert b"\x1b[?1049h" in screen.seen
    assert b"\x1b[?1000h" not in screen.seen  # a mouse that is told of costs bytes, and takes selecting away
    assert b"owned\x07" not in screen.seen
    assert b"Traceback" not in screen.seen
    assert len(screen.seen) < 20_000


async def test_a_terminal_that_cannot_be_drawn_on_is_not_drawn_on(agent: Path) -> None:
    async with on_a_terminal("--data", agent, term="dumb") as (screen, process):
        await screen.shows("--once and --json")
        assert await process.wait() == 2
    assert b"\x1b[?1049h" not in screen.seen


async def test_what_does_not_change_is_not_sent_to_the_terminal_again(tmp_path: Path) -> None:
    """Over SSH bytes count: of a picture that is a second younger, the clock alone has changed."""
    looks = 0
    looked = asyncio.Event()

    async def detail(_: dict[str, object]) -> GatewayDetail:
        nonlocal looks
        looks += 1
        looked.set()
        now = gateway()
        return msgspec.structs.replace(now, at_ms=now.at_ms + looks * 1000, row=now.row, health=now.health)

    async with (
        snapshot.serve(tmp_path / "agent.sock", commands, {"gateway": detail}),
        on_a_terminal("--data", tmp_path, "--interval", "0.2") as (screen, _),
    ):
        await screen.shows("q quit")
        await screen.shows("12:00:07Z")
        before, first = len(screen.seen), looks
        while looks < first + 20:
            looked.clear()
            async with asyncio.timeout(60):
                await looked.wait()
        assert (len(screen.seen) - before) / (looks - first) < 500
        assert len(screen.seen) > before


async def test_ctrl_c_and_sigterm_end_it_and_give_the_terminal_back(agent: Path) -> None:
    async with on_a_terminal("--data", agent) as (screen, process):
        await screen.shows("q quit")
        screen.press(b"\x03")
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    async with on_a_terminal("--data", agent) as (screen, process):
        await screen.shows("q quit")
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 143
        await screen.shows("\x1b[?1049l")


async def test_a_terminal_that_is_gone_ends_it(agent: Path) -> None:
    async with on_a_terminal("--data", agent) as (screen, process):
        await screen.shows("q quit")
        screen.hang_up()
        async with asyncio.timeout(60):
            assert await process.wait() == 129
