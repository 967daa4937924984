"""MQTT.js as a process of its own, which clients/mqttjs.js lets tests talk to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "clients" / "mqttjs.js"


@dataclass(frozen=True)
class Heard:
    """A message that a client got."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    properties: dict[str, Any]


class Failed(Exception):
    """MQTT.js says that a call failed."""


class MqttJs:
    """One Node process with any number of clients, by name. ``heard``, ``events``: of each, in order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.heard: dict[str, list[Heard]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}

    async def call(self, name: str, call: str, **rest: object) -> Any:
        """Let client ``name`` do something, and return what it answers. Raises Failed."""
        assert self._process.stdin is not None
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"id": number, "client": name, "call": call, **rest}).encode() + b"\n")
        async with asyncio.timeout(60):
            return await answer

    async def connect(self, name: str, url: str, **options: object) -> Any:
        """Connect a client; returns what CONNACK said, or its ``code``."""
        self.heard[name] = []
        self.events[name] = []
        return await self.call(name, "connect", url=url, options=options)

    async def publish(self, name: str, topic: str, payload: bytes, **options: object) -> None:
        """Publish; returns when it is acknowledged."""
        await self.call(name, "publish", topic=topic, payload=base64.b64encode(payload).decode(), options=options)

    async def subscribe(self, name: str, *topics: str, **options: object) -> list[int]:
        """Subscribe; returns what was granted."""
        return [each["qos"] for each in await self.call(name, "subscribe", topics=topics, options=options)]

    async def end(self, name: str, *, force: bool = False) -> None:
        """Disconnect; ``force``: without DISCONNECT."""
        await self.call(name, "end", force=force)

    async def listen(self) -> None:
        """Take what the process says, until it ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "id" in said:
                waiting = self._answers.pop(said["id"])
                if "error" in said:
                    waiting.set_exception(Failed(said["error"], said.get("code")))
                else:
                    waiting.set_result(said["answer"])
            elif "heard" in said:
                self.heard[said["client"]].append(
                    Heard(
                        said["heard"],
                        base64.b64decode(said["payload"]),
                        said["qos"],
                        said["retain"],
                        said["dup"],
                        said.get("properties") or {},
                    )
                )
            else:
                self.events[said["client"]].append(said)


@contextlib.asynccontextmanager
async def node() -> AsyncIterator[MqttJs]:
    """Run MQTT.js."""
    process = await asyncio.create_subprocess_exec("node", PROGRAM, stdin=PIPE, stdout=PIPE)
    made = MqttJs(process)
    listening = asyncio.create_task(made.listen())
    try:
        yield made
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(60):
            await process.wait()
            await listening
