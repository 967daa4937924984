"""C3 at the gateway: devices that come and go are told on the control lane, in order, also over a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_agent.clock import Clock
from edge_agent.presence import WAITING, Presence
from tests.integration.edge.agents import running
from tests.integration.edge.conftest import ACCEPTED, Dial
from tests.unit.mqtt import rig
from waybill.errors import Unavailable
from waybill.wire import PRESENCE_TOPIC, DevicePresence


async def test_c3_devices_that_come_and_go_are_told(tmp_path: Path, dial: Dial) -> None:
    async with running(tmp_path / "data", None, presence=True) as agent:
        raw = await dial(agent.port, rig.connect("V7"))
        await raw.expect(ACCEPTED)
        await raw.send(rig.DISCONNECT)
        await raw.expect_end()
        other = await dial(agent.port, rig.connect("V8"))
        await other.expect(ACCEPTED)
    async with running(tmp_path / "data", None) as agent:
        buffer = agent.agent._buffer
        lease = await buffer.lease("control", None, 100, 1 << 20)
        assert lease is not None
        said = [msgspec.json.decode(each.payload, type=DevicePresence) for each in lease.messages]
        assert {each.topic for each in lease.messages} == {PRESENCE_TOPIC}
    assert [(each.device, each.state, each.reason) for each in said] == [
        ("V7", "online", ""),
        ("V7", "offline", ""),
        ("V8", "online", ""),
        ("V8", "offline", "the server shuts down"),
    ]


async def test_what_the_buffer_does_not_take_waits_and_is_bounded() -> None:
    taken: list[object] = []

    async def commit(batch: object) -> None:
        if len(taken) < 1:
            taken.append(batch)
            raise Unavailable("closed")
        taken.append(batch)

    presence = Presence(commit, Clock())
    for n in range(WAITING + 5):
        presence.came(f"V{n}")
    try:
        await presence.flush()
    except Unavailable:
        await presence.flush()
    assert (presence.counters.told, presence.counters.left_out) == (WAITING, 5)
