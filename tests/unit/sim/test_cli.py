"""``waybill fleet`` as a person meets it: last lines, errors and exit codes."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sim.peer import Peer
from waybill.console.main import main


@pytest.fixture
def broker() -> Iterator[str]:
    """Run a peer in a thread of its own: the command has an event loop of its own."""
    peer, ready, loop = Peer(), threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        await peer.start()
        ready.set()
        await stop.wait()
        await peer.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(60)
    yield f"127.0.0.1:{peer.address[1]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def record(vehicle: str, seq: int, offset: int) -> str:
    """Return what is read back of a row of the trip below."""
    said = {"cycle_sec": offset, "speed": offset + 0.5, "vehicle": vehicle, "seq": seq}
    return json.dumps({
        "topic": "fleet.telemetry", "partition": 0, "offset": offset, "timestamp": 1, "key": vehicle,
        "headers": {"ce_id": f"gw/5/telemetry/{offset + 1}"}, "value": json.dumps(said, separators=(",", ":")),
    })  # fmt: skip


def test_replay_then_verdict(broker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trip, acked, records = tmp_path / "V1.csv", tmp_path / "acked", tmp_path / "records"
    trip.write_text("cycle_sec,speed\n" + "".join(f"{n},{n}.5\n" for n in range(50)))
    assert main(["fleet", "replay", str(trip), "--to", broker, "--speed", "max", "--ledger", str(acked)]) == 0
    assert capsys.readouterr().out == "acked 50 of 50 messages of 1 vehicles\n"
    lines = [record("V1", n + 1, n) for n in range(50)]
    records.write_text("\n".join(lines))
    assert main(["fleet", "verdict", str(acked), str(records)]) == 0
    assert capsys.readouterr().out == "verdict: PASS delivered=50 lost=0 duplicated=0 out_of_order=0\n"
    records.write_text("\n".join(lines[:-1]))
    assert main(["fleet", "verdict", str(acked), str(records)]) == 1
    said = capsys.readouterr()
    assert said.out == "verdict: FAIL delivered=49 lost=1 duplicated=0 out_of_order=0\n"
    assert "  V1 telemetry seq 50\n" in said.err
    records.write_text("\n".join([*lines, "no JSON", '{"partition":0,"offset":9,"value":"not ours"}']))
    assert main(["fleet", "verdict", str(acked), str(records)]) == 1


def test_a_replay_that_cannot_end_says_why(free_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trip = tmp_path / "V1.csv"
    trip.write_text("a\n1\n")
    to = f"127.0.0.1:{free_port}"
    assert main(["fleet", "replay", str(trip), "--to", to, "--speed", "max", "--patience", "0.3"]) == 1
    said = capsys.readouterr()
    assert said.out == "acked 0 of 1 messages of 1 vehicles\n"
    assert f"1 messages are not acknowledged: {to}: " in said.err
    assert "refused" in said.err.lower()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["replay", "nowhere.csv"], "nowhere.csv: no such file"),
        (["replay", "nowhere.csv", "--speed", "fast"], "--speed 'fast': give a factor such as 1 or 10, or max"),
        (["replay", "nowhere.csv", "--speed", "-1"], "--speed '-1'"),
        (["replay", "nowhere.csv", "--to", "nowhere"], "write HOST:PORT"),
        (["run", "nowhere"], "nowhere: no such file, and no scenario of that name; there are commute"),
        (["run", "commute", "--topic", "t"], "--topic goes with --target"),
        (["verdict", "nowhere"], "nowhere: cannot be read: No such file"),
    ],
)
def test_what_is_wrong_exits_2_without_a_traceback(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fleet", *arguments]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
