"""Time at a gateway: which stamps are right, which can be made right, and what time it is at least.

Gateways often have no battery clock: after a boot the wall clock is wrong until the network sets it. A stamp is wall
time and CLOCK_MONOTONIC of one boot. Within a boot the two differ by a constant. So once the kernel calls the wall
clock disciplined (adjtimex(2), STA_UNSYNC), every stamp of that boot can be put right, whenever it was made::

    kernel says synced ──▶ offset of this boot = wall − monotonic ──▶ right time of a stamp = its monotonic + offset

The offsets are kept in a small file beside the buffer, with a time that has surely passed (the *floor*). A wall clock
below the floor is wrong: until it is set, time counts on from the floor, and TLS is told so.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edge_agent.buffer.port import Stored
from waybill.frames import Clock as Quality

log = logging.getLogger(__name__)

FILE: Final = "clock.json"
"""Name of the file within the data directory."""

STA_UNSYNC: Final = 0x40
TIME_ERROR: Final = 5

CHECK_EVERY: Final = 1.0
"""Seconds for which an answer of the kernel holds, unless the wall clock has jumped."""

TOLERANCE_MS: Final = 1000
"""By how much a stamp may differ from what its boot's offset says and count as right."""

SAVE_EVERY_MS: Final = {True: 3_600_000, False: 600_000}
"""How often the floor is saved, with a wall clock that is synced and with one that is not: milliseconds."""

MAX_BOOTS: Final = 256
"""Boots whose offsets are kept; stamps of older ones are ``unknown``."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SINCE_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class _Timex(ctypes.Structure):
    """The first fields of struct timex (linux/timex.h), and room for the rest of it (208 bytes at most)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def kernel_synced() -> bool:
    """Tell whether the kernel calls the wall clock synchronised; False where it does not say."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return False
    timex = _Timex()  # modes 0: only reads
    state = adjtimex(ctypes.byref(timex))
    return 0 <= state < TIME_ERROR and not timex.status & STA_UNSYNC


def boot_id() -> str:
    """Return the id of this boot, or an empty string where there is none (monotonic stamps compare within one)."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


class Offset(msgspec.Struct, frozen=True):
    """What is known of one boot's wall clock. Milliseconds.

    ``since_boot``, ``monotonic``: right time minus CLOCK_BOOTTIME, and minus CLOCK_MONOTONIC. They differ by the time
    that the machine was suspended: a stamp from before it lies between the two.
    ``until``: the CLOCK_MONOTONIC at which the wall clock ceased to be synced; None while it is.
    ``good``: False where it was never synced and this only counts on from the floor.
    """

    since_boot: int
    monotonic: int
    until: int | None = None
    good: bool = True


class Saved(msgspec.Struct, frozen=True):
    """The file. ``floor_ms``: a time that has surely passed. ``boots``: by boot id, the newest last."""

    floor_ms: int = 0
    boots: dict[str, Offset] = {}


