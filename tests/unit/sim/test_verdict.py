"""The verdict turns FAIL when one record is removed, doubled, swapped or misplaced."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from fleet_simulator.ledger import digest
from fleet_simulator.verdict import Comparison, Verdict


@dataclass(frozen=True)
class Record:
    vehicle: str
    seq: int
    number: int
    partition: int = 0
    key: str | None = None

    def into(self, comparison: Comparison) -> None:
        key = self.vehicle if self.key is None else self.key
        ce_id = f"gw/7/telemetry/{self.number}"
        comparison.read(self.vehicle, "telemetry", self.seq, key=key, place=("t", self.partition), ce_id=ce_id)


TOPIC = [Record(f"V{n % 3}", n // 3 + 1, n + 1, partition=n % 3) for n in range(30)]


def judge(records: list[Record], acked: list[tuple[str, int]] | None = None) -> Verdict:
    comparison = Comparison()
    for record in TOPIC:
        comparison.published(record.vehicle, "telemetry", record.seq, record.seq)
    for vehicle, seq in [(r.vehicle, r.seq) for r in TOPIC] if acked is None else acked:
        comparison.acked(vehicle, "telemetry", seq, seq)
    for record in records:
        record.into(comparison)
    return comparison.verdict()


def test_everything_once_and_in_order_passes() -> None:
    verdict = judge(TOPIC)
    assert verdict.passed
    assert verdict.line() == "verdict: PASS delivered=30 lost=0 duplicated=0 out_of_order=0"
    assert verdict.line("ok") == "verdict: PASS delivered=30 lost=0 duplicated=0 out_of_order=0 command=ok"
    assert verdict.examples == ()


@pytest.mark.parametrize("known", [True, False])
def test_content_that_was_changed_or_changed_places_is_not_what_was_published(*, known: bool) -> None:
    comparison = Comparison()
    for record in TOPIC:
        comparison.acked(record.vehicle, "telemetry", record.seq, record.seq)
        if known:
            said = digest(f"{record.vehicle} {record.seq}".encode())
            comparison.content(record.vehicle, "telemetry", record.seq, said)
    for record in TOPIC:
        about = {3: 6, 6: 3}.get(record.number, record.number)  # two of V2 with the content of each other
        said = digest(f"{record.vehicle} {(about - 1) // 3 + 1}".encode())
        ce_id, place = f"gw/7/telemetry/{record.number}", ("t", record.partition)
        comparison.read(
            record.vehicle, "telemetry", record.seq, key=record.vehicle, place=place, ce_id=ce_id, content=said
        )
    verdict = comparison.verdict()
    assert verdict.passed is not known
    if known:
        assert (verdict.unknown, verdict.lost) == (2, 2)
        assert verdict.findings["unknown"][0] == (
            "V2 telemetry seq 1 (ce_id gw/7/telemetry/3, t partition 2): its content is not what was published"
        )


@pytest.mark.parametrize("at", [0, 14, 29])
def test_one_record_removed(at: int) -> None:
    verdict = judge(TOPIC[:at] + TOPIC[at + 1 :])
    assert verdict.line() == "verdict: FAIL delivered=29 lost=1 duplicated=0 out_of_order=0"
    assert verdict.examples == (f"lost: {TOPIC[at].vehicle} telemetry seq {TOPIC[at].seq}",)


def test_a_whole_vehicle_removed() -> None:
    verdict = judge([r for r in TOPIC if r.vehicle != "V1"])
    assert verdict.lost == 10
    assert verdict.examples == ("lost: V1 telemetry seq 1 to 10",)


@pytest.mark.parametrize("number", [11, 99], ids=["the same ce_id", "another ce_id"])
def test_one_record_doubled(number: int) -> None:
    verdict = judge([*TOPIC, replace(TOPIC[10], number=number)])
    assert verdict.line() == "verdict: FAIL delivered=30 lost=0 duplicated=1 out_of_order=0"
    assert ("the same ce_id" in verdict.examples[0]) is (number == 11)


def test_two_records_of_a_vehicle_swapped() -> None:
    swapped = list(TOPIC)
    swapped[3], swapped[6] = swapped[6], swapped[3]
    verdict = judge(swapped)
    assert verdict.line() == "verdict: FAIL delivered=30 lost=0 duplicated=0 out_of_order=1"


def test_records_of_two_vehicles_swapped_are_no_matter() -> None:
    swapped = list(TOPIC)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    assert judge(swapped).passed


def test_a_gateways_lane_is_in_order_within_a_partition() -> None:
    together = [replace(r, partition=0) for r in TOPIC]
    assert judge(together).passed
    together[3], together[4] = together[4], together[3]
    verdict = judge(together)
    assert (verdict.out_of_order, verdict.passed) == (1, False)
    assert verdict.examples[0].endswith("after number 5 of its lane")


def test_a_lane_without_order_has_none_to_check() -> None:
    comparison = Comparison(unordered=["telemetry"])
    for record in TOPIC:
        comparison.acked(record.vehicle, "telemetry", record.seq, record.seq)
    for record in reversed(TOPIC):
        record.into(comparison)
    assert comparison.verdict().passed


def test_another_broker_has_no_ids_and_no_keys() -> None:
    comparison = Comparison(waybill=False)
    comparison.acked("V1", "telemetry", 1, 3)
    for seq in (1, 2, 3):
        comparison.read("V1", "telemetry", seq, key=None, place=("t", 0), ce_id="")
    assert comparison.verdict().passed
    comparison.read("V1", "telemetry", 2, key=None, place=("t", 0), ce_id="")
    assert comparison.verdict().findings == {"duplicated": ("V1 telemetry seq 2 (t partition 0)",)}


def test_a_record_that_nobody_published() -> None:
    verdict = judge([*TOPIC, Record("V0", 11, 31), Record("V9", 1, 32), Record("V0", 1 << 60, 33)])
    assert (verdict.unknown, verdict.passed, verdict.delivered) == (3, False, 30)


def test_a_number_that_nobody_counts_to_costs_no_memory() -> None:
    verdict = judge([replace(r, number=r.number << 40) for r in TOPIC])
    assert verdict.passed  # strange, and each once


def test_a_copy_far_behind_is_a_copy_and_not_out_of_order_too() -> None:
    verdict = judge([*TOPIC, TOPIC[0]])
    assert (verdict.duplicated, verdict.out_of_order, verdict.lost) == (1, 0, 0)


def test_delivered_but_never_acknowledged_is_fine() -> None:
    verdict = judge(TOPIC, [(r.vehicle, r.seq) for r in TOPIC if r.seq <= 8])
    assert verdict.passed
    assert (verdict.acked, verdict.delivered, verdict.unacked) == (24, 30, 6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: replace(r, key="V9"),
        lambda r: replace(r, partition=7),
    ],
    ids=["a wrong key", "a second partition"],
)
def test_misplaced(spoil: Callable[[Record], Record]) -> None:
    verdict = judge([*TOPIC[:-1], spoil(TOPIC[-1])])
    assert (verdict.misplaced, verdict.passed, verdict.delivered) == (1, False, 30)


def test_a_number_given_to_two_messages() -> None:
    verdict = judge([*TOPIC[:-1], replace(TOPIC[-1], number=1)])
    assert (verdict.reused, verdict.passed) == (1, False)


def test_an_id_that_is_none() -> None:
    comparison = Comparison()
    comparison.acked("V1", "telemetry", 1, 1)
    comparison.read("V1", "telemetry", 1, key="V1", place=("t", 0), ce_id="")
    assert not comparison.verdict().passed


def test_a_foreign_record() -> None:
    comparison = Comparison()
    comparison.acked("V1", "telemetry", 1, 1)
    comparison.read("V1", "telemetry", 1, key="V1", place=("t", 0), ce_id="gw/7/telemetry/1")
    assert comparison.verdict().passed
    comparison.unreadable("partition 0 offset 1")
    assert not comparison.verdict().passed


def test_nothing_proves_nothing() -> None:
    assert not Comparison().verdict().passed


def test_a_command_that_failed() -> None:
    assert judge(TOPIC).line("lost").startswith("verdict: FAIL ")
