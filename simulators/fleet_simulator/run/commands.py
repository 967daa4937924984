"""Commands to vehicles: given to the ingest, as ``waybill command send`` does, and followed to their end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping
from typing import Final

import msgspec

from fleet_simulator.deployment import Deployment
from fleet_simulator.ledger import Ledger
from fleet_simulator.processes import bound
from fleet_simulator.readback import Record
from fleet_simulator.scenarios import Command, span
from waybill import snapshot
from waybill.errors import Unavailable
from waybill.wire import CommandStatus

TERMINAL: Final = frozenset({"done", "expired", "rejected"})

_PATIENCE: Final = 60.0
_PAUSE: Final = 0.5
_LONGEST_LINE: Final = 16 << 20

_record = msgspec.json.Decoder(Record)
_status = msgspec.json.Decoder(CommandStatus)


class Commands:
    """Sends commands and notes in the ledger what becomes of them. ``open``: those without an end, by id."""

    def __init__(self, ledger: Ledger, deployment: Deployment, gateways: Mapping[str, str]) -> None:
        """``gateways``: by vehicle."""
        self.open: dict[str, str] = {}
        self.sent = 0
        self._ledger = ledger
        self._deployment = deployment
        self._gateways = gateways
        self._run = secrets.token_hex(4)

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the states while this is open."""
        following = asyncio.create_task(self._follow(), name="command states")
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait({following})

    async def send(self, vehicle: str, command: Command) -> None:
        """Send one; an ingest that is away is waited for. Raises Unavailable where it is away for a minute."""
        self.sent += 1
        name = f"{self._run}-{self.sent}"
        fields = {
            "id": name,
            "gateway": self._gateways[vehicle],
            "device": vehicle,
            "name": command.name,
            "payload": {"command": command.name, **command.payload},
            "expires_at": time.time_ns() // 1_000_000 + int(1000 * span(command.expires, "expires")),
        }
        self.open[name] = vehicle
        self._ledger.sent(name, vehicle, time.time_ns())
        end = time.monotonic() + _PATIENCE
        while True:  # with one id it is carried out once, however often it is sent
            try:
                await snapshot.request(self._deployment.data / "cloud.sock", "command", command=fields)
                return
            except Unavailable as error:
                if time.monotonic() > end:
                    raise Unavailable(f"command {name} is not taken: {error}") from error
            await asyncio.sleep(_PAUSE)

    async def _follow(self) -> None:
        """Read states as they come; a reader that ends is started anew, and reads all from the beginning."""
        while True:
            topic = f"{self._deployment.prefix}waybill.command-status"
            words = self._deployment.tool("cloud", "tail", topic, "--json", "--from-beginning")
            process = await asyncio.create_subprocess_exec(
                *bound(words), stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, limit=_LONGEST_LINE
            )
            try:
                if process.stdout is not None:
                    async for line in process.stdout:
                        self._take(line)
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await asyncio.sleep(1.0)

    def _take(self, line: bytes) -> None:
        with contextlib.suppress(msgspec.MsgspecError):
            status = _status.decode(_record.decode(line).value or "")
            if status.state in TERMINAL and (vehicle := self.open.pop(status.id, None)) is not None:
                self._ledger.replied(status.id, vehicle, status.state, time.time_ns())
