"""What is declared is matched with what is missing as well as any assignment of one to the other could."""

from hypothesis import given
from hypothesis import strategies as st

from fleet_simulator.accounts import LaneAudit, Slot, compare, match, settle
from fleet_simulator.numbers import Bits
from fleet_simulator.verdict import Comparison, Verdict

SLOTS = st.lists(st.tuples(st.integers(-1, 14), st.integers(1, 16), st.integers(1, 4)), max_size=5)


def best(points: list[int], seats: list[tuple[int, int]]) -> int:
    """Return how many points can sit, by trying augmenting paths (Kuhn)."""
    taken: dict[int, int] = {}

    def sit(point: int, seen: set[int]) -> bool:
        for seat, (low, high) in enumerate(seats):
            if low < point < high and seat not in seen:
                seen.add(seat)
                if seat not in taken or sit(taken[seat], seen):
                    taken[seat] = point
                    return True
        return False

    return sum(sit(point, set()) for point in points)


@given(st.sets(st.integers(0, 15)), SLOTS)
def test_as_many_are_matched_as_can_be(numbers: set[int], slots: list[tuple[int, int, int]]) -> None:
    points = sorted(numbers)
    slot = Slot("V", "s", "g", 1, 1, 1, 0)
    short, over = match([(n, n) for n in points], [(low, high, size, slot) for low, high, size in slots])
    most = best(points, [(low, high) for low, high, size in slots for _ in range(size)])
    assert over == len(points) - most
    assert sum(count for _, count in short) == sum(size for *_, size in slots) - most


@given(st.data())
def test_a_gateway_that_tells_the_truth_is_believed_and_one_loss_is_found(data: st.DataObject) -> None:
    # Vehicles publish in turns; a gateway numbers what it takes, drops some and declares them. Some PUBACKs are lost.
    order = data.draw(st.lists(st.sampled_from(["V1", "V2", "V3"]), min_size=1, max_size=40))
    epochs = data.draw(st.lists(st.integers(0, 2), min_size=len(order), max_size=len(order)).map(sorted))
    fates = data.draw(st.lists(st.sampled_from("kkkd"), min_size=len(order), max_size=len(order)))
    heard = data.draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order)))
    kept = [n for n, fate in enumerate(fates) if fate == "k"]
    victim = data.draw(st.none() | st.sampled_from(kept) if kept else st.none())
    counts: dict[str, int] = {}
    last: dict[int, int] = {}
    dropped: dict[int, list[tuple[int, int]]] = {}
    delivered: dict[int, int] = {}
    comparison = Comparison()
    gone = acked_gone = 0
    for n, (vehicle, epoch, fate, ack) in enumerate(zip(order, epochs, fates, heard, strict=True)):
        seq = counts[vehicle] = counts.get(vehicle, 0) + 1
        number = last[epoch] = last.get(epoch, 0) + 1
        comparison.published(vehicle, "telemetry", seq, seq)
        comparison.behind(vehicle, "g")
        if ack:
            comparison.acked(vehicle, "telemetry", seq, seq)
        if fate == "d":
            dropped.setdefault(epoch, []).append((number, number))
            gone += 1
            acked_gone += ack
            continue
        delivered[epoch] = delivered.get(epoch, 0) + 1
        if n != victim:
            comparison.read(
                vehicle, "telemetry", seq, key=vehicle, place=("t", 0), ce_id=f"g/{epoch + 1}/lane/{number}"
            )
    audits = [
        LaneAudit(
            "g", epoch + 1, "lane", last[epoch], delivered.get(epoch, 0), len(spans := dropped.get(epoch, [])),
            {"evicted": len(spans)} if spans else {}, 0, 0, 0, (), tuple(spans),
        )
        for epoch in sorted(last)
    ]  # fmt: skip
    verdict = comparison.verdict(audits)
    if victim is None:
        assert verdict.lost == verdict.disagreeing == 0, verdict.findings
        assert verdict.declared == acked_gone
        return
    assert not verdict.passed
    assert verdict.disagreeing >= 1
    epoch = epochs[victim]
    number = sum(1 for n in range(victim + 1) if epochs[n] == epoch)
    assert any(f"g/{epoch + 1}/lane" in text and f"{number}" in text for text in verdict.findings["disagreeing"])
    assert verdict.lost <= (1 if heard[victim] else 0)
    assert verdict.lost + verdict.declared == acked_gone + heard[victim]


