"""An agent and an ingest with real certificates at the two ends of an emulated link."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fleet_simulator.processes import Process, waybill
from tests.support.link_emulator import CLOUD, EmulatedLink
from waybill import pki, snapshot
from waybill.mqtt.codec import publish

NAME = "gw1"
PORT = 8883
BATCH = 1000
"""Unacknowledged messages of a device."""


def certificates(directory: Path) -> None:
    """Make ``ca``, ``server`` and ``gw1`` below ``directory``/pki."""
    now, ca = dt.datetime.now(dt.UTC), directory / "pki" / "ca"
    pki.ca_init(ca, now=now)
    pki.issue_server(ca, directory / "pki" / "server", [CLOUD], now=now)
    pki.issue_gateway(ca, directory / "pki" / NAME, NAME, now=now)


class Device:
    """A connection to a Unix socket of an MQTT broker that publishes with QoS 1."""

    def __init__(self, socket: Path, client: bytes = b"V000101") -> None:
        self._socket = socket
        self._client = client
        self._number = 0

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._socket))
        name = bytes([0, len(self._client)]) + self._client
        self._writer.write(b"\x10" + bytes([10 + len(name)]) + b"\x00\x04MQTT\x04\x02\x00\x00" + name)
        assert (await self._reader.readexactly(4))[3] == 0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.write(b"\xe0\x00")
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def publish(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Publish topics and payloads, and return when all are acknowledged."""
        waiting = 0
        for topic, payload in messages:
            self._number = self._number % 65_535 + 1
            self._writer.write(publish(topic, payload, 2, self._number.to_bytes(2, "big")))
            waiting += 1
            if waiting == BATCH:
                await self._reader.readexactly(4 * waiting)
                waiting = 0
        await self._reader.readexactly(4 * waiting)


class Site:
    """Both ends; each is started by who uses it, and stopped at the end of :func:`site`."""

    def __init__(self, directory: Path, link: EmulatedLink, forward: Mapping[str, object], keepalive: int) -> None:
        self.directory = directory
        self.link = link
        self._forward = forward
        self._keepalive = keepalive
        pki_dir = directory / "pki"
        (directory / "cloud.toml").write_text(
            f'data = "cloud"\n[listener]\naddress = "{CLOUD}:{PORT}"\ncertificate = "{pki_dir}/server/server.pem"\n'
            f'key = "{pki_dir}/server/server.key"\nca = "{pki_dir}/server/ca.pem"\n[log]\nkind = "embedded"\n'
            '[[route]]\ntopic = "fleet.telemetry"\n'
        )
        cloud = waybill("cloud", "run", "--config", str(directory / "cloud.toml"))
        agent = waybill("edge", "run", "--config", str(directory / "agent.toml"))
        self.cloud = Process("cloud ingest", link.within("cloud", cloud), directory / "cloud.log")
        self.agent = Process("agent", link.within("gateway", agent), directory / "agent.log")

    async def start_agent(self, *, uplink: bool = True) -> None:
        """Start the agent, with its uplink or without."""
        text = f'gateway = "{NAME}"\ndata = "agent"\n[[listener]]\nkind = "unix"\npath = "mqtt.sock"\n[forward]\n'
        text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in self._forward.items())
        if uplink:
            mine = self.directory / "pki" / NAME
            text += f'[[uplink]]\nurl = "mqtts://{CLOUD}:{PORT}"\nca = "{mine}/ca.pem"\nkeepalive = {self._keepalive}\n'
            text += f'certificate = "{mine}/gateway.pem"\nkey = "{mine}/gateway.key"\n'
        (self.directory / "agent.toml").write_text(text)
        await self.agent.start()

    @property
    def socket(self) -> Path:
        """The Unix socket where devices connect."""
        return self.directory / "mqtt.sock"

    async def snapshot(self) -> dict[str, Any]:
        """Ask the agent how it is."""
        answer: dict[str, Any] = await snapshot.request(self.directory / "agent" / "agent.sock", "snapshot")
        return answer

    async def waiting(self) -> int:
        """Return how many messages the cloud has not acknowledged yet."""
        return sum(int(lane["count"]) for lane in (await self.snapshot())["lanes"])

    async def buffer(self, messages: Iterable[tuple[bytes, bytes]]) -> None:
        """Let an agent that has no uplink take messages in, and stop it."""
        await self.start_agent(uplink=False)
        async with Device(self.socket) as device:
            await device.publish(messages)
        await self.agent.stop()

    async def until_online(self, patience: float = 60.0) -> None:
        """Wait until the agent says that it is."""
        async with asyncio.timeout(patience):
            while (await self.snapshot())["link"]["state"] != "online":  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.02)

    async def drained(self, patience: float) -> float:
        """Wait until nothing waits; return the monotonic time of it."""
        async with asyncio.timeout(patience):
            while await self.waiting():  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.05)
        return time.monotonic()


@contextlib.asynccontextmanager
async def site(
    directory: Path, link: EmulatedLink, forward: Mapping[str, object] | None = None, keepalive: int = 20
) -> AsyncIterator[Site]:
    """Make a site below ``directory``. ``forward``: keys of the agent's [forward]."""
    certificates(directory)
    made = Site(directory, link, forward or {}, keepalive)
    try:
        yield made
    finally:
        await made.agent.stop()
        await made.cloud.stop()
