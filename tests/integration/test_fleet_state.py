"""From an agent's socket to the cloud's HTTP API, all of it real processes, on the embedded log and on Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import struct
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.integration.edge.agents import publish
from tests.support.http import get
from waybill import snapshot
from waybill.fleet_state import CommandsState, FleetSnapshot, GatewayDetail, GatewayRow, KafkaState, LogState

TOKEN = "a-token-of-some-length"


@contextlib.asynccontextmanager
async def process(*arguments: object) -> AsyncIterator[tuple[Process, list[str]]]:
    """Run ``waybill ARGUMENTS``; gives it and where it listens, once it says so."""
    running = await asyncio.create_subprocess_exec(sys.executable, "-m", "waybill", *map(str, arguments), stdout=PIPE)
    assert running.stdout is not None
    try:
        addresses: list[str] = []
        async with asyncio.timeout(180):
            while not addresses or (arguments[0] == "cloud" and len(addresses) < 2):
                line = (await running.stdout.readline()).decode()
                assert line.startswith("listening on "), line
                addresses.append(line.split()[2])
        yield running, addresses
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def eventually(ask: Callable[[], Awaitable[Any]], holds: Callable[[Any], object], seconds: float = 180) -> Any:
    """Ask again and again until the answer is right; return it."""
    found = None
    try:
        async with asyncio.timeout(seconds):
            while not holds(found := await ask()):  # noqa: ASYNC110 - the condition is another process's state
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"still so: {found}") from None
    return found


class Relay:
    """Stands between the agent and the cloud, and resets what passes when told to."""

    def __init__(self, target: str) -> None:
        self._target = target.rpartition(":")[::2]
        self.wires: list[asyncio.StreamWriter] = []
        self.closed = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(self._target[0], int(self._target[1]))
        self.wires += [writer, back]

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    def reset(self) -> None:
        """Reset both sides of every connection, and let none in any more."""
        self.closed = True
        for wire in self.wires:
            sock = wire.transport.get_extra_info("socket")
            if sock is not None and not wire.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                wire.transport.abort()


def cloud_file(directory: Path, log: str, name: str = "watch") -> Path:
    directory.mkdir()
    (directory / "token").write_text(f"{TOKEN}\n")
    path = directory / "cloud.toml"
    path.write_text(
        f'data = "{directory}/data"\ndeployment = "{name}"\n[listener]\naddress = "127.0.0.1:0"\n'
        f'[api]\nlisten = "127.0.0.1:0"\ntoken_file = "token"\n[log]\n{log}\n'
        f'[topics]\nprefix = "{name}."\npartitions = 2\nreplication_factor = 1\n[[route]]\ntopic = "{name}.telemetry"\n'
    )
    return path


def agent_file(directory: Path, port: int, keepalive: int = 20) -> Path:
    directory.mkdir()
    path = directory / "agent.toml"
    path.write_text(
        f'gateway = "gw1"\ndata = "{directory}/data"\n[[listener]]\nport = 0\n'
        f'[[uplink]]\nurl = "mqtt://127.0.0.1:{port}"\nname = "lte"\nkeepalive = {keepalive}\n[health]\ninterval = 1\n'
    )
    return path


async def whole_way(tmp_path: Path, log: str, name: str) -> None:
    """Run a node, a relay, an agent and a device; see the gateway come, say how it is, and go."""
    file = cloud_file(tmp_path / "cloud", log, name)
    async with contextlib.AsyncExitStack() as stack, process("cloud", "run", "--config", file) as (cloud, (front, api)):
        relay = Relay(front)
        server = await stack.enter_async_context(await asyncio.start_server(relay.serve, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]

        async def fleet() -> FleetSnapshot:
            return (await get(api, "/v1/fleet", token=TOKEN)).of(FleetSnapshot)  # type: ignore[no-any-return]

        def row(found: FleetSnapshot) -> GatewayRow:
            return next((one for one in found.gateways if one.gateway == "gw1"), GatewayRow("gw1"))

        async with process("edge", "run", "--config", agent_file(tmp_path / "edge", port)) as (agent, (devices,)):
            await publish(int(devices.rpartition(":")[2]), [b"x" * 100] * 20)
            found = await eventually(fleet, lambda found: row(found).reported_ms and not row(found).backlog)
            mine = row(found)
            assert (mine.state, mine.uplink, mine.backlog, mine.trouble.partition(":")[0]) in {
                ("online", "lte", 0, ""),
                ("online", "lte", 0, "clock"),
            }
            assert (found.full, found.total, found.online, found.offline) == (True, 1, 1, 0)
            assert mine.partition is not None
            assert len(found.lag_ms) == 2

            # what has changed since: nothing, then the loss of the link
            url = f"/v1/fleet?since={found.revision}"

            async def changes() -> FleetSnapshot:
                return (await get(api, url, token=TOKEN)).of(FleetSnapshot)  # type: ignore[no-any-return]

            relay.reset()
            changed = await eventually(changes, lambda found: row(found).state == "offline")
            assert not changed.full
            detail = msgspec.convert(
                await snapshot.request(tmp_path / "edge" / "data" / "agent.sock", "gateway"), GatewayDetail
            )
            assert detail.health is not None
            lost = next(one for one in detail.health.links if one.state == "offline")
            # when the node wrote it against when the agent saw it: one machine, one clock
            assert abs(row(changed).since_ms - lost.at_ms) <= 60_000
            agent.send_signal(signal.SIGTERM)
            assert await agent.wait() == 0

        there = (await get(api, "/v1/gateways/gw1", token=TOKEN)).of(GatewayDetail)
        assert (there.row.state, there.health.lanes[0].lane) == ("offline", "control")
        lines = (await get(api, "/v1/log", token=TOKEN)).of(LogState).lines
        assert any(line.source == "gw1" and line.text.startswith("offline") for line in lines)

        async def kafka_now() -> KafkaState:
            return (await get(api, "/v1/kafka", token=TOKEN)).of(KafkaState)  # type: ignore[no-any-return]

        kafka = await eventually(kafka_now, lambda found: all(not one.lag for one in found.topics))
        assert {one.topic for one in kafka.topics} >= {f"{name}.waybill.frames", f"{name}.telemetry"}
        assert (next(one for one in kafka.topics if one.topic == f"{name}.telemetry").records or 0) >= 20
        frames = next(one for one in kafka.topics if one.use == "frames")
        assert (frames.lag, frames.under_replicated, frames.offline) == (0, 0, 0)
        assert [(part.partition, part.state) for part in kafka.partitions] == [(0, "ready"), (1, "ready")]

        # a command goes over the node's own socket, and is seen by all
        sock = tmp_path / "cloud" / "data" / "cloud.sock"
        fields = {"id": "c1", "gateway": "gw1", "device": "V1", "name": "horn", "expires_at": kafka.at_ms + 3_600_000}
        await snapshot.request(sock, "command", command=fields)

        async def commands() -> CommandsState:
            return (await get(api, "/v1/commands", token=TOKEN)).of(CommandsState)  # type: ignore[no-any-return]

        listed = await eventually(commands, lambda found: found.commands)
        assert [(one.id, one.name, one.state) for one in listed.commands] == [("c1", "horn", "open")]
        for op, kind in (
            ("fleet", FleetSnapshot),
            ("kafka", KafkaState),
            ("commands", CommandsState),
            ("log", LogState),
        ):
            msgspec.convert(await snapshot.request(sock, op), kind)
        assert msgspec.convert(await snapshot.request(sock, "gateway", id="gw1"), GatewayDetail).row == there.row
        assert json.loads((await get(api, "/v1/gateways/gw2", token=TOKEN)).body)["error"]
        cloud.send_signal(signal.SIGTERM)
        assert await cloud.wait() == 0


async def test_the_state_of_a_gateway_reaches_the_api_on_the_embedded_log(tmp_path: Path) -> None:
    await whole_way(tmp_path, 'kind = "embedded"', "watch")


async def test_the_state_of_a_gateway_reaches_the_api_on_kafka(tmp_path: Path, kafka: str, unique: str) -> None:
    await whole_way(tmp_path, f'kind = "kafka"\n"bootstrap.servers" = "{kafka}"', unique)


async def test_a_gateway_that_falls_silent_is_offline_after_its_keepalive(tmp_path: Path) -> None:
    keepalive = 3
    file = cloud_file(tmp_path / "cloud", 'kind = "embedded"')
    async with process("cloud", "run", "--config", file) as (_, (front, api)):
        edge = agent_file(tmp_path / "edge", int(front.rpartition(":")[2]), keepalive)

        async def rows() -> tuple[GatewayRow, ...]:
            return (await get(api, "/v1/fleet", token=TOKEN)).of(FleetSnapshot).gateways  # type: ignore[no-any-return]

        async with process("edge", "run", "--config", edge) as (agent, _):
            await eventually(rows, lambda found: found and found[0].state == "online")
            silent_ms = time.time_ns() // 1_000_000
            agent.send_signal(signal.SIGSTOP)
            (row,) = await eventually(rows, lambda found: found[0].state == "offline")
            assert row.reason == "keepalive"
            assert row.since_ms - silent_ms <= 1_000 * (1.5 * keepalive + 60)


async def test_every_node_says_the_same_of_the_whole_fleet(tmp_path: Path, kafka: str, unique: str) -> None:
    log = f'kind = "kafka"\n"bootstrap.servers" = "{kafka}"'
    files = [cloud_file(tmp_path / name, log, unique) for name in ("one", "two")]
    async with (
        process("cloud", "run", "--config", files[0]) as (_, (front, first)),
        process("cloud", "run", "--config", files[1]) as (_, (_, second)),
    ):
        edge = agent_file(tmp_path / "edge", int(front.rpartition(":")[2]))
        async with process("edge", "run", "--config", edge):

            async def both() -> list[FleetSnapshot]:
                return [(await get(api, "/v1/fleet", token=TOKEN)).of(FleetSnapshot) for api in (first, second)]

            def complete(found: list[FleetSnapshot]) -> bool:
                one, other = found
                known = all(lag is not None for each in found for lag in each.lag_ms)
                return known and one.gateways == other.gateways != () and one.gateways[0].reported_ms > 0

            one, other = await eventually(both, complete)
            assert one.node != other.node
            assert other.gateways[0].node == one.node
            nodes = (await get(second, "/v1/kafka", token=TOKEN)).of(KafkaState).nodes
            assert {each.node for each in nodes} == {one.node, other.node}
