"""The agent on a gateway whose clock is wrong.

The file CLOCK holds by how many seconds, and whether its kernel calls it synchronised: ``OFFSET yes|no``. It may be
replaced at any time, which sets the clock.
"""

import os
import sys
import time
from pathlib import Path

# Only the wall clock: intervals are measured with the monotonic one, which no wrong date touches.
_file = Path(os.environ["CLOCK"])
_time, _time_ns = time.time, time.time_ns


def _offset() -> int:
    return int(_file.read_text().split()[0])


time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + _offset() * 1_000_000_000

from edge_agent import app, clock, config  # noqa: E402 - after the clock, which modules may take by name

clock.kernel_synced = lambda: _file.read_text().split()[1] == "yes"
sys.exit(app.run(config.load(Path(sys.argv[sys.argv.index("--config") + 1]))))
