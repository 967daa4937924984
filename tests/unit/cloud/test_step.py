"""The router's step: records, dead letters, the control lane, planning that is cut off anywhere (R5, R6, R8, C1)."""

import msgspec
import pytest

from cloud_ingest.config import Route
from cloud_ingest.journal.port import JournalRecord, OutRecord, TopicRecord
from cloud_ingest.router import commands as module
from cloud_ingest.router.commands import ANSWER_MS, Commands
from cloud_ingest.router.dictionaries import Dictionaries
from cloud_ingest.router.entry import Key, Offsets
from cloud_ingest.router.ledger import Ledger
from cloud_ingest.router.routes import Routes
from cloud_ingest.router.state import Limits
from tests.support.gateway import BASE_MS, TOPICS, Bench, Epoch, control, expected, header, receipt, values
from waybill.fleet_state import Health
from waybill.frames import encode_plain, in_columns, read_header
from waybill.frames.header import COLUMNS, MAX_EPOCH
from waybill.health import pack, unpack
from waybill.wire import HEALTH_TOPIC, CommandStatus, Receipt

ONE = Epoch(1, oldest=1)
TWO_ROUTES = Routes([Route(topic="a", filter="a/#"), Route(topic="b", filter="b/+")])


def test_a_message_is_a_record_with_key_value_and_cloudevents_headers() -> None:
    bench = Bench()
    bench.now += 5_000
    (record,) = bench.feed(ONE.frame(1, 1, payloads=[b'{"speed": 3}']))
    assert record == OutRecord(
        "fleet.telemetry",
        b"V7",
        b'{"speed": 3}',
        [
            ("ce_specversion", b"1.0"),
            ("ce_id", b"gw/1/telemetry/1"),
            ("ce_source", b"/gateways/gw/devices/V7"),
            ("ce_type", b"waybill.message"),
            ("ce_time", b"2026-09-21T14:13:20.001Z"),
            ("content-type", b"application/json"),
            ("mqtt_topic", b"vehicles/V7/telemetry"),
            ("mqtt_qos", b"1"),
            ("mqtt_retained", b"false"),
            ("waybill_journaled", b"%d" % (BASE_MS + 5_000)),
            ("waybill_clock", b"synced"),
        ],
    )


@pytest.mark.parametrize(
    ("payload", "kind"),
    [(b"[1]", b"application/json"), (b"", b"application/octet-stream"), (b"\x00{", b"application/octet-stream")],
)
def test_the_content_type_is_told_by_the_first_byte(payload: bytes, kind: bytes) -> None:
    (record,) = Bench().feed(ONE.frame(1, 1, payloads=[payload]))
    assert header(record, "content-type") == kind


def test_r6_the_devices_time_is_a_header_and_a_wild_one_stops_nobody() -> None:
    """A record has no field for a timestamp of its own: the log stamps it when it is written."""
    assert "stamp" not in " ".join(OutRecord._fields)
    for base, text in [
        (-(2**62), b"0001-01-01T00:00:00"),
        (2**62, b"9999-12-31T23:59:59"),
        (-1, b"1969-12-31T23:59:59.999Z"),
    ]:
        wild = encode_plain(
            epoch=1,
            prev_epoch=0,
            prev_last=0,
            oldest_epoch=1,
            lane="telemetry",
            order="fifo",
            durability="every-commit",
            clock="unknown",
            first=1,
            base_ms=base,
            sources=[("vehicles/V7/x", "c")],
            rows=[(0, 0, 0, b"x", b"")],
        )
        (record,) = Bench().feed(wild)
        assert header(record, "ce_time").startswith(text)
        assert header(record, "waybill_clock") == b"unknown"


