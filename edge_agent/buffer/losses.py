"""Losses that are declared and not said yet. Pure.

What is evicted, dropped or has expired is declared in the transaction that loses it, as a row of the table ``losses``.
A row is a receipt in the making: a neighbour with the same reason makes it longer. So an overflow that lasts for days
is few rows, and few receipts on the control lane, however many messages it costs.
"""

from __future__ import annotations

from typing import Final

import msgspec

from waybill.wire import Receipt

MAX_LOSSES: Final = 1000
"""Rows after which they are said, however much the control lane holds."""

MAX_UNSAID: Final = 64
"""Messages that may wait on the control lane when losses are said; with more they are left to grow."""

Key = tuple[int, str, int]
"""Epoch, lane and first seq of a loss."""

Losses = dict[Key, Receipt]


def declare(losses: Losses, loss: Receipt) -> tuple[Key, Receipt]:
    """Return the row that says ``loss``: one of ``losses`` made longer, or a new one."""
    for key, known in reversed(losses.items()):
        if (
            known.epoch == loss.epoch
            and known.lane == loss.lane
            and known.reason == loss.reason
            and known.last + 1 == loss.first
        ):
            longer = msgspec.structs.replace(
                known, last=loss.last, count=known.count + loss.count, bytes=known.bytes + loss.bytes
            )
            return key, longer
    return (loss.epoch, loss.lane, loss.first), loss


def due(losses: Losses, waiting: int) -> bool:
    """Tell whether the losses are to be said now. ``waiting``: messages that wait on the control lane."""
    return bool(losses) and (waiting < MAX_UNSAID or len(losses) >= MAX_LOSSES)
