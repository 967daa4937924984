"""What Prometheus and probes get from processes; the metrics that dashboards, alerts and the page name are there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet_simulator.processes import until
from tests.integration.edge.agents import Process, process, publish
from waybill import passwords
from waybill.metrics import ASKERS

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\b(?:waybill|process)_[a-z0-9_]+\b(?!…)")
AGENT = """
gateway = "depot-1"
data = "data"
[metrics]
listen = "127.0.0.1:{port}"
[[listener]]
port = 0
[[source]]
url = "mqtt://127.0.0.1:1"
topics = ["plant/#"]
[[uplink]]
url = "mqtt://127.0.0.1:1"
metered = true
[plan]
budget_bytes = 100000000
cycle_day = 1
"""
CLOUD = """
data = "data"
[metrics]
listen = "127.0.0.1:{port}"
[listener]
address = "127.0.0.1:0"
[devices]
address = "127.0.0.1:0"
passwords = "users"
[[acl]]
user = "*"
publish = ["vehicles/%u/#"]
"""


async def get(port: int, path: str) -> tuple[int, str]:
    """Return status and body."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def samples(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the samples by name, as Prometheus' own parser reads them."""
    code, text = await get(port, "/metrics")
    assert code == 200
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@contextlib.asynccontextmanager
async def serving(part: str, tmp_path: Path, config: str, port: int) -> AsyncIterator[Process]:
    """Run ``waybill PART run`` with ``config`` until it serves its metrics on ``port``."""
    home = tmp_path / part
    home.mkdir()
    (home / "it.toml").write_text(config.format(port=port))
    passwords.put(home / "users", "V7", b"secret")
    async with process("run", "--config", str(home / "it.toml"), part=part) as started:
        await started.ready()

        def connects() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        await until("the metrics", connects, 60)
        yield started
        if started.process.returncode is None:
            assert await started.end(signal.SIGTERM) == 0


async def test_the_agents_metrics_say_what_it_did(tmp_path: Path, free_port: int) -> None:
    async with serving("edge", tmp_path, AGENT, free_port) as agent:
        await publish(agent.port, [b"x"] * 7)
        found = await samples(free_port)
        assert found["waybill_edge_mqtt_received_1_total"] == [({}, 7.0)]
        assert ({"lane": "telemetry"}, 7.0) in found["waybill_edge_lane_backlog_messages"]
        assert [labels["gateway"] for labels, _ in found["waybill_edge_info"]] == ["depot-1"]
        assert found["waybill_edge_link_up"] == [({}, 0.0)]
        assert found["process_resident_memory_bytes"][0][1] > 1e6
        assert await get(free_port, "/livez") == (200, "ok\n")
        assert await get(free_port, "/readyz") == (200, "ok\n")
        assert (await get(free_port, "/other"))[0] == 404


async def test_a_process_that_hangs_is_not_alive(tmp_path: Path, free_port: int) -> None:
    async with serving("cloud", tmp_path, CLOUD, free_port) as cloud:
        assert (await get(free_port, "/livez"))[0] == 200
        cloud.process.send_signal(signal.SIGSTOP)
        with pytest.raises((TimeoutError, OSError)):
            await asyncio.wait_for(get(free_port, "/livez"), 2)
        cloud.process.send_signal(signal.SIGCONT)
        assert (await get(free_port, "/livez"))[0] == 200


async def test_who_asks_slowly_or_too_often_holds_nobody_up(tmp_path: Path, free_port: int) -> None:
    async with serving("edge", tmp_path, AGENT, free_port) as agent:
        slow = [socket.create_connection(("127.0.0.1", free_port), 5) for _ in range(3 * ASKERS)]
        try:
            await publish(agent.port, [b"x"])
            ended = 0
            for one in slow:
                one.settimeout(60)
                ended += one.recv(1) == b""
            assert ended == len(slow)
        finally:
            for one in slow:
                one.close()
        assert (await get(free_port, "/livez"))[0] == 200


async def test_every_metric_that_is_named_somewhere_is_there(tmp_path: Path, free_port: int) -> None:
    there: set[str] = set()
    for part, config in (("edge", AGENT), ("cloud", CLOUD)):
        async with serving(part, tmp_path, config, free_port):
            _, text = await get(free_port, "/metrics")
            there |= set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    rules = (ROOT / "deploy/prometheus/waybill.rules.yml").read_text()
    asked = dict(re.findall(r"^ +- alert: (\w+)\n +expr: (.+)$", rules, re.MULTILINE))
    assert len(asked) == rules.count("alert:")
    for path in (ROOT / "deploy/grafana").glob("*.json"):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            asked |= {f"{path.name}: {panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert len(asked) > 30
    named = {name for expression in asked.values() for name in NAME.findall(expression)}
    page = (ROOT / "docs/metrics.md").read_text()
    assert named - there == set()
    assert {name for name in NAME.findall(page) if not name.endswith("_")} - there == set()
