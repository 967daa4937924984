"""Space goes back to the file system while the agent runs, in slices between commits.

SQLite keeps the pages that deletions free, for what comes next. After a long outage these are gigabytes; the file is
made with ``auto_vacuum = INCREMENTAL`` so that they can leave a few at a time. Some stay: a file that grew again at the
next message would only wear the flash.
"""

from __future__ import annotations

import sqlite3
from typing import Final

KEEP: Final = 16 << 20
"""Free bytes in the file at which the work begins; half of them stay."""

SLICE: Final = 256
"""Pages that leave in one transaction: some milliseconds, which a commit that comes then has to wait."""


def is_due(db: sqlite3.Connection) -> bool:
    """Tell whether the file has more free pages than it should keep."""
    return _free(db) > KEEP


def give_back(db: sqlite3.Connection) -> bool:
    """Return one slice of free pages to the file system, with the next checkpoint; False where enough have gone."""
    page = db.execute("PRAGMA page_size").fetchone()[0]
    excess = (_free(db) - KEEP // 2) // page
    if excess > 0:
        # executescript, because a step of this statement is one page, and execute takes just one
        db.executescript(f"PRAGMA incremental_vacuum({min(SLICE, excess)})")
    return bool(excess > SLICE)


def _free(db: sqlite3.Connection) -> int:
    page, count = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "freelist_count"))
    return int(page * count)