def test_messages_without_a_route_are_dead_letters_and_the_rest_of_the_frame_is_not() -> None:
    bench = Bench(routes=TWO_ROUTES)
    records = bench.feed(ONE.frame(1, 6, topics=["a/1", "c/1", "b/1"]))
    assert [(r.topic, r.value) for r in records] == [
        ("waybill.dlq", b"1:1"),
        ("b", b"1:2"),
        ("a", b"1:3"),
        ("waybill.dlq", b"1:4"),
        ("b", b"1:5"),
        ("a", b"1:6"),
    ]
    assert header(records[0], "waybill_error") == b"no route"
    assert header(records[0], "ce_id") == b"gw/1/telemetry/1"
    entry = bench.state.ledger.entries[Key("gw", 1, "telemetry")]
    assert (list(entry.dead), entry.delivered_count, list(entry.covered)) == ([(1, 1), (4, 4)], 4, [(1, 6)])


def test_a_frame_in_columns_becomes_the_records_that_the_plain_frame_becomes() -> None:
    topics, payloads = ["a/1", "a/2", "other"], [b'{"n":%d,"v":%.2f}' % (n, n / 7) for n in range(500)]
    plain = ONE.frame(1, 500, topics=topics, payloads=payloads)
    columns = in_columns(plain)
    assert read_header(columns).codec == COLUMNS
    assert Bench().feed(columns) == Bench().feed(plain)


def test_a_step_ends_by_what_a_frame_is_put_together_to_not_by_what_it_came_as() -> None:
    bench = Bench(limits=Limits(step_bytes=10_000))
    for first in (1, 501):
        frame = in_columns(ONE.frame(first, first + 499, payloads=[b'{"n":%d}' % n for n in range(500)]))
        assert read_header(frame).raw_size < 2_000
        bench.journal.append(JournalRecord(0, len(bench.journal), bench.now, "gw", frame))
    made = bench.plan()
    assert made is not None
    assert made.consumed == 1


def test_r5_a_frame_that_does_not_decode_marks_its_seqs_dead_lettered_and_holds_nobody_up() -> None:
    bench = Bench()
    good = ONE.frame(1, 3)
    bad = bytearray(good)
    bad[3] = 77  # a body of an unknown codec, under a checksum that matches
    (letter,) = bench.feed(bytes(bad))
    assert (letter.topic, letter.key, letter.value) == ("waybill.dlq", b"gw", bytes(bad))
    assert header(letter, "waybill_error") == b"frame: body codec 77 is not known to this program"
    assert header(letter, "waybill_span") == b"gw/1/telemetry/1-3"
    assert list(bench.state.ledger.entries[Key("gw", 1, "telemetry")].dead) == [(1, 3)]
    assert bench.feed(bytes(bad)) == []
    assert values(bench.feed(ONE.frame(4, 4))) == expected(1, 4, 4)


def test_r5_a_frame_without_a_readable_header_is_a_dead_letter_once_even_if_it_is_read_again() -> None:
    bench = Bench()
    bench.feed(ONE.frame(2, 2))  # held, so that the committed offset stays before the next one
    (letter,) = bench.feed(b"nonsense")
    assert (letter.topic, letter.value) == ("waybill.dlq", b"nonsense")
    assert header(letter, "waybill_frame") == b"0/1"
    bench.restart()
    assert bench.step() == []
    bench.feed(ONE.frame(1, 1))
    assert bench.state.ledger.offsets == Offsets()


def test_r5_a_refused_topics_part_goes_to_its_dead_letters_and_the_rest_passes() -> None:
    bench = Bench(routes=TWO_ROUTES)
    bench.state.refused["a"] = "a: unknown topic"
    records = bench.feed(ONE.frame(1, 4, topics=["a/1", "b/1"]))
    assert [(r.topic, r.value) for r in records] == [("b", b"1:1"), ("a.dlq", b"1:2"), ("b", b"1:3"), ("a.dlq", b"1:4")]
    assert header(records[1], "waybill_error_topic") == b"a"


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_r5_cut_off_after_any_number_of_messages_the_rest_is_planned_again(limit: int) -> None:
    frames = [ONE.frame(4, 6), ONE.frame(1, 5), control(5, 1, receipt(ONE, 7, 8)), ONE.frame(9, 12), ONE.frame(1, 12)]
    whole = Bench()
    whole.feed(*frames)
    cut = Bench()
    for frame in frames:
        cut.journal.append(JournalRecord(0, len(cut.journal), cut.now, "gw", frame))
    cut.step(limit=limit)
    assert cut.written == whole.written
    assert {key: value for key, value in cut.ledger.items() if value} == whole.ledger
    assert cut.state.counters == whole.state.counters
    assert cut.state.committed == whole.state.committed == len(frames)


