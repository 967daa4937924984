"""Turns: no lane with a share starves, the most urgent has the rest, and nobody waits for what was saved up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.forward.turns import Turns

FRAME = 1000
LANES = ("control", "alarms", "telemetry", "bulk")

shares = st.lists(st.integers(0, 100), min_size=4, max_size=4).filter(lambda all_of: sum(all_of) <= 100)
steps = st.lists(
    st.tuples(st.sets(st.sampled_from(LANES), min_size=1), st.integers(1, 2 * FRAME)), min_size=50, max_size=300
)


@given(shares, steps, st.sampled_from(LANES))
def test_a_lane_that_always_waits_gets_its_share_but_for_a_few_frames(
    given_shares: list[int], taken: list[tuple[set[str], int]], lane: str
) -> None:
    wanted = dict(zip(LANES, given_shares, strict=True))
    turns, sent, total = Turns(LANES, wanted), 0, 0
    for others, size in taken:
        waiting = others | {lane}
        chosen = turns.next(dict.fromkeys(waiting, FRAME))
        assert chosen in waiting
        turns.sent(chosen, size, waiting)
        total += size
        sent += size * (chosen == lane)
        assert sent >= wanted[lane] / 100 * total - 5 * len(LANES) * FRAME


@given(steps)
def test_without_shares_the_most_urgent_goes_always(taken: list[tuple[set[str], int]]) -> None:
    turns = Turns(LANES, {})
    for waiting, size in taken:
        chosen = turns.next(dict.fromkeys(waiting, FRAME))
        assert chosen == min(waiting, key=LANES.index)
        turns.sent(chosen, size, waiting)


def test_the_most_urgent_waits_for_one_frame_at_most() -> None:
    turns, waiting, row = Turns(LANES, {"bulk": 10}), ("control", "bulk"), []
    for _ in range(1000):
        row.append(turns.next(dict.fromkeys(waiting, FRAME)))
        turns.sent(row[-1], FRAME, waiting)
    assert row.count("bulk") in range(95, 103)
    assert "bulkbulk" not in "".join(row)
    assert row[0] == "control"


def test_small_messages_of_the_agent_pass_a_backlog_at_once() -> None:
    turns, waiting = Turns(LANES, {"bulk": 90}), ("control", "bulk")
    for _ in range(5):
        assert turns.next(dict.fromkeys(waiting, FRAME)) == "control"
        turns.sent("control", 200, waiting)


def test_what_a_lane_sends_on_a_free_link_costs_it_nothing_and_what_it_did_not_want_is_not_saved() -> None:
    turns = Turns(LANES, {"bulk": 50})
    for _ in range(100):
        turns.sent("bulk", FRAME, ("bulk",))
    for _ in range(100):
        turns.sent("alarms", FRAME, ("alarms",))
    row = []
    for _ in range(6):
        row.append(turns.next({"alarms": FRAME, "bulk": FRAME}))
        turns.sent(row[-1], FRAME, ("alarms", "bulk"))
    assert row == ["alarms", "alarms", "bulk", "alarms", "bulk", "alarms"]
