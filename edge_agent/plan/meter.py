"""The data plan at work: counters are read, the account is kept in a file, and lanes are shut.

The count is looked at once a second and after every frame that was written, so that no more than a frame and what
waits in the socket goes beyond a limit. It is saved when a thousandth of the budget was spent since the last time (64
KiB at least), when it is decided anew what waits, and after five minutes; a crash leaves it short of at most that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.clock import Clock
from edge_agent.forward.forwarder import Sender
from edge_agent.plan.plan import Account, DataPlan, PlanSettings, PlanState, idle_bytes
from edge_agent.uplink.config import UplinkSettings
from edge_agent.uplink.traffic import Traffic

log = logging.getLogger(__name__)

FILE: Final = "plan"
"""Name of the account's file within the data directory: CRC-32 of the rest in hexadecimal, a space, JSON."""

LOOK: Final = 1.0
SAVE_SECONDS: Final = 300.0
IDLE_SECONDS: Final = 3600.0
"""Seconds after which it is saved although nothing was spent: how far the cycle is."""

SAVE_BYTES: Final = 64 << 10
SAVES: Final = 1000
"""How often a whole budget is saved on its way."""

RETRY: Final = 10.0
"""Seconds until a file that could not be written is tried again."""

_INTERFACES: Final = Path("/proc/self/net/dev")
_RECEIVED, _SENT = 0, 8  # columns of it