def test_r5_what_is_condemned_becomes_dead_letters_of_its_topic() -> None:
    bench = Bench()
    bench.journal.append(JournalRecord(0, 0, bench.now, "gw", ONE.frame(1, 2)))
    plan = bench.plan(limit=1, condemned="too large")
    assert plan is not None
    (letter,) = plan.step.records
    assert (letter.topic, letter.value, header(letter, "waybill_error")) == (
        "fleet.telemetry.dlq",
        b"1:1",
        b"too large",
    )
    assert (plan.consumed, plan.messages, plan.more, plan.step.next_offset) == (0, 1, True, 0)


def test_r8_lost_frames_are_a_declared_loss_in_the_ledger() -> None:
    bench = Bench()
    bench.state.resume(Ledger(), Dictionaries(), 17, 5)
    bench.step()
    assert list(Offsets.decode(bench.ledger[b"#0"]).lost) == [(13, 17)]
    assert bench.state.committed == 17


def test_a_step_ends_with_the_frame_that_reaches_its_bounds() -> None:
    bench = Bench(limits=Limits(step_messages=5))
    for first in (1, 4, 7):
        bench.journal.append(JournalRecord(0, len(bench.journal), bench.now, "gw", ONE.frame(first, first + 2)))
    plan = bench.plan()
    assert plan is not None
    assert (plan.consumed, plan.messages, plan.more) == (2, 6, True)


# --- the control lane ---


def status(state: str, name: str = "c-1", gateway: str = "gw") -> CommandStatus:
    return msgspec.convert({"id": name, "gateway": gateway, "device": "V7", "state": state, "at_ms": 5}, CommandStatus)


def states(records: list[OutRecord]) -> list[tuple[str, str]]:
    found = [
        msgspec.json.decode(r.value or b"", type=CommandStatus) for r in records if r.topic == TOPICS.command_status
    ]
    return [(each.id, each.state) for each in found]


def command(name: str = "c-1", expires_ms: int = BASE_MS + 60_000, gateway: str = "gw") -> TopicRecord:
    value = {"id": name, "gateway": gateway, "device": "V7", "name": "unlock", "expires_at": expires_ms}
    return TopicRecord(TOPICS.commands, 0, 0, BASE_MS, gateway.encode(), msgspec.json.encode(value), ())


def test_c1_states_are_written_once_each_and_keyed_by_the_command() -> None:
    bench = Bench()
    records = bench.feed(control(5, 1, status("delivered"), status("delivered"), status("done"), status("done")))
    assert states(records) == [("c-1", "delivered"), ("c-1", "done")]
    assert {record.key for record in records} == {b"c-1"}
    assert states(bench.feed(control(5, 5, status("delivered")))) == []


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (("$waybill/unheard", b"{}"), b"unknown topic in the control lane"),
        (("$waybill/receipt", b"{}"), b"missing required field `epoch`"),
        (("$waybill/receipt", b"\xff"), b"malformed"),
        (("$waybill/receipt", b'{"lane":"\xff"}'), b"'utf-8' codec can't decode"),
        (("$waybill/receipt", b'{"x":' + b"[" * 100_000), b"recursion"),
        (("$waybill/command-status", b'{"id":"\xff"}'), b"'utf-8' codec can't decode"),
        (receipt(Epoch(1), 5, 4), b"a receipt whose numbers do not agree"),
        (
            ("$waybill/receipt", msgspec.json.encode(receipt(ONE, 1, 4)).replace(b'"telemetry"', b'"a/\\u001b"')),
            b"numbers do not",
        ),
        (receipt(Epoch(1, prev=1, prev_last=4), 1, 4), b"a receipt whose numbers do not agree"),
        (
            msgspec.structs.replace(receipt(ONE, 1, 4), bytes=MAX_EPOCH + 1),
            b"a receipt whose numbers do not agree",
        ),
        (status("delivered", gateway="another"), b"the state of a command of gateway 'another', sent by 'gw'"),
        (status("expired"), b"the state 'expired' is not a gateway's to report"),
    ],
)
def test_control_messages_that_cannot_be_become_dead_letters(
    message: Receipt | CommandStatus | tuple[str, bytes], error: bytes
) -> None:
    bench = Bench()
    (letter,) = bench.feed(control(5, 1, message))
    assert letter.topic == "waybill.dlq"
    assert error in header(letter, "waybill_error")
    assert list(bench.state.ledger.entries[Key("gw", 5, "control")].dead) == [(1, 1)]


