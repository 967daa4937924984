"""What the options of ``waybill fleet run`` make of a scenario."""

from __future__ import annotations

import socketserver
import sys
import threading
from pathlib import Path

import pytest

from fleet_simulator.processes import Process
from fleet_simulator.run.world import place, start
from fleet_simulator.run_cli import _aimed, _overridden
from fleet_simulator.scenarios import load, parse
from waybill.console.main import main
from waybill.errors import ConfigError, Unavailable


def test_shares_grow_with_seconds_and_vehicles_with_scale() -> None:
    one = _overridden(load("commute"), "10m", "60", 2, 7)
    assert (one.length, one.pace, one.seed) == (600, 60, 7)
    assert one.time(one.link[0].at) == 90
    assert [gateway for _, _, gateway in place(one)] == [f"van-{number}" for number in range(1, 7)]
    assert _overridden(load("commute"), "20", "max", 1, None).pace == "max"
    assert _overridden(load("commute"), None, None, 0.01, None).vehicle[0].count == 1
    assert _overridden(load("commute"), None, None, 1, None) == load("commute")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("0", None, 1, None), "seconds: the run has to last"),
        (("5 weeks", None, 1, None), "--seconds: '5 weeks' is no time"),
        (("25%", None, 1, None), "--seconds: '25%' is no time"),
        ((None, "fast", 1, None), "--pace 'fast': a number"),
        ((None, "-1", 1, None), "pace: -1: write 1 for real time"),
        ((None, None, 0, None), "--scale 0: more than 0"),
        ((None, None, 10_000, None), "30000 vehicles; at most 20000"),
    ],
)
def test_what_an_option_cannot_be_is_told(options: tuple[str | None, str | None, float, int | None], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _overridden(load("commute"), *options)


def test_a_target_takes_the_place_of_gateways_and_of_what_happens_to_them(capfd: pytest.CaptureFixture[str]) -> None:
    one = _aimed(load("tunnel-city"), "mqtt://127.0.0.1:1", "127.0.0.1:9092", "fleet")
    assert one.target is not None
    assert (one.target.kafka, one.target.topic) == ("127.0.0.1:9092", "fleet")
    assert (one.gateway, one.link, one.fault, one.command) == ((), (), (), ())
    assert {each.network for each in one.zone} == {"none"}
    assert {gateway for _, _, gateway in place(one)} == {""}
    assert "links and faults are left out" in capfd.readouterr().err


TARGET = """
[target]
mqtt = "mqtt://127.0.0.1:1883"
kafka = "127.0.0.1:9092"
topic = "fleet"
[[target.process]]
name = "edge"
command = ["mosquitto"]
[[target.link]]
name = "uplink"
listen = "127.0.0.1:18830"
to = "127.0.0.1:1884"
[[vehicle]]
name = "v"
[[fault]]
what = "edge"
[[link]]
link = "uplink"
"""


def test_another_target_keeps_the_programs_and_links_of_the_scenarios_own() -> None:
    one = _aimed(parse(TARGET, "x", "x"), "mqtt://127.0.0.1:1", None, None)
    assert one.target is not None
    assert (one.target.mqtt, one.target.topic) == ("mqtt://127.0.0.1:1", "fleet")
    assert one.fault
    assert one.link


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('topic = "fleet"', "", r"\[target\] kafka and topic go together"),
        ("mqtt://127.0.0.1:1883", "http://h", "write HOST:PORT, mqtt://"),
        ('what = "edge"', 'what = "agent"', "there is no 'agent'; there are edge"),
        ('link = "uplink"', 'link = "up"', "there is no 'up'; there are uplink"),
        ('to = "127.0.0.1:1884"', 'to = "there"', r"\[\[target.link\]\] 'uplink' to 'there': write HOST:PORT"),
        ('["mosquitto"]', "[]", "'edge' command: it is empty"),
        ('name = "v"', 'name = "v"\ngateway = "g"', "with .target. all vehicles speak to its mqtt"),
        ("[[fault]]", '[[command]]\nname = "horn"\n[[fault]]', "knows no commands of Waybill"),
    ],
)
def test_what_is_wrong_with_a_target_is_told(before: str, after: str, said: str) -> None:
    assert before in TARGET
    with pytest.raises(ConfigError, match=said):
        parse(TARGET.replace(before, after), "x.toml", "x")


def test_a_directory_that_is_there_is_not_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "run", "commute", "--keep", str(tmp_path)]) == 2
    assert f"--keep {tmp_path}: has to be a new directory" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "what"), [(("--kafka",), "Kafka"), (("--target",), "target"), (("--topic", "t", "--target"), "target")]
)
def test_what_is_not_there_is_told_before_anybody_drives_and_is_no_fail(
    options: tuple[str, ...],
    what: str,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("fleet_simulator.run.world._ANSWERS", 0.3)
    kafka = ("--kafka", f"127.0.0.1:{free_port}") if "--topic" in options else ()
    assert main(["fleet", "run", "commute", *kafka, *options, f"127.0.0.1:{free_port}"]) == 2
    said = capfd.readouterr().err
    assert f"{what}" in said
    assert f"nothing answers at 127.0.0.1:{free_port}" in said
    assert "Traceback" not in said


def test_a_report_that_cannot_be_written_is_told_before_anybody_drives(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["fleet", "run", "commute", "--report", str(tmp_path / "file" / "report")]) == 2
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"--report {tmp_path}/file/report: nothing can be written there: Not a directory" in said.err


class Refusing(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.connection.recv(1)
        self.wfile.write(bytes.fromhex("20020005"))


def test_why_a_broker_takes_no_vehicle_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fleet_simulator.run.runner._ONLINE", 1.0)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            where = f"127.0.0.1:{server.socket.getsockname()[1]}"
            assert main(["fleet", "run", "commute", "--target", where]) == 2
        finally:
            server.shutdown()
            thread.join()
    said = capfd.readouterr().err
    assert f"no vehicle is connected: {where} refused the connection: code 0x05, after 1 s" in said


async def test_a_program_that_never_answers_is_not_waited_for_for_ever(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_simulator.run.world._SERVES", 0.3)
    process = Process("deaf", [sys.executable, "-c", "import signal; signal.pause()"], tmp_path / "deaf.log")
    try:
        with pytest.raises(Unavailable, match="deaf.*nothing answers at"):
            await start(process, f"127.0.0.1:{free_port}")
    finally:
        await process.stop()
