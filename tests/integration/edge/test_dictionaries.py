"""R10: an agent trains on what it sends, hands the dictionary to the cloud, uses it then, and over restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.config import ForwardSettings
from edge_agent.forward import dictionaries, training
from tests.integration.edge.agents import Running, publish, running
from tests.integration.edge.peer import Cloud, journal_it, listening, refuse_it, until, url
from waybill.frames import FrameHeader
from waybill.wire import CONTROL_LANE, Ack

SMALL = ForwardSettings(linger_ms=0, frame_messages=3, body="plain")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "FEWEST", 20)
    monkeypatch.setattr(training, "LOOK", 0.02)


def said() -> Iterator[bytes]:
    """Give payloads without end."""
    n = 0
    while True:
        n += 1
        yield b'{"ts":%d,"vin":"WVWZZZ1JZ00000001","speed":%.2f,"door":"closed"}' % (1_790_000_000_000 + n, n / 7)


def used(cloud: Cloud) -> set[int]:
    return {header.dictionary for header in cloud.headers} - {0}


async def until_known(agent: Running, payloads: Iterator[bytes], sent: list[bytes]) -> None:
    """Publish until the cloud has a dictionary."""
    known = agent.agent._forwarder.dictionaries
    async with asyncio.timeout(60):
        while not known.counters.known:
            sent += (part := [next(payloads) for _ in range(10)])
            await publish(agent.port, part)


async def test_r10_it_is_in_the_journal_before_the_first_frame_that_needs_it_and_again_after_a_restart(
    tmp_path: Path,
) -> None:
    payloads, sent = said(), list[bytes]()
    async with listening(Cloud()) as cloud:
        async with running(tmp_path, url(cloud.address), SMALL) as agent:
            await until_known(agent, payloads, sent)
            sent += (part := [next(payloads) for _ in range(20)])
            await publish(agent.port, part)
            await until(lambda: agent.waiting() == 0 and (tmp_path / training.FILE).exists())
            assert agent.agent.status().counters["dictionaries_used"] > 0
        (first,) = used(cloud)
        before = len(cloud.headers)
        async with running(tmp_path, url(cloud.address), SMALL) as agent:
            await until_known(agent, payloads, sent)
            sent += (part := [next(payloads) for _ in range(20)])
            await publish(agent.port, part)
            await until(lambda: agent.waiting() == 0)
        assert used(cloud) == {first}
        headers = cloud.headers[before:]
        brought = next(at for at, header in enumerate(headers) if header.lane == CONTROL_LANE)
        assert not any(header.dictionary for header in headers[:brought]), "the cloud may be another by now"
        assert not any(header.dictionary for header in cloud.headers if header.lane == CONTROL_LANE)
    assert len(cloud.by_seq("control")) == 2, "once a start"
    assert sorted(cloud.by_seq("telemetry").values()) == sorted(sent)


async def test_r10_u4_a_cloud_that_refuses_dictionaries_gets_frames_without(tmp_path: Path) -> None:
    def judge(header: FrameHeader) -> Ack:
        return refuse_it(header, "dictionary?") if header.dictionary else journal_it(header)

    payloads, sent = said(), list[bytes]()
    async with listening(Cloud(judge)) as cloud, running(tmp_path, url(cloud.address), SMALL) as agent:
        await until_known(agent, payloads, sent)
        for _ in range(5):
            sent += (part := [next(payloads) for _ in range(10)])
            await publish(agent.port, part)
            await until(lambda: agent.waiting() == 0)
        assert agent.agent.status().counters["forwarder_given_up"] == 0
        assert agent.agent.status().counters["forwarder_recut"] == len([h for h in cloud.headers if h.dictionary]) > 0
    assert sorted(cloud.by_seq("telemetry").values()) == sorted(sent)


async def test_r10_while_the_cloud_has_not_journaled_it_none_is_used(tmp_path: Path) -> None:
    def judge(header: FrameHeader) -> Ack | None:
        return None if header.lane == CONTROL_LANE else journal_it(header)

    payloads = said()
    async with listening(Cloud(judge)) as cloud, running(tmp_path, url(cloud.address), SMALL) as agent:
        async with asyncio.timeout(60):
            while not any(header.lane == CONTROL_LANE for header in cloud.headers):
                await publish(agent.port, [next(payloads) for _ in range(10)])
        await publish(agent.port, [next(payloads) for _ in range(30)])
        await until(lambda: agent.waiting() == 0)
    assert used(cloud) == set()


@pytest.mark.parametrize("content", [b"", b"spoilt", bytes(100_000)], ids=len)
async def test_a_spoilt_file_is_said_and_another_is_trained(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.joinpath(training.FILE).write_bytes(content)
    async with listening(Cloud()) as cloud, running(tmp_path, url(cloud.address), SMALL) as agent:
        await until_known(agent, said(), [])
        await until(lambda: tmp_path.joinpath(training.FILE).read_bytes() != content)
    assert "another will be trained" in caplog.text


async def test_without_dictionaries_nothing_is_trained(tmp_path: Path) -> None:
    off = ForwardSettings(linger_ms=0, frame_messages=3, dictionaries=False)
    payloads = said()
    async with listening(Cloud()) as cloud, running(tmp_path, url(cloud.address), off) as agent:
        for _ in range(20):
            await publish(agent.port, [next(payloads) for _ in range(10)])
        await until(lambda: agent.waiting() == 0)
        assert agent.agent.status().counters["dictionaries_trained"] == 0
    assert used(cloud) == set()