def test_the_control_topics_mean_nothing_in_other_lanes() -> None:
    frame = ONE.frame(1, 1, topics=["$waybill/receipt"], payloads=[msgspec.json.encode(receipt(ONE, 1, 9))])
    (letter,) = Bench().feed(frame)
    assert header(letter, "waybill_error") == b"no route"


def test_c1_a_gateway_reports_no_state_of_another_gateways_command() -> None:
    bench = Bench()
    bench.commands.learn(command(gateway="another"), TOPICS.commands)
    (letter,) = bench.feed(control(5, 1, status("done")))
    assert header(letter, "waybill_error") == b"the command is of another gateway"


def test_c1_a_command_expires_at_its_time_once() -> None:
    bench = Bench()
    bench.commands.learn(command(), TOPICS.commands)
    bench.now += 59_999
    assert bench.step(at_end=True) == []
    bench.now += 1
    assert states(bench.step(at_end=True)) == [("c-1", "expired")]
    assert bench.step(at_end=True) == []


def test_c1_expiry_goes_by_the_partitions_time_so_that_no_delivered_in_the_journal_is_overtaken() -> None:
    bench = Bench()
    bench.commands.learn(command(), TOPICS.commands)
    bench.journal.append(JournalRecord(0, 0, bench.now, "gw", control(5, 1, status("delivered"))))
    bench.now += 70_000
    assert states(bench.step(at_end=True)) == [("c-1", "delivered")]


def test_c1_a_command_does_not_expire_while_reports_of_its_gateway_are_held() -> None:
    bench = Bench()
    bench.commands.learn(command(expires_ms=BASE_MS + 1), TOPICS.commands)
    bench.feed(control(5, 2, status("delivered")))
    bench.now += 5_000
    assert bench.step(at_end=True) == []
    assert states(bench.feed(control(5, 1, status("delivered", "c-0")), at_end=True)) == [
        ("c-0", "delivered"),
        ("c-1", "delivered"),
    ]


def test_c1_a_delivered_command_waits_for_the_answer_a_while_longer() -> None:
    bench = Bench()
    bench.commands.learn(command(), TOPICS.commands)
    bench.feed(control(5, 1, status("delivered")))
    bench.now += 60_000 + ANSWER_MS - 1
    assert bench.step(at_end=True) == []
    bench.now += 1
    (record,) = bench.step(at_end=True)
    assert b"did not answer" in (record.value or b"")


def test_c1_the_first_terminal_state_wins_and_what_comes_later_is_a_dead_letter() -> None:
    bench = Bench()
    bench.commands.learn(command(), TOPICS.commands)
    bench.now += 60_000
    bench.step(at_end=True)
    (letter,) = bench.feed(control(5, 1, status("delivered")))
    assert letter.topic == "waybill.dlq"
    assert header(letter, "waybill_error") == b"the command's state is expired already"