def audit(**more: object) -> LaneAudit:
    known = {"gateway": "g", "epoch": 7, "lane": "lane", "last": 10, "delivered": 10, "dropped": 0, "reasons": {}}
    known |= {"dead": 0, "pending": 0, "missing_count": 0}
    return LaneAudit(**{**known, **more})  # type: ignore[arg-type]


def seen(*numbers: int) -> dict[tuple[str, int, str], Bits]:
    bits = Bits()
    for number in numbers:
        bits.add(number)
    return {("g", 7, "lane"): bits}


def test_only_numbers_between_the_neighbours_can_explain_a_loss() -> None:
    slot = Slot("V1", "telemetry", "g", 5, 5, 1, 0, "lane", (7, 4), (7, 6))
    (account,) = settle([audit(dropped=1, reasons={"evicted": 1}, dropped_spans=((8, 8),))], [slot])
    assert (slot.lost, account.lost, account.for_nothing) == (1, 1, 1)
    (account,) = settle([audit(dropped=1, reasons={"evicted": 1}, dropped_spans=((5, 5),))], [slot])
    assert (account.lost, account.for_nothing, account.exact) == (0, 0, True)


def test_where_a_message_is_missing_is_known_from_the_records_around_it() -> None:
    def verdict(dropped: int) -> Verdict:
        comparison = Comparison()
        comparison.acked("V1", "telemetry", 1, 5)
        for seq, number in ((1, 1), (2, 2), (4, 4), (5, 9)):
            comparison.read("V1", "telemetry", seq, key="V1", place=("t", 0), ce_id=f"g/7/lane/{number}")
        for seq, number in enumerate((3, 5, 6, 7, 8), 1):
            if number != dropped:
                comparison.acked("V2", "telemetry", seq, seq)
                comparison.read("V2", "telemetry", seq, key="V2", place=("t", 1), ce_id=f"g/7/lane/{number}")
        spans = ((dropped, dropped),)
        return comparison.verdict([audit(last=9, delivered=8, dropped=1, reasons={"evicted": 1}, dropped_spans=spans)])

    assert verdict(3).findings == {}
    wrong = verdict(6)
    assert wrong.findings["lost"] == ("V1 telemetry seq 3",)
    assert wrong.disagreeing > 0


def test_where_the_audit_kept_only_counts_the_counts_decide() -> None:
    slot = Slot("V1", "telemetry", "g", 5, 6, 2, 0, "lane", (7, 4), (7, 6))
    (account,) = settle([audit(dropped=2, reasons={"evicted": 2})], [slot])
    assert (account.lost, account.for_nothing, account.exact) == (0, 0, False)
    (account,) = settle([audit(dropped=1, reasons={"evicted": 1})], [slot])
    assert (account.lost, slot.lost) == (1, 1)


def test_a_vehicle_of_which_nothing_arrived_is_explained_by_any_number_of_its_gateway_alone() -> None:
    slot = Slot("V1", "telemetry", "other", 1, 3, 3, 0)
    g, other = settle([audit(dropped=3, reasons={"expired": 3}, dropped_spans=((1, 3),))], [slot])
    assert (g.for_nothing, other.lost) == (3, 3)
    slot = Slot("V1", "telemetry", "g", 1, 3, 3, 0)
    (account,) = settle([audit(dropped=3, reasons={"expired": 3}, dropped_spans=((1, 3),))], [slot])
    assert (account.lost, account.for_nothing, account.reasons) == (0, 0, {"expired": 3})


def test_the_cloud_and_the_topic_disagree() -> None:
    def said(one: LaneAudit, *numbers: int) -> list[str]:
        return [found.text for found in compare([one], seen(*numbers))]

    ten = tuple(range(1, 11))
    assert said(audit(), *ten) == []
    assert said(audit(), *ten[:4], *ten[5:]) == ["10 were routed, 9 are in the topics; not there: 5"]
    assert said(audit(), *ten, 11) == ["11 are in the topics, 10 were routed"]
    both = said(audit(dropped=1, reasons={"evicted": 1}, dropped_spans=((4, 4),), delivered=9), *ten)
    assert both == ["1 of 4 to 4 are declared lost, and in the topic", "10 are in the topics, 9 were routed"]
    assert said(audit(missing_count=1, missing=((4, 4),), delivered=9), *ten[:3], *ten[4:]) == ["the audit misses 1: 4"]
    (unknown,) = compare([], seen(1))
    assert unknown.text == "1 are in the topics, and the audit does not know of it"
