"""Time at a gateway: wall and monotonic clocks, the boot they belong to, and whether the wall clock is to be believed.

Gateways often have no battery clock: after a boot the wall clock is wrong until the network sets it. The kernel says
whether it is disciplined (adjtimex(2), STA_UNSYNC). A stamp counts as synced only if it was made after this agent first
saw that; about older ones it says ``unknown``.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from waybill.frames import Clock as Quality

STA_UNSYNC: Final = 0x40
TIME_ERROR: Final = 5
CHECK_EVERY: Final = 1.0
"""Seconds for which an answer of the kernel holds."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


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


class Clock:
    """The agent's clock. ``synced`` is asked at most once a second."""

    def __init__(self, synced: Callable[[], bool] = kernel_synced) -> None:
        self._synced = synced
        self._asked = float("-inf")
        self._good_since: int | None = None
        self._check()

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return time.time_ns() // 1_000_000

    def mono(self) -> float:
        """Seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def quality(self, oldest_ms: int, *, boot: bool) -> Quality:
        """Return the quality of stamps of which the oldest is ``oldest_ms``; ``boot``: all are of the current boot."""
        self._check()
        return "synced" if boot and self._good_since is not None and oldest_ms >= self._good_since else "unknown"

    def _check(self) -> None:
        now = self.mono()
        if now - self._asked < CHECK_EVERY:
            return
        self._asked = now
        if not self._synced():
            self._good_since = None
        elif self._good_since is None:
            self._good_since = self.wall_ms()
