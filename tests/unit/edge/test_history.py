"""Counts that grow, as rates a step."""

from __future__ import annotations

from edge_agent.health.history import POINTS, Counts, Recorder


def test_rates_are_of_whole_steps() -> None:
    recorder = Recorder(5)
    for second in range(12):
        recorder.sample(second, 1_000 * second, Counts(10 * second, 5 * second, 100 * second, second // 6, second / 4))
    state = recorder.state()
    assert (state.step_s, state.until_ms) == (5, 10_000)
    assert (state.rate_in, state.rate_out, state.bytes_per_min) == ((10.0, 10.0), (5.0, 5.0), (6_000.0, 6_000.0))
    assert state.latency_ms == (None, 1_250.0)


def test_it_is_bounded_and_begins_empty() -> None:
    recorder = Recorder(1)
    assert recorder.state().rate_in == ()
    for second in range(POINTS * 2):
        recorder.sample(second, second, Counts(second, 0, 0, 0, 0))
    assert len(recorder.state().rate_in) == POINTS
