"""From batches of the MQTT server to commits of the buffer: what goes up, whole; what stays; answers to commands."""

from __future__ import annotations

import pytest

from edge_agent.buffer.port import LOCAL, Chunk, CommandResult
from edge_agent.buffer.testing import MemoryBuffer
from edge_agent.intake import MAX_TOPICS, Forward, Intake
from edge_agent.lanes import CONTROL, Lane, complete
from tests.support.buffer import packet, payloads
from waybill.errors import Unavailable
from waybill.mqtt.resend import entries_of
from waybill.mqtt.state import Arrival, Batch, Publish, ResendFrozen, Retained, SessionOpened
from waybill.wire import CONTROL_LANE, TELEMETRY_LANE, Envelope


def arrival(*sent: tuple[str, bytes, int | None], client: str = "c", keep: int = 0) -> Arrival:
    """Return an arrival of (topic, payload, packet id; None for QoS 0)."""
    raw = b""
    publishes: list[Publish] = []
    for topic, payload, pid in sent:
        flags = 0 if pid is None else 2
        one = packet(payload, pid or 0, topic, flags)
        id_bytes = None if pid is None else pid.to_bytes(2, "big")
        publishes.append((topic.encode(), payload, flags, id_bytes, len(raw), len(raw) + len(one), b""))
        raw += one
    return Arrival(client, None, 4, 1000, 2000, raw, publishes, keep)


@pytest.fixture
def intake() -> Intake:
    return Intake(MemoryBuffer("g"))


def test_an_arrival_for_one_lane_is_handed_on_whole(intake: Intake) -> None:
    one = arrival(("a", b"1", 1), ("b", b"2", None), ("a", b"3", 2), keep=5)
    commit = intake.translate(Batch([one]))
    (chunk,) = commit.chunks
    assert chunk == Chunk(TELEMETRY_LANE, "c", 4, 1000, 2000, 5, 3, one.raw, 2)
    assert chunk.raw is one.raw
    assert (intake.counters.forwarded, intake.counters.local) == (3, 0)


def test_a_will_is_not_remembered(intake: Intake) -> None:
    (chunk,) = intake.translate(Batch([arrival(("a", b"will", 0))])).chunks
    assert (chunk.count, chunk.remembered) == (1, 0)


@pytest.mark.parametrize(
    ("topic", "lane"),
    [
        ("vehicles/V1/telemetry", TELEMETRY_LANE),
        ("cmd", LOCAL),
        ("cmd/V1/id/req", LOCAL),
        ("cmdx", TELEMETRY_LANE),
        ("$SYS/x", LOCAL),
        ("$waybill/receipt", LOCAL),
        ("/", TELEMETRY_LANE),
    ],
)
def test_by_default_everything_goes_up_but_commands_and_dollar_topics(intake: Intake, topic: str, lane: str) -> None:
    assert intake.lane_of(topic.encode()) == lane
    assert intake.lane_of(topic.encode()) == lane  # from memory


def test_what_goes_up_is_configured() -> None:
    intake = Intake(MemoryBuffer("g"), Forward(["a/#", "$x/#"], ["a/private/+"]))
    wanted = {b"a/1": TELEMETRY_LANE, b"a/private/1": LOCAL, b"a/private/1/2": TELEMETRY_LANE, b"b": LOCAL}
    assert {topic: intake.lane_of(topic) for topic in wanted} == wanted
    assert intake.lane_of(b"$x/1") == LOCAL  # never, whatever a filter says


def test_the_first_lane_that_matches_has_the_message() -> None:
    lanes = (Lane("alarms", filters=("a/alarm/#", "+/urgent")), Lane("telemetry"), Lane("bulk", filters=("a/#",)))
    intake = Intake(MemoryBuffer("g"), Forward(["a/#", "b/#"], ["a/bulk/private"], lanes))
    wanted = {
        b"a/alarm/1": "alarms", b"b/urgent": "alarms", b"a/x": "bulk", b"b/x": TELEMETRY_LANE,
        b"a/bulk/private": LOCAL, b"c/urgent": LOCAL,
    }  # fmt: skip
    assert {topic: intake.lane_of(topic) for topic in wanted} == wanted
    run = arrival(("a/alarm/1", b"1", 1), ("a/x", b"2", 2), ("a/y", b"3", None), ("b/x", b"4", 3))
    cut = intake.translate(Batch([run])).chunks
    assert [(chunk.lane, chunk.count, chunk.keep) for chunk in cut] == [
        ("alarms", 1, 0), ("bulk", 2, 1), (TELEMETRY_LANE, 1, 2),
    ]  # fmt: skip


