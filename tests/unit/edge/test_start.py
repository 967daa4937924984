"""What an agent loads before it serves: its start-up time and its memory are made of that."""

from __future__ import annotations

import subprocess
import sys

NOT_NEEDED = {"aiokafka", "amqtt", "cryptography", "paho", "typer", "textual", "uvloop", "cloud_ingest"}
"""Command line, X.509, what only an uplink or another part needs."""


def test_an_agent_without_an_uplink_loads_what_it_needs_and_no_more() -> None:
    code = "import sys, edge_agent.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"edge_agent", "msgspec", "aiosqlite"} <= loaded
    assert loaded & NOT_NEEDED == set()
