"""Mutated packets of every type and version harm nobody: `make fuzz`, and a seeded short form.

Whatever comes: no exception gets out, a well-behaved client's messages go on arriving in order and once, what the
broker says is well formed, what it stores is what it knows, and when all are gone nothing is left of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.corpus import Corpus, cut, mutate
from tests.fuzz.reachable import reachable
from tests.fuzz.rounds import SMALL, Round
from tests.integration.mqtt.conftest import Raw, Site, Start
from tests.unit.mqtt import rig, v5
from waybill.mqtt.settings import Settings

PACKETS = int(os.environ.get("WAYBILL_FUZZ", "20000"))
SEED = int(os.environ.get("WAYBILL_SEED", "1"))
A_ROUND = 1_000
BY_SOCKET = max(1, PACKETS // 20)
ATTACKERS = 8


def repeat(seed: int, packets: int) -> str:
    return f"again: make fuzz SEED={seed} COUNT={packets}"


def rss() -> int:
    """Resident memory of this process, KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_mutated_packets_without_sockets() -> None:
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    warm = 0
    rounds = range(SEED, SEED + max(1, PACKETS // A_ROUND))
    for seed in rounds:
        try:
            outcomes += Round(seed, A_ROUND).run()
        except BaseException as error:
            error.add_note(repeat(seed, A_ROUND))
            raise
        if seed == rounds[len(rounds) // 4]:
            gc.collect()
            warm = rss()
    gc.collect()
    taken = time.monotonic() - began
    total = outcomes.total()
    print(f"\n{total:,} mutated packets from seed {SEED}, {total / taken:,.0f}/s; memory {warm:,} → {rss():,} KiB")
    for outcome, count in outcomes.most_common():
        print(f"{count:12,}  {outcome}")
    assert total == len(rounds) * A_ROUND
    assert outcomes["taken"] > total // 10  # else the mutator tests the first check alone
    assert rss() <= warm * 1.1 + 4_096


class Talker:
    """A well-behaved client over a socket: hears its own messages at QoS 1, in order and once."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.said = 0

    async def talk(self) -> None:
        """Publish once at QoS 1 and once at QoS 2, and take all that comes of it."""
        for qos in (1, 2):
            self.said += 1
            pid = self.said % 60_000 + 1
            text = b"%d" % self.said
            await self.raw.send(rig.publish("own/x", text, qos, pid))
            await self.raw.expect(rig.ack(0x40 if qos == 1 else 0x50, pid))
            head = await self.raw.reader.readexactly(2)
            body = await self.raw.reader.readexactly(head[1])
            assert (head[0], body[7 + 2 :]) == (0x32, text), (head, body)
            await self.raw.send(rig.puback(int.from_bytes(body[7:9], "big")))
            if qos == 2:
                await self.raw.send(rig.pubrel(pid))
                await self.raw.expect(rig.pubcomp(pid))


class Attacker:
    """Connects again and again, sends mutated packets in pieces, reads or not, and goes with FIN or RST."""

    def __init__(self, site: Site, seed: int, count: int) -> None:
        self.site = site
        self.chance = Random(seed)
        self.left = count

    async def run(self) -> None:
        while self.left > 0:
            await self._connection()

    async def _connection(self) -> None:
        chance = self.chance
        raw = Raw(*await asyncio.open_connection(self.site.host, self.site.port))
        corpus = Corpus(chance, chance.choice((3, 4, 5)))
        stream = corpus.connect()
        for _ in range(chance.randint(1, 12)):
            packet = corpus.packet()
            if chance.random() < 0.6:
                self.left -= 1
                packet = mutate(chance, packet, corpus.packet())
            stream += packet
        try:
            for piece in cut(chance, stream):
                await raw.send(piece)
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
            if chance.random() < 0.5:
                raw.writer.write_eof()
                await raw.reader.read(100_000)
        except OSError:
            pass  # the server closed first
        finally:
            if chance.random() < 0.5 and not raw.writer.is_closing():
                raw.reset()
            else:
                raw.close()


@pytest.mark.parametrize("settings", [None, SMALL], ids=["default", "small"])
async def test_mutated_packets_by_socket(start: Start, settings: Settings | None) -> None:
    site = await start(settings)
    talker = Talker(await site.device("well-behaved"))
    await talker.raw.send(rig.subscribe(("own/+", 1)))
    await talker.raw.expect(rig.suback(1))
    await talker.talk()
    site.forget()
    before, tasks = reachable(site.server.broker), len(asyncio.all_tasks())
    attackers = [Attacker(site, SEED + n, BY_SOCKET // 2 // ATTACKERS) for n in range(ATTACKERS)]
    work = [asyncio.create_task(each.run()) for each in attackers]
    try:
        async with asyncio.timeout(600):
            while not all(each.done() for each in work):
                await talker.talk()
            await asyncio.gather(*work)
    except BaseException as error:
        error.add_note(repeat(SEED, PACKETS))
        raise
    await site.until(lambda: site.server.counters.connections == 1)
    await clean(site)
    await talker.talk()
    site.forget()
    after = reachable(site.server.broker)
    assert after == before, after - before
    assert len(asyncio.all_tasks()) == tasks
    print(f"\n{BY_SOCKET // 2:,} by socket, {talker.said} well-behaved messages in between; {site.server.counters}")


async def clean(site: Site) -> None:
    """End every session that is left, and clear what is retained."""
    server = site.server
    while True:
        names = [each for each in server.broker.sessions if each != "well-behaved"]
        if not names and not server.broker._delayed:
            break
        for name in names:
            raw = await site.raw(v5.connect(name))
            await raw.reader.readexactly(4)
            await raw.send(rig.DISCONNECT)
            await raw.expect_end()
    for topic in list(site.sink._retained):
        await server.publish(topic.decode(), b"", 0, retain=True)
    await site.until(lambda: server.counters.connections == 1)
