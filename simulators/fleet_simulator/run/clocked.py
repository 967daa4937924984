"""An agent whose wall clock can be set: ``python -m fleet_simulator.run.clocked --config FILE``.

The file that WAYBILL_CLOCK in the environment names holds two numbers, 8 bytes each: by how many seconds its clock is
off, written by whoever runs this; and the offset with which it was last read, written here, which proves that somebody
looked at the clock. Only the wall clock: intervals are measured with the monotonic one, which no wrong date touches.
The kernel's and OpenSSL's clocks are right.
"""

from __future__ import annotations

import mmap
import os
import runpy
import struct
import sys
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "WAYBILL_CLOCK"
_BOTH: Final = struct.Struct("<dd")
_ONE: Final = struct.Struct("<d")


def make(path: Path) -> None:
    """Make a clock that is right."""
    path.write_bytes(_BOTH.pack(0.0, 0.0))


def put(path: Path, offset: float) -> None:
    """Set a clock; it is off by ``offset`` seconds from now on."""
    with path.open("r+b") as file:
        file.write(_ONE.pack(offset))


def seen(path: Path) -> float:
    """Return the offset with which the clock was last read."""
    last: float = _BOTH.unpack(path.read_bytes())[1]
    return last


def _main() -> None:
    with Path(os.environ[VARIABLE]).open("r+b") as file:
        both = mmap.mmap(file.fileno(), _BOTH.size)
    real, real_ns = time.time, time.time_ns

    def offset() -> float:
        both[8:16] = both[0:8]
        found: float = _ONE.unpack_from(both)[0]
        return found

    # Before anything else is imported, which may take the functions by name.
    time.time = lambda: real() + offset()
    time.time_ns = lambda: real_ns() + int(offset()) * 1_000_000_000
    sys.argv = ["edge_agent", sys.argv[-1]]
    runpy.run_module("edge_agent", run_name="__main__", alter_sys=True)  # what ``waybill edge run`` turns into


if __name__ == "__main__":
    _main()
