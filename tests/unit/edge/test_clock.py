"""The agent's clock says how good its stamps are, and never better than it knows."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

from edge_agent.clock import CHECK_EVERY, Clock, boot_id, kernel_synced


class Timed(Clock):
    """A clock whose time, and whose kernel, the test turns."""

    now = 100.0
    good = False

    def __init__(self) -> None:
        super().__init__(lambda: self.good)

    def mono(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return int(self.now * 1000)


def test_stamps_count_as_synced_only_from_when_the_clock_was() -> None:
    clock = Timed()
    assert clock.quality(100_000, boot=True) == "unknown"
    clock.good = True
    assert clock.quality(100_000, boot=True) == "unknown"  # asked a moment ago
    clock.now += CHECK_EVERY
    assert clock.quality(100_000, boot=True) == "unknown"  # stamped before
    assert clock.quality(101_000, boot=True) == "synced"
    assert clock.quality(101_000, boot=False) == "unknown"
    clock.now, clock.good = clock.now + CHECK_EVERY, False
    assert clock.quality(101_000, boot=True) == "unknown"


def test_the_kernels_answer_is_adjtimex_own() -> None:
    # The same question through another door: adjtimex(2) fills 208 bytes; its state is the return value.
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(512)
    state = libc.adjtimex(buffer)
    status = int.from_bytes(buffer.raw[5 * ctypes.sizeof(ctypes.c_long) :][:4], sys.byteorder)
    assert kernel_synced() == (state < 5 and not status & 0x40)


def test_the_boot_id_is_the_kernels() -> None:
    assert boot_id() == subprocess.check_output(["cat", "/proc/sys/kernel/random/boot_id"], text=True).strip()
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == boot_id()
