"""Why devices were cut off is in the log, and cannot flood it."""

from __future__ import annotations

import logging

import pytest

from edge_agent.app import Gone


def test_a_line_a_second_and_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    gone = Gone(lambda: now)
    with caplog.at_level(logging.INFO):
        gone.say("'V1'", "")
        gone.say("'V1'", "connection lost: reset")
        gone.say("'V1'", "the server shuts down")
        assert not caplog.messages
        for _ in range(100):
            gone.say("'V1'", "taken over")
        now = 101.0
        gone.say("at 10.0.0.7:4711", "the first packet is not CONNECT")
        now = 102.5
        gone.say("'V2'", "keepalive")
    assert caplog.messages == [
        "device 'V1' is cut off: taken over",
        "device at 10.0.0.7:4711 is cut off: the first packet is not CONNECT (and 99 more lately)",
        "device 'V2' is cut off: keepalive",
    ]
