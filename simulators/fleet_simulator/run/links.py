"""What is wrong with links, and who says so: several things can be wrong with one, and each ends by itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from fleet_simulator.link import Link
from fleet_simulator.network.profiles import Model

CUT = "cut"
BLACK_HOLE = "black-hole"
HALF_OPEN = "half-open"
NETWORK = "network"


class Links:
    """Relays by name. ``counts``: (what, link) → how often it was seen to happen, by the relay itself."""

    def __init__(self, links: Mapping[str, Link]) -> None:
        """``links``: started ones."""
        self.links = dict(links)
        self.counts: Counter[tuple[str, str]] = Counter()
        self._base = {name: link.network for name, link in links.items()}
        self._wrong: dict[str, dict[str, tuple[str, Model | None]]] = {name: {} for name in links}
        self._turn = {name: asyncio.Lock() for name in links}

    def state(self, name: str) -> str:
        """Return ``cut``, ``black-hole``, or empty where bytes pass."""
        link = self.links[name]
        return CUT if link.is_cut else BLACK_HOLE if link.is_holding else ""

    async def begin(self, name: str, key: str, what: str, network: Model | None = None) -> None:
        """Let ``what`` be wrong with a link until ``end`` is called with the same ``key``."""
        if what == HALF_OPEN:  # happens to connections, and has no end
            async with self._turn[name]:
                if self.links[name].half_open():
                    self.counts[what, name] += 1
            return
        self._wrong[name][key] = (what, network)
        await self._apply(name)
        seen = network is self.links[name].network if what == NETWORK else self.state(name) in {what, CUT}
        self.counts[what, name] += seen

    async def end(self, name: str, key: str) -> None:
        """Let it be right again, as far as that thing goes."""
        if self._wrong[name].pop(key, None) is not None:
            await self._apply(name)

    async def end_all(self) -> None:
        """Let every link be whole, with the network that it has by itself."""
        for name, wrong in self._wrong.items():
            if wrong:
                wrong.clear()
                await self._apply(name)

    async def _apply(self, name: str) -> None:
        async with self._turn[name]:
            wrong, link = list(self._wrong[name].values()), self.links[name]
            models = [model for what, model in wrong if what == NETWORK and model is not None]
            link.change(models[-1] if models else self._base[name])
            kinds = {what for what, _ in wrong}
            if CUT in kinds:
                if not link.is_cut:
                    await link.cut()
                return
            if link.is_cut or (link.is_holding and BLACK_HOLE not in kinds):
                await link.restore()
            if BLACK_HOLE in kinds:
                link.black_hole()