class Meter:
    """Keeps one gateway's plan."""

    def __init__(
        self,
        settings: PlanSettings,
        uplinks: Mapping[str, UplinkSettings],
        lanes: Sequence[str],
        data: Path,
        *,
        clock: Clock,
        traffic: Callable[[], Mapping[str, Traffic]],
        shut: Callable[[Collection[str]], None],
    ) -> None:
        """Read the account in the data directory ``data``, which is this process's alone.

        ``uplinks``: those that are metered, by name. ``lanes``: names of all lanes. ``traffic``: bytes on the wire of
        every uplink since the start, by name. ``shut``: is told which lanes wait, whenever that changes.
        """
        self._settings = settings
        self._uplinks = uplinks
        self._idle = max((idle_bytes(one.ping, tls=one.tls) for one in uplinks.values()), default=0)
        self._path = data / FILE
        self._plan = DataPlan(settings, lanes, load(self._path), clock.boot)
        self._clock = clock
        self._traffic = traffic
        self._shut = shut
        self._links: list[bool] = []  # whether metered; a better one is there before the other is gone
        self._before = Traffic()
        self._closed: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._saved = self._plan.account.used
        self._saved_at = self._clock.mono()
        self._saved_as = self._stage
        self._not_kept = ""
        self._not_read = ""
        self.saves = 0
        """How often the account was written since the start."""

    @contextlib.contextmanager
    def over(self, link: Sender, *, metered: bool) -> Iterator[Sender]:
        """Hold back what the plan says while this is open, and give what frames are to be sent over."""
        self._links.append(metered)
        self.look()
        try:
            yield _Looked(link, self.look) if metered else link
        finally:
            self._links.remove(metered)
            self.look()

    def look(self) -> None:
        """Read the counters and the clock, and do what the plan says."""
        self._count()
        clock = self._clock
        for note in self._plan.look(clock.wall_ms(), clock.since_boot(), synced=clock.synced):
            log.warning("data plan: %s", note)
        self._apply()
        if self._unsaved() >= self._step or self._stage != self._saved_as:
            self._wake.set()

    def _count(self) -> None:
        if name := self._settings.interface:
            self._read(name)
        else:
            each, total = self._traffic(), Traffic()
            for uplink in self._uplinks:
                total = total.plus(each[uplink])
            self._plan.spend(total.sent - self._before.sent, total.received - self._before.received)
            self._before = total

    def _read(self, name: str) -> None:
        counted = counters_of(name)
        if counted is not None:
            self._plan.interface(name, *counted)
        elif not self._not_read:
            log.warning("data plan: there is no network interface %r to count", name)
        self._not_read = "" if counted is not None else f"there is no network interface {name!r} to count"

    def _apply(self) -> None:
        closed = frozenset(self._plan.held) if self._links and self._links[-1] else frozenset[str]()
        if closed != self._closed:
            self._closed = closed
            self._shut(closed)

    # --- the file ---

    async def run(self) -> None:
        """Look once a second, and save. A task of its own, for the life of the agent."""
        while True:
            self.look()
            if self._is_due():
                await self.save()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY if self._not_kept else LOOK):
                    await self._wake.wait()

    @property
    def _step(self) -> int:
        return max(SAVE_BYTES, self._settings.budget_bytes // SAVES)

    @property
    def _stage(self) -> tuple[object, ...]:
        """What is to be on the disk as soon as it changes."""
        plan = self._plan
        return plan.stage, plan.used_up, plan.believed, plan.account.cycle, plan.account.boot

    def _unsaved(self) -> int:
        return abs(self._plan.account.used - self._saved)

    def _is_due(self) -> bool:
        if self._not_kept or self._stage != self._saved_as or self._unsaved() >= self._step:
            return True
        return self._clock.mono() >= self._saved_at + (SAVE_SECONDS if self._unsaved() else IDLE_SECONDS)

    async def save(self) -> None:
        """Write the account; where that fails it is said, and tried again."""
        account = self._plan.account
        self._saved, self._saved_at, self._saved_as = account.used, self._clock.mono(), self._stage
        try:
            await asyncio.to_thread(write, self._path, encode(account))
        except OSError as error:
            text = f"{self._path}: the count cannot be saved: {error.strerror or error}"
            if text != self._not_kept:
                log.error("data plan: %s", text)  # noqa: TRY400 - the reason is the operating system's
            self._not_kept = text
            return
        self.saves += 1
        self._not_kept = ""

    async def close(self) -> None:
        """Look and save for the last time."""
        self.look()
        await self.save()

    # --- what it says of itself ---

    def state(self) -> PlanState:
        """Return the snapshot."""
        return self._plan.state(idle=self._idle, error=self._not_kept or self._not_read)

    def counters(self) -> dict[str, float]:
        """Return the counters since the start, by name."""
        return {"plan_sent": self._plan.sent, "plan_received": self._plan.received, "plan_saves": self.saves}


class _Looked:
    """A connection whose count is looked at after every frame."""

    def __init__(self, link: Sender, look: Callable[[], None]) -> None:
        self._link = link
        self._look = look

    async def send(self, frame: bytes) -> int:
        """Write a frame to the socket, look at the count, and return the frame's mark."""
        mark = await self._link.send(frame)
        self._look()
        return mark

    def has_left(self, mark: int) -> bool:
        """Tell whether the frame of this mark has left the socket's queue."""
        return self._link.has_left(mark)


def counters_of(interface: str) -> tuple[int, int] | None:
    """Return the bytes that a network interface has sent and received; None where there is none of that name."""
    try:
        lines = _INTERFACES.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, counts = line.rpartition(":")
        if name.strip() == interface:
            numbers = counts.split()
            return int(numbers[_SENT]), int(numbers[_RECEIVED])
    return None


def encode(account: Account) -> bytes:
    """Return an account as it is kept."""
    text = msgspec.json.encode(account)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def load(path: Path) -> Account:
    """Read the account that is kept in ``path``; one that is not there or damaged begins at 0, and that is said."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        log.info("data plan: there is no count in %s: it begins at 0", path)
        return Account()
    except OSError as error:
        log.error("data plan: the count is lost, it begins at 0: %s: %s", path, error.strerror)  # noqa: TRY400
        return Account()
    check, _, text = data.removesuffix(b"\n").partition(b" ")
    try:
        if int(check, 16) == zlib.crc32(text):
            return msgspec.json.decode(text, type=Account)
        reason = "its checksum is wrong"
    except ValueError as error:  # msgspec's errors are some, too
        reason = str(error)
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(OSError):
        path.replace(aside)
    log.error("data plan: the count is lost, it begins at 0: %s, put aside as %s", reason, aside)
    return Account()


def write(path: Path, data: bytes) -> None:
    """Replace a file so that a power cut leaves the old one or the new one. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