def test_c1_states_survive_a_restart_through_their_topic() -> None:
    bench = Bench()
    bench.commands.learn(command(), TOPICS.commands)
    bench.now += 60_000
    (written,) = bench.step(at_end=True)
    again = Commands(lambda _: True)
    again.learn(command(), TOPICS.commands)
    again.learn(TopicRecord(written.topic, 0, 0, 0, written.key, written.value, ()), TOPICS.commands)
    assert again.due(bench.now + 10**9, 10, lambda _: False) == []
    assert len(again) == 0


def test_c1_a_malformed_command_is_rejected_once_and_its_id_is_taken() -> None:
    bench = Bench()
    broken = TopicRecord(TOPICS.commands, 0, 0, BASE_MS, b"gw", b'{"id": "c-1", "gateway": "gw"}', ())
    bench.commands.learn(broken, TOPICS.commands)
    assert states(bench.step()) == [("c-1", "rejected")]
    bench.commands.learn(command(), TOPICS.commands)
    bench.now += 60_000
    assert bench.step(at_end=True) == []


def test_c1_a_state_read_before_its_command_counts_as_well() -> None:
    commands = Commands(lambda _: True)
    value = msgspec.json.encode(status("delivered"))
    commands.learn(TopicRecord(TOPICS.command_status, 0, 0, 0, b"c-1", value, ()), TOPICS.commands)
    commands.learn(command(), TOPICS.commands)
    assert commands.due(BASE_MS + 60_000, 10, lambda _: False) == []
    (expired,) = commands.due(BASE_MS + 60_000 + ANSWER_MS, 10, lambda _: False)
    assert expired.reason == "delivered, but its device did not answer"


def test_c1_the_first_record_of_an_id_wins() -> None:
    bench = Bench()
    bench.commands.learn(command(), TOPICS.commands)
    bench.commands.learn(command(expires_ms=BASE_MS + 1), TOPICS.commands)
    bench.now += 30_000
    assert bench.step(at_end=True) == []


def test_c1_what_is_watched_for_expiry_is_bounded_and_read_again_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN", 4)
    commands = Commands(lambda _: True)
    for n in range(6):
        commands.learn(command(f"c-{n}"), TOPICS.commands)
    assert (len(commands), commands.stale) == (4, False)
    for n in range(2):
        commands.note(status("done", f"c-{n}"))
    assert (len(commands), commands.stale) == (2, True)


def test_c1_only_the_owner_of_the_gateways_partition_writes() -> None:
    commands = Commands(lambda gateway: gateway == "gw")
    commands.learn(command("c-2", gateway="another"), TOPICS.commands)
    assert len(commands) == 0


def test_what_a_gateway_says_of_itself_is_a_record_of_the_health_topic() -> None:
    bench = Bench()
    said = Health(at_ms=BASE_MS, version="0.1.0", connected=3)
    (record,) = bench.feed(control(1, 1, (HEALTH_TOPIC, pack(said))))
    assert (record.topic, record.key) == ("waybill.health", b"gw")
    assert msgspec.json.decode(record.value or b"", type=Health) == unpack(pack(said))


@pytest.mark.parametrize(("gateway", "payload"), [("gw", b"\x91"), ("node:1", pack(Health(at_ms=1)))])
def test_a_malformed_health_record_and_one_of_a_node_are_dead_letters(gateway: str, payload: bytes) -> None:
    bench = Bench()
    (record,) = bench.feed(control(1, 1, (HEALTH_TOPIC, payload)), gateway=gateway)
    assert (record.topic, record.value) == ("waybill.dlq", payload)


def test_a_health_topic_that_is_refused_costs_nobody_anything() -> None:
    bench = Bench()
    bench.state.refused["waybill.health"] = "not allowed"
    assert bench.feed(control(1, 1, (HEALTH_TOPIC, pack(Health(at_ms=1))))) == []
    assert bench.state.ledger.entries[Key("gw", 1, "control")].delivered_count == 1