def test_a_lane_that_is_not_configured_any_more_is_still_sent() -> None:
    mine = Lane("alarms", 1, filters=("a/#",))
    assert complete([mine], ["old", CONTROL_LANE, "alarms"]) == (CONTROL, mine, Lane(TELEMETRY_LANE), Lane("old"))
    assert complete([Lane(TELEMETRY_LANE, 3)]) == (CONTROL, Lane(TELEMETRY_LANE, 3))


def test_the_memory_of_topics_is_bounded(intake: Intake) -> None:
    for number in range(MAX_TOPICS + 10):
        intake.lane_of(b"%d" % number)
    assert len(intake._lanes) <= MAX_TOPICS
    assert intake.lane_of(b"1") == TELEMETRY_LANE


def test_o3_a_mixed_arrival_is_cut_and_counts_on(intake: Intake) -> None:
    mixed = arrival(("a", b"1", 1), ("a", b"2", 2), ("cmd/x", b"3", 3), ("cmd/x", b"4", None), ("a", b"5", 5), keep=7)
    commit = intake.translate(Batch([mixed]))
    first, stays, last = commit.chunks
    assert (first.lane, first.keep, first.count, first.remembered) == (TELEMETRY_LANE, 7, 2, 2)
    assert (stays.lane, stays.keep, stays.count, stays.remembered) == (LOCAL, 9, 1, 1)
    assert (last.lane, last.keep, last.count, last.remembered) == (TELEMETRY_LANE, 10, 1, 1)
    assert [entry for chunk in commit.chunks for entry in entries_of(chunk.raw)] == entries_of(mixed.raw)
    assert (intake.counters.forwarded, intake.counters.local) == (3, 2)


def test_o3_the_place_of_a_frozen_memory_is_counted_in_chunks(intake: Intake) -> None:
    mixed = arrival(("a", b"1", 1), ("cmd/x", b"2", 2))
    frozen = [ResendFrozen("c", (), at) for at in range(3)]
    commit = intake.translate(Batch([mixed, arrival(("a", b"3", 3))], [SessionOpened("c", 4), *frozen]))
    assert len(commit.chunks) == 3
    assert commit.changes[0] == SessionOpened("c", 4)
    assert [change.at for change in commit.changes[1:] if isinstance(change, ResendFrozen)] == [0, 2, 3]


def test_c2_answers_to_commands_are_recognized(intake: Intake) -> None:
    batch = Batch(
        [
            arrival(
                ("cmd/V1/id-1/res", b"ok", 1),
                ("cmd/V1/id-1/req", b"not an answer", None),
                ("cmd/V1/id/1/res", b"too deep", None),
                ("cmd//res", b"too short", None),
                ("vehicles/V1/id/res", b"elsewhere", None),
            )
        ]
    )
    assert intake.translate(batch).results == [CommandResult("id-1", "V1", b"ok", 1000)]


async def test_c2_an_answer_and_its_publish_are_one_commit() -> None:
    buffer = MemoryBuffer("g")
    intake = Intake(buffer)
    await buffer.receive(Envelope("id-1", "command", "V1", "x", b"", 10_000), 0)
    await intake.commit(Batch([arrival(("cmd/V1/id-1/res", b"ok", 1))], [Retained(b"t", 0, b"r")]))
    assert await buffer.outbox(1) == []
    assert await payloads(buffer) == []
    state = await intake.restore()
    assert dict(state.retained) == {b"t": Retained(b"t", 0, b"r")}
    assert len(state.memories["c"]) == 1


async def test_b1_a_commit_that_the_buffer_did_not_make_is_an_error() -> None:
    buffer = MemoryBuffer("g")
    await buffer.close()
    with pytest.raises(Unavailable):
        await Intake(buffer).commit(Batch([arrival(("a", b"1", 1))]))
