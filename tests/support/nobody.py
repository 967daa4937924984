"""To be a user who may do nothing here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be that user meanwhile, where this process is root's."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)
