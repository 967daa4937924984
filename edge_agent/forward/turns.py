"""Whose turn it is: the most urgent lane's, but for the shares that others are owed. Pure.

While a lane waits, each byte that another one sends owes it its share. As soon as it is owed as much as its frame has,
it is its turn, whoever else waits; what it sends then is paid back in full. So a lane gets its share of the link,
however much more urgent ones have to send, they wait for one frame of it at most, and what it sends when it is its turn
anyway costs it nothing. A lane without a share waits until no more urgent one has anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


class Turns:
    """``lanes``: the most urgent first. ``shares``: per cent of the link by lane, together 100 at most."""

    def __init__(self, lanes: Iterable[str], shares: Mapping[str, int]) -> None:
        self._lanes = tuple(lanes)
        self._shares = {lane: shares[lane] / 100 for lane in self._lanes if shares.get(lane)}
        self._owed = dict.fromkeys(self._shares, 0.0)

    def next(self, waiting: Mapping[str, int]) -> str:
        """Return which of the lanes that wait (at least one), with frames of so many bytes, sends next."""
        owed = [lane for lane, size in waiting.items() if lane in self._owed and self._owed[lane] >= size]
        if owed:
            return max(owed, key=self._owed.__getitem__)
        return next(lane for lane in self._lanes if lane in waiting)

    def sent(self, lane: str, size: int, waiting: Collection[str]) -> None:
        """``lane`` was handed ``size`` bytes of the link while those of ``waiting`` had something to send, too."""
        for other, share in self._shares.items():
            if other not in waiting:
                self._owed[other] = min(self._owed[other], 0.0)  # nobody saves up for later
            elif other != lane:
                self._owed[other] += share * size
        if lane in self._shares and any(other in waiting for other in self._lanes[: self._lanes.index(lane)]):
            self._owed[lane] -= (1 - self._shares[lane]) * size
