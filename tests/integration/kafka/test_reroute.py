"""Journal frames once more, by other rules, into another topic, beside the live router (R9)."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from cloud_ingest import config, reroute
from cloud_ingest.audit import audit
from cloud_ingest.config import Route, Topics
from cloud_ingest.journal.kafka import KafkaLog
from cloud_ingest.journal.kafka_growth import Count, counts
from cloud_ingest.reroute import Rerouting
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.worker import Router
from fleet_simulator.processes import waybill
from tests.support.gateway import Epoch, control, trained
from tests.support.kafka_log import OpenLog
from tests.support.logs import read_to_end
from waybill.errors import ConfigError
from waybill.wire import DICTIONARY_TOPIC

EPOCH = Epoch(1, oldest=1)


@contextlib.asynccontextmanager
async def _routing(log: KafkaLog, unique: str) -> AsyncIterator[None]:
    router = Router(log, Topics(prefix=f"{unique}.", partitions=2), Routes([Route(topic=f"{unique}.fleet")]))
    task = asyncio.create_task(log.own_partitions(router.route))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _configuration(path: Path, kafka: str, unique: str, more: str = "") -> config.Settings:
    """Return the configuration of ``unique`` with new rules: another key, and messages of ``b`` are another's."""
    path.write_text(
        f'deployment = "{unique}"\ndata = "d"\n[listener]\naddress = "127.0.0.1:1"\n[topics]\npartitions = 2\n'
        f'prefix = "{unique}."\n[log]\nkind = "kafka"\n"bootstrap.servers" = "{kafka}"\n{more}\n'
        f'[[route]]\nfilter = "b/#"\ntopic = "{unique}.other"\n'
        f'[[route]]\nname = "by-gateway"\ntopic = "{unique}.fleet"\nkey = "{{gateway}}"\n'
    )
    return config.read(path)


