"""A deployment whose agent has no listener: it subscribes to a broker that is already there."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fleet_simulator.deployment import Deployment, Plan, Site
from fleet_simulator.devices import Broker
from fleet_simulator.link import Link
from fleet_simulator.processes import Process

GATEWAY = "gw"


class WithSource(Deployment):
    """One gateway, whose devices connect to ``broker``."""

    def __init__(self, directory: Path, broker: Broker, source: str) -> None:
        """``source``: more lines of ``[[source]]``."""
        super().__init__(directory, Plan(gateways=(GATEWAY,), forward={"linger_ms": 20}))
        self._broker = broker
        self._source = source

    async def subscribed(self) -> None:
        """Wait until the agent has its session at the broker."""
        async with asyncio.timeout(60):
            while (await self.sites[GATEWAY].snapshot())["sources"][0]["link"]["state"] != "online":  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def _site(self, name: str, link: Link) -> Site:
        site = super()._site(name, link)
        config = self.directory / f"{name}.toml"
        before, _, rest = config.read_text().partition("[[listener]]\n")
        uplink = rest[rest.index("[[uplink]]") :]
        url = f"mqtt://{self._broker.host}:{self._broker.port}"
        table = f'[[source]]\nname = "plant"\nurl = "{url}"\ntopics = ["vehicles/#"]\n{self._source}\n\n'
        config.write_text(f"{before}listener = []\n\n{table}{uplink}")
        site.broker = self._broker
        site.agent = Process(site.agent.name, site.agent.command, site.agent.output, ready="subscribing at ")
        return site
