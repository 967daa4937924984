"""``waybill demo`` as a person runs it, in a short form: the last line, the exit code, and nothing left behind."""

import asyncio
import os
import re
import signal
from pathlib import Path

from fleet_simulator.processes import waybill

PASS = re.compile(r"verdict: PASS delivered=([0-9]+) lost=0 duplicated=0 out_of_order=0 command=ok")


def processes_below(directory: Path) -> list[str]:
    """Return the command lines of living processes that name ``directory``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode() if entry.name.isdigit() else ""
        except OSError:
            continue
        if str(directory) in line and entry.name != str(os.getpid()):
            found.append(line)
    return found


async def demo(*arguments: str, directory: Path) -> tuple[int, list[str]]:
    process = await asyncio.create_subprocess_exec(
        *waybill("demo", "--seconds", "10", "--keep", str(directory), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode().splitlines()


def happened(lines: list[str]) -> None:
    told = "\n".join(lines)
    assert "uplink of depot-1 is cut" in told
    assert "agent of depot-2 was killed with SIGKILL" in told
    assert re.search(r"command demo-\w+ after [0-9.]+ s: done depot-1/V1", told)


async def test_demo_on_the_embedded_log(tmp_path: Path) -> None:
    code, lines = await demo("--vehicles", "6", directory=tmp_path / "demo")
    found = PASS.fullmatch(lines[-1])
    assert (code, bool(found)) == (0, True), "\n".join(lines)
    assert found is not None
    assert int(found[1]) > 50
    happened(lines)
    assert [line.split()[:2] for line in lines[-4:-1]] == [["waybill", name] for name in ("cloud", "edge", "monitor")]
    assert processes_below(tmp_path) == []


async def test_demo_through_kafka_in_topics_of_its_own(kafka: str, tmp_path: Path) -> None:
    code, lines = await demo("--kafka", kafka, directory=tmp_path / "demo")
    assert (code, bool(PASS.fullmatch(lines[-1]))) == (0, True), "\n".join(lines)
    happened(lines)
    assert re.search(r"Kafka, topic demo-[0-9a-f]+\.fleet\.telemetry", lines[1])


async def test_interrupted_it_leaves_nothing_behind(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *waybill("demo", "--keep", str(tmp_path / "demo")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while b"vehicles drive" not in await process.stdout.readline():
            pass
        assert len(processes_below(tmp_path)) >= 4
        process.send_signal(signal.SIGINT)
        said, _ = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert processes_below(tmp_path) == []


async def test_a_kafka_that_is_away_is_told_at_once(free_port: int, tmp_path: Path) -> None:
    code, lines = await demo("--kafka", f"127.0.0.1:{free_port}", directory=tmp_path / "demo")
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"waybill demo: --kafka 127.0.0.1:{free_port}: ")
    assert not (tmp_path / "demo").exists()


async def test_its_temporary_directory_is_removed(tmp_path: Path) -> None:
    # An agent that cannot start, because its Python knows no aiosqlite: told, verdict FAIL, exit code 1.
    (tmp_path / "aiosqlite.py").write_text("raise SystemExit('no aiosqlite today')\n")
    process = await asyncio.create_subprocess_exec(
        *waybill("demo", "--seconds", "10"),
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    lines = said.decode().splitlines()
    assert process.returncode == 1
    assert lines[-1] == "verdict: FAIL delivered=0 lost=0 duplicated=0 out_of_order=0 command=lost"
    assert "no aiosqlite today" in said.decode()
    assert not list(tmp_path.glob("waybill-demo-*"))