def _started(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def _ids(log: KafkaLog, topic: str) -> list[str]:
    return [dict(record.headers)["ce_id"].decode() for record in await read_to_end(log, [topic])]


async def _routed(log: KafkaLog, topic: str, count: int) -> None:
    async with asyncio.timeout(300):
        while len(await read_to_end(log, [topic])) < count:  # noqa: ASYNC110 - it asks the log
            await asyncio.sleep(0.1)


async def test_r9_frames_are_routed_again_by_the_rules_of_now_and_the_live_router_does_not_notice(
    open_log: OpenLog, kafka: str, unique: str, tmp_path: Path
) -> None:
    log, known = await open_log(), trained()
    settings = _configuration(tmp_path / "cloud.toml", kafka, unique)
    await log.append_frame("gw-1", EPOCH.frame(1, 10))
    (early,) = await read_to_end(log, [f"{unique}.waybill.frames"])
    async with asyncio.timeout(180):
        while time.time_ns() // 1_000_000 <= early.stamp_ms:  # noqa: ASYNC110 - it is a clock
            await asyncio.sleep(0.001)
    late = early.stamp_ms + 1
    await log.append_frame("gw-2", control(9, 1, (DICTIONARY_TOPIC, known.content)))
    await log.append_frame("gw-2", EPOCH.frame(1, 6, dictionary=known))
    await log.append_frame("gw-2", EPOCH.frame(7, 8, topics=["b/x", "a/x"]))
    await log.append_frame("gw-1", EPOCH.frame(1, 10))  # a copy
    again, later = f"{unique}.again", f"{unique}.later"
    async with _routing(log, unique):
        await _routed(log, f"{unique}.fleet", 18)
        before = {record.key: record.value for record in await read_to_end(log, [f"{unique}.waybill.ledger"])}
        job = Rerouting(settings, "by-gateway", again, -1)  # before 1970: from the journal's beginning
        await job.run()
        assert (job.records, job.dead, job.unreadable, job.was_done) == (17, 0, 0, False)
        await log.append_frame("gw-1", EPOCH.frame(11, 12))
        await _routed(log, f"{unique}.fleet", 20)
        repeated = Rerouting(settings, "by-gateway", again, 0)
        await repeated.run()
        assert (repeated.records, repeated.was_done) == (0, True)
        part = Rerouting(settings, "by-gateway", later, late)
        await part.run()
    found = await read_to_end(log, [again])
    assert {record.key for record in found} == {b"gw-1", b"gw-2"}
    ids = [dict(record.headers)["ce_id"].decode() for record in found]
    assert [name for name in ids if name[:4] == "gw-1"] == [f"gw-1/1/telemetry/{seq}" for seq in range(1, 11)]
    mine = [seq for seq in range(1, 9) if seq != 8]
    assert [name for name in ids if name[:4] == "gw-2"] == [f"gw-2/1/telemetry/{seq}" for seq in mine]
    # what was journaled later: all of gw-2, and of gw-1 the copy, which is the first that this job sees
    assert len(await _ids(log, later)) == 7 + 10 + 2
    for nobodys in (f"{unique}.waybill.dlq", f"{unique}.other"):  # what other routes would write is left out
        assert await read_to_end(log, [nobodys]) == []
    assert len(await _ids(log, f"{unique}.fleet")) == 20
    report = await audit(log, Topics(prefix=f"{unique}.", partitions=2))
    assert (report.missing, sum(lane.delivered for lane in report.lanes)) == (0, 21)
    ledger = {record.key: record.value for record in await read_to_end(log, [f"{unique}.waybill.ledger"])}
    jobs = {key: value for key, value in ledger.items() if (key or b"").startswith(b"#reroute/") and value is not None}
    assert {key.rpartition(b"/")[2] for key in jobs if key} == {b"done"}
    assert before.keys() <= ledger.keys()


async def test_r9_a_job_that_is_killed_goes_on_and_writes_each_message_once(
    open_log: OpenLog, kafka: str, unique: str, tmp_path: Path
) -> None:
    log = await open_log()
    _configuration(tmp_path / "cloud.toml", kafka, unique)
    for number in range(40):
        for gateway in ("gw-1", "gw-2", "gw-3"):
            await log.append_frame(gateway, EPOCH.frame(number * 1000 + 1, number * 1000 + 1000))
    again = f"{unique}.again"
    command = waybill(
        *("cloud", "reroute", "--config", str(tmp_path / "cloud.toml"), "--from", "2020-01-01"),
        *("--route", "by-gateway", "--to", again),
    )
    said = ""
    for kill in (True, True, False):
        with _started(command) as job:
            try:
                grown = await _ends(log, again)
                async with asyncio.timeout(300):
                    while job.poll() is None and not (kill and await _ends(log, again) > grown):  # noqa: ASYNC110 - a process
                        await asyncio.sleep(0.01)
            finally:
                job.kill()
            said = job.stdout.read() if job.stdout else ""
    assert "records written to" in said
    found = await _ids(log, again)
    for gateway in ("gw-1", "gw-2", "gw-3"):
        mine = [name for name in found if name.startswith(gateway)]
        assert mine == [f"{gateway}/1/telemetry/{seq}" for seq in range(1, 40_001)]


async def _ends(log: KafkaLog, topic: str) -> int:
    """Return how far the topic has grown, with what is not committed."""
    assert log._admin is not None
    if topic not in await log._admin.list_topics():
        return 0
    return sum([(await log.bounds(TopicPartition(topic, number)))[1] for number in range(2)])


@pytest.mark.parametrize(
    ("name", "to", "more", "text"),
    [
        ("nobody", "again", "", "there are: {unique}.other, by-gateway"),
        ("by-gateway", "{unique}.other", "", "writes to that topic itself"),
        ("by-gateway", "{unique}.waybill.ledger", "", "writes to that topic itself"),
        ("by-gateway", "a b", "", "use 1 to 245 letters"),
        ("by-gateway", "again", 'delivery = "at-least-once"', "needs transactions"),
    ],
)
def test_what_cannot_be_rerouted_is_said(tmp_path: Path, unique: str, name: str, to: str, more: str, text: str) -> None:
    settings = _configuration(tmp_path / "cloud.toml", "127.0.0.1:9", unique, more)
    with pytest.raises(ConfigError) as error:
        Rerouting(settings, name, to.format(unique=unique), 0)
    assert text.format(unique=unique) in str(error.value)


async def test_a_time_that_is_still_to_come_ends_no_job_before_it_began(tmp_path: Path, unique: str) -> None:
    _configuration(tmp_path / "cloud.toml", "127.0.0.1:9", unique)
    command = waybill(
        *("cloud", "reroute", "--config", str(tmp_path / "cloud.toml"), "--from", "2999-01-01"),
        *("--route", "by-gateway", "--to", "again"),
    )
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 2
    assert "--from 2999-01-01: that is still to come" in done.stderr


async def test_r9_a_job_under_which_partitions_were_added_says_what_to_do(
    open_log: OpenLog,
    foreign: AIOKafkaProducer,
    kafka: str,
    unique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, tool = await open_log(**{"metadata.max.age.ms": 500}), await open_log()
    settings = _configuration(tmp_path / "cloud.toml", kafka, unique)
    for number in range(12):
        await log.append_frame(f"gw-{number}", EPOCH.frame(1, 5))
    await foreign.begin_transaction()  # while it is open, the job cannot end with partition 0, which it takes first
    await foreign.send_and_wait(f"{unique}.waybill.frames", EPOCH.frame(6, 6), key=b"gw-0", partition=0)
    monkeypatch.setattr(reroute, "AT_ONCE", 1)
    job = Rerouting(settings, "by-gateway", f"{unique}.again", 0)
    running = asyncio.create_task(job.run())
    async with asyncio.timeout(180):
        while not job.records:  # noqa: ASYNC110 - it counts
            await asyncio.sleep(0.1)
        async with _routing(log, unique):
            growing = asyncio.create_task(tool.grow(4, lambda _: None))
            while (await counts(tool)).get(1, Count(0)).partitions < 4:  # noqa: ASYNC110 - it asks the log
                await asyncio.sleep(0.1)
            early = Rerouting(settings, "by-gateway", f"{unique}.early", 0)
            with pytest.raises(ConfigError, match="run this again when waybill cloud partitions has ended"):
                await early.run()
            await foreign.abort_transaction()
            with pytest.raises(ConfigError, match=r"were given more partitions while this ran.* run it again with"):
                await running
            await growing
