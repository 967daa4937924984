"""Real child processes: ready, killed, started again, paused, stopped; and what is said when they fail."""

import sys
from pathlib import Path

import pytest

from fleet_simulator.processes import Process, until
from waybill.errors import Unavailable

SERVE = "import time; print('listening on x', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SERVE


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def python(code: str, output: Path) -> Process:
    return Process("child", [sys.executable, "-c", code], output)


async def test_ready_killed_and_started_again(tmp_path: Path) -> None:
    child = python(SERVE, tmp_path / "out")
    await child.start()
    first = child.pid
    await child.kill()
    assert not child.running
    with pytest.raises(Unavailable, match="child is not running"):
        _ = child.pid
    await child.start()
    assert child.pid != first
    assert (child.starts, child.said()) == (2, "listening on x\n"), "what it said since this start"
    with pytest.raises(Unavailable, match="running already"):
        await child.start()
    assert await child.stop() == -15


async def test_paused_and_resumed(tmp_path: Path) -> None:
    child = python(SERVE, tmp_path / "out")
    await child.start()
    child.pause()
    await until("stopped", lambda: state_of(child.pid) == "T", 60)
    child.resume()
    await until("running again", lambda: state_of(child.pid) == "S", 60)
    await child.stop()


async def test_one_that_will_not_end_is_killed(tmp_path: Path) -> None:
    child = python(STUBBORN, tmp_path / "out")
    await child.start()
    assert await child.stop(patience=0.2) == -9


async def test_one_that_does_not_serve_is_told_with_its_last_words(tmp_path: Path) -> None:
    child = python("print('no such key'); raise SystemExit(2)", tmp_path / "out")
    with pytest.raises(Unavailable, match=r"child ended with 2 instead of serving; it said:\nno such key"):
        await child.start()
    silent = python("import time; time.sleep(60)", tmp_path / "silent")
    with pytest.raises(Unavailable, match=r"child says 'listening on ': not within 0 s; it said:\n\(nothing\)"):
        await silent.start(patience=0.3)
    await silent.kill()


async def test_stopping_what_never_ran_is_nothing(tmp_path: Path) -> None:
    assert await python(SERVE, tmp_path / "out").stop() is None