class Clock:
    """The agent's clock. :meth:`look` is to be called about once a second."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        boot: str | None = None,
        synced: Callable[[], bool] | None = None,
        built_ms: int | None = None,
    ) -> None:
        """Read what an earlier start saved in ``directory`` (None: keep nothing).

        Instead of what this machine says: ``boot`` (:func:`boot_id`), ``synced`` (:func:`kernel_synced`), ``built_ms``:
        a time before which this program cannot run (that of this file).
        """
        self.boot = boot_id() if boot is None else boot
        self._path = directory / FILE if directory is not None else None
        self._synced = synced or kernel_synced
        saved = _read(self._path) if self._path is not None else Saved()
        self._boots = dict(saved.boots)
        built_ms = _modified_ms(Path(__file__)) if built_ms is None else built_ms
        self._floor_ms, self._floor_at = max(saved.floor_ms, built_ms), self._since_boot_ms()
        self._saved_ms = saved.floor_ms
        self._asked = float("-inf")
        self._good_mono: int | None = None  # when the kernel last said synced
        self._changed = False
        self.synced = False
        """Whether the kernel called the wall clock synchronised at the last look."""
        self.look()
        if self.boot not in self._boots and self.is_behind():
            now = self.at_least_ms()
            self._set(Offset(now - self._since_boot_ms(), now - self._mono_ms(), good=False))
            log.warning(
                "the clock is wrong: it says %s, and that has passed; times count on from %s until it is set",
                _say(self.wall_ms()),
                _say(now),
            )
        self._base = max(self.wall_ms(), self.at_least_ms()) - self._since_boot_ms()

    # --- what time it is ---

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC, as the wall clock has them."""
        return time.time_ns() // 1_000_000

    def mono(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def processor(self) -> float:
        """Seconds that this thread has had of a processor: what its work costs, however busy the machine is."""
        return time.thread_time()

    def since_boot(self) -> float:
        """Seconds since the boot, those in which the machine was suspended too."""
        return time.clock_gettime(_SINCE_BOOT)

    def at_least_ms(self) -> int:
        """Return a time that has surely passed, milliseconds since 1970 UTC."""
        now = self._since_boot_ms()
        known = self._boots.get(self.boot)
        return max(self._floor_ms + now - self._floor_at, now + known.since_boot if known is not None else 0)

    def is_behind(self) -> bool:
        """Tell whether the wall clock says what has surely passed, so that dates cannot be compared with it."""
        return not self.synced and self.wall_ms() < self.at_least_ms() - TOLERANCE_MS

    def floor_ms(self) -> int | None:
        """Return :meth:`at_least_ms` where the wall clock :meth:`is_behind`, else None: what TLS asks."""
        return self.at_least_ms() if self.is_behind() else None

    @property
    def trouble(self) -> str:
        """Why times are ``unknown`` at present, or an empty string."""
        if self.synced:
            return ""
        if self.is_behind():
            return f"wrong: it says {_say(self.wall_ms())}; times count on from {_say(self.at_least_ms())}"
        return "no NTP client vouches for it: times are told as unknown"

    def now_ms(self) -> int:
        """Return the time by which things expire, milliseconds since 1970 UTC.

        While the wall clock is synced, that; else this boot's last good time counted on; where it was never synced,
        the time of the agent's start counted on. A clock that jumps while nobody vouches for it lets nothing expire.
        """
        self.look()
        if self.synced:
            return self.wall_ms()
        known = self._boots.get(self.boot)
        return self._since_boot_ms() + (known.since_boot if known is not None and known.good else self._base)

    # --- stamps ---

    def age_ms(self, wall_ms: int, mono_ns: int, boot: str) -> int | None:
        """Return how long ago a stamp was made, milliseconds; None where that is not known.

        ``boot``: the boot that it is of. Within this boot it is known whatever the wall clock says.
        """
        if boot and boot == self.boot:
            return max(0, self._mono_ms() - mono_ns // 1_000_000)
        made_ms, quality = self.right(wall_ms, mono_ns, boot)
        now = self._boots.get(self.boot)
        if quality == "unknown" or now is None or not now.good:
            return None
        return max(0, self.now_ms() - made_ms)

    def right(self, wall_ms: int, mono_ns: int, boot: str) -> tuple[int, Quality]:
        """Return the right time of a stamp of ``boot``, as far as it is known, and of which quality that is."""
        known = self._boots.get(boot)
        if known is None:
            return wall_ms, "unknown"
        mono_ms = mono_ns // 1_000_000
        earliest, latest = mono_ms + known.since_boot, mono_ms + known.monotonic
        if not known.good:
            return max(wall_ms, earliest), "unknown"
        vouched = known.until is None or mono_ms <= known.until
        if earliest - TOLERANCE_MS <= wall_ms <= latest + TOLERANCE_MS:
            return wall_ms, "synced" if vouched else "unknown"
        certain = vouched and latest - earliest <= TOLERANCE_MS
        return min(max(wall_ms, earliest), latest), "corrected" if certain else "unknown"

    def stamped(self, messages: Sequence[Stored], boot: str) -> tuple[Sequence[Stored], Quality]:
        """Return messages of ``boot`` with their right times, and the worst quality among them: what a frame says."""
        self.look()
        rights: dict[int, int] = {}
        found: set[Quality] = set()
        moved = False
        for mono_ns, wall_ms in {message.mono_ns: message.wall_ms for message in messages}.items():
            rights[mono_ns], quality = self.right(wall_ms, mono_ns, boot)
            found.add(quality)
            moved = moved or rights[mono_ns] != wall_ms
        if moved:
            messages = [msgspec.structs.replace(each, wall_ms=rights[each.mono_ns]) for each in messages]
        return messages, "unknown" if "unknown" in found else "corrected" if "corrected" in found else "synced"

    # --- looking at the clock, and keeping what was seen ---

    def look(self) -> None:
        """Ask the kernel, if its last answer is old or the wall clock has jumped."""
        now = self.mono()
        known = self._boots.get(self.boot)
        monotonic = self.wall_ms() - self._mono_ms()
        jumped = known is not None and known.good and abs(monotonic - known.monotonic) > TOLERANCE_MS
        if now - self._asked < CHECK_EVERY and not jumped:
            return
        self._asked = now
        self.synced = self._synced()
        if self.synced:
            self._good_mono = self._mono_ms()
            self._floor_ms, self._floor_at = self.wall_ms(), self._since_boot_ms()
            if known is None or not known.good or known.until is not None or jumped:
                self._set(Offset(self.wall_ms() - self._since_boot_ms(), monotonic))
        elif known is not None and known.good and known.until is None:
            # An agent that has not seen it synced itself knows no later moment than its own start.
            until = self._good_mono if self._good_mono is not None else self._mono_ms()
            self._set(msgspec.structs.replace(known, until=until))

    @property
    def is_unsaved(self) -> bool:
        """Whether :meth:`save` has something to write."""
        floor = self.wall_ms() if self.synced else self.at_least_ms()
        return self._changed or abs(floor - self._saved_ms) >= SAVE_EVERY_MS[self.synced]

    def save(self) -> None:
        """Write the file. Where it cannot be written that is logged: what it holds makes times better, no more."""
        if self._path is None:
            return
        floor = self.wall_ms() if self.synced else self.at_least_ms()
        self._changed, self._saved_ms = False, floor
        try:
            _write(self._path, msgspec.json.encode(Saved(floor, self._boots)))
        except OSError as error:
            log.warning("%s: the time cannot be saved: %s", self._path, error.strerror)

    def _set(self, offset: Offset) -> None:
        self._boots.pop(self.boot, None)
        if not self.boot:  # nothing tells its stamps from those of other boots
            return
        self._boots[self.boot] = offset
        for old in list(self._boots)[:-MAX_BOOTS]:
            del self._boots[old]
        self._changed = True

    @property
    def boots(self) -> Mapping[str, Offset]:
        """What is known of each boot."""
        return self._boots

    def _mono_ms(self) -> int:
        return int(self.mono() * 1000)

    def _since_boot_ms(self) -> int:
        return int(self.since_boot() * 1000)


def _read(path: Path) -> Saved:
    """Return what was saved; nothing where there is no file, or one that cannot be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Saved)
    except FileNotFoundError:
        return Saved()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("%s cannot be used: %s; times of earlier boots are told as unknown", path, error)
        return Saved()


def _write(path: Path, data: bytes) -> None:
    """Replace a file so that after a power cut there is the old one or the new one."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _modified_ms(path: Path) -> int:
    """Return when a file was last written, 0 where that is not known."""
    with contextlib.suppress(OSError):
        return int(path.stat().st_mtime * 1000)
    return 0


def _say(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ms // 1000))
