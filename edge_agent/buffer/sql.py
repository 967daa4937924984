"""The statements of ``queries.sql`` by name, the schema, and what leads to it from older ones."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

SCHEMA_VERSION: Final = 2

_HERE = files("edge_agent.buffer")


def _named(text: str) -> dict[str, str]:
    """Cut ``-- name: x`` sections out of ``text``; comment lines are dropped."""
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    names, bodies = parts[1::2], parts[2::2]
    return {
        name: "\n".join(line for line in body.splitlines() if line and not line.startswith("--"))
        for name, body in zip(names, bodies, strict=True)
    }


SCHEMA: Final = (_HERE / "schema.sql").read_text(encoding="utf-8")
SQL: Final = _named((_HERE / "queries.sql").read_text(encoding="utf-8"))
MIGRATIONS: Final = _named((_HERE / "migrations.sql").read_text(encoding="utf-8"))
