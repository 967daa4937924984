"""R8: the listener stops acking when a partition was not routed for half of the journal's retention."""

from __future__ import annotations

from cloud_ingest.app import Lag
from cloud_ingest.router.worker import Status


def test_r8_nothing_is_acknowledged_any_more_after_half_of_the_retention() -> None:
    lag = Lag(retention_ms=100_000)
    partitions = {0: Status(0, "ready"), 1: Status(1, "stopped", "the ledger is refused")}
    assert lag.reason(partitions, 0.0) == ""
    assert lag.reason(partitions, 50.0) == ""
    assert "partition 1" in lag.reason(partitions, 50.1)
    assert "the ledger is refused" in lag.reason(partitions, 51.0)
    partitions[1].state = "ready"
    assert lag.reason(partitions, 52.0) == ""
    partitions[1].state = "waiting"
    assert lag.reason(partitions, 102.0) == ""
    assert lag.reason(partitions, 102.1) != ""
    del partitions[1]
    assert lag.reason(partitions, 200.0) == ""


def test_a_log_that_keeps_what_is_not_routed_has_no_such_limit() -> None:
    assert Lag(None).reason({1: Status(1, "stopped")}, 1e9) == ""
