"""The agent on a gateway whose clock is wrong by CLOCK_OFFSET seconds."""

import os
import sys
import time
from pathlib import Path

# Only the wall clock: intervals are measured with the monotonic one, which no wrong date touches.
_OFFSET = int(os.environ["CLOCK_OFFSET"])
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _OFFSET
time.time_ns = lambda: _time_ns() + _OFFSET * 1_000_000_000

from edge_agent import app, config  # noqa: E402 - after the clock, which modules may take by name

sys.exit(app.run(config.load(Path(sys.argv[sys.argv.index("--config") + 1]))))
