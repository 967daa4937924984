"""Where pictures come from: an agent's socket, or the cloud's HTTP API. And what is known while neither answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

import msgspec

from waybill import snapshot
from waybill.errors import Unavailable
from waybill.fleet_state import CommandsState, FleetSnapshot, GatewayDetail, KafkaState, LogState
from waybill.monitor import fleet, logs
from waybill.monitor.client import Answer, Client

Kind = Literal["fleet", "gateway", "commands", "kafka", "log"]
Picture = FleetSnapshot | GatewayDetail | CommandsState | KafkaState | LogState

PAUSES: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds until the next attempt, after so many that failed."""

_TYPES: Final[dict[Kind, type[msgspec.Struct]]] = {
    "fleet": FleetSnapshot,
    "gateway": GatewayDetail,
    "commands": CommandsState,
    "kafka": KafkaState,
    "log": LogState,
}


@dataclass(frozen=True, slots=True)
class Feed:
    """What is known, and of when. Times: seconds, monotonic.

    ``picture``: the last one, of ``seen``; None before the first. ``error``: why no newer one came; empty: it is of
    now. ``lost``: since when none comes; ``due``: when it is asked for again.
    """

    picture: Any = None
    seen: float = 0.0
    error: str = ""
    lost: float = 0.0
    failures: int = 0
    due: float = 0.0

    def arrived(self, picture: Picture, now: float, interval: float) -> Feed:
        """Return this with a new picture."""
        return Feed(picture, now, due=now + interval)

    def failed(self, error: str, now: float) -> Feed:
        """Return this after an attempt that failed."""
        pause = PAUSES[min(self.failures, len(PAUSES) - 1)]
        lost = self.lost if self.failures else now
        return replace(self, error=error, lost=lost, failures=self.failures + 1, due=now + pause)


class Source(Protocol):
    """Something to ask. ``name``: for people; ``kinds``: what it knows; ``notice``: what to say of it, or empty."""

    name: str
    kinds: tuple[Kind, ...]
    notice: str

    async def ask(self, kind: Kind, gateway: str = "") -> Picture:
        """Return a picture of now. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Let go of what is open."""
        ...


_ALL: Final[tuple[Kind, ...]] = ("fleet", "gateway", "commands", "kafka", "log")
_OWN: Final[tuple[Kind, ...]] = ("gateway", "log")


class Known:
    """What a source said before: of the fleet and of the log it is asked for what changed since."""

    def __init__(self) -> None:
        """Know nothing."""
        self._fleet: FleetSnapshot | None = None
        self._log: LogState | None = None

    def since(self, kind: Kind) -> str:
        """Return what to ask with."""
        if kind == "fleet" and self._fleet is not None:
            return self._fleet.revision
        return self._log.since if kind == "log" and self._log is not None else ""

    def with_(self, kind: Kind, told: Any) -> Picture:  # noqa: ANN401 - of the kind
        """Return the whole picture, with what was told."""
        if kind == "fleet":
            told = self._fleet = fleet.merged(self._fleet, told)
        elif kind == "log":
            told = self._log = logs.merged(self._log, told)
        picture: Picture = told
        return picture


class SocketSource:
    """A process on this machine, over its socket for tools: an agent, or an ingest (``fleet``)."""

    notice = ""

    def __init__(self, path: Path, *, fleet: bool) -> None:
        """Nothing is opened until it is asked."""
        self.name = str(path)
        self.kinds = _ALL if fleet else _OWN
        self._path = path
        self._known = Known()

    async def ask(self, kind: Kind, gateway: str = "") -> Picture:
        """Return a picture of now. Raises Unavailable."""
        answer = await snapshot.request(self._path, kind, id=gateway, since=self._known.since(kind))
        return self._known.with_(kind, _converted(lambda: msgspec.convert(answer, _TYPES[kind]), self.name))

    async def close(self) -> None:
        """Do nothing: each request has a connection of its own."""


class CloudSource:
    """The HTTP API of a node of the cloud."""

    kinds: tuple[Kind, ...] = _ALL

    def __init__(self, client: Client) -> None:
        """Nothing is opened until it is asked."""
        self.name = client.url
        self.notice = "not encrypted: the token can be read on the way" if client.in_clear else ""
        self._client = client
        self._known = Known()

    async def ask(self, kind: Kind, gateway: str = "") -> Picture:
        """Return a picture of now. Raises Unavailable."""
        path = f"/v1/gateways/{quote(gateway, safe='')}" if kind == "gateway" else f"/v1/{kind}"
        since = self._known.since(kind)
        answer = await self._client.get(f"{path}?since={quote(since, safe='')}" if since else path)
        if answer.status != 200:  # noqa: PLR2004
            await self._client.close()
            raise Unavailable(f"{self.name}: {_refusal(answer)}")
        told = _converted(lambda: msgspec.json.decode(answer.body, type=_TYPES[kind]), self.name)
        return self._known.with_(kind, told)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.close()


class _Error(msgspec.Struct, frozen=True):
    """The API's body where it does not answer with 200."""

    error: str


def _refusal(answer: Answer) -> str:
    """Say why it answers with another status than 200."""
    if answer.status == 401:  # noqa: PLR2004
        return "it does not take the token; give that of its [api] token_file with --token-file"
    try:
        return msgspec.json.decode(answer.body, type=_Error).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return f"it answers with status {answer.status}; is it the API of an ingest?"


def _converted(convert: Callable[[], Any], name: str) -> Any:  # noqa: ANN401 - of the kind that was asked for
    try:
        return convert()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"{name} answers something else: {error}; is it of the same version?") from error


def now() -> float:
    """Return the time that feeds count in."""
    return time.monotonic()
