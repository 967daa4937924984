"""Reading a topic back through a tail: its lines, its failure, its silence."""

import json
import sys

import pytest

from fleet_simulator.readback import read_line, read_topic
from fleet_simulator.verdict import Comparison
from waybill.errors import Unavailable

LINE = json.dumps(
    {
        "topic": "t",
        "partition": 1,
        "offset": 5,
        "timestamp": 1,
        "key": "V1",
        "headers": {"ce_id": "gw/9/telemetry/1", "mqtt_qos": "1"},
        "value": '{"vehicle":"V1","seq":1,"speed":2.5}',
    }
)


def tail(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        '{"partition":0,"offset":1,"key":"V1","headers":{},"value":null}',
        '{"partition":0,"offset":1,"key":"V1","headers":{},"value_base64":"AAA="}',
        '{"partition":0,"offset":1,"key":"V1","headers":{},"value":"{\\"vehicle\\":\\"V1\\"}"}',
        LINE.replace("gw/9/telemetry/1", ""),
    ],
)
def test_what_is_not_a_vehicles_message_fails_the_verdict(line: str) -> None:
    comparison = Comparison()
    comparison.acked("V1", "telemetry", 1, 1)
    read_line(comparison, LINE)
    assert comparison.verdict().passed
    read_line(comparison, line)
    assert not comparison.verdict().passed


async def test_a_tail_is_read_to_its_end() -> None:
    comparison = Comparison()
    comparison.acked("V1", "telemetry", 1, 1)
    assert await read_topic(comparison, tail(f"print({LINE!r})")) == 1
    assert comparison.verdict().passed


async def test_a_tail_that_fails_says_why() -> None:
    with pytest.raises(Unavailable, match="ended with 3: no such topic"):
        await read_topic(Comparison(), tail("import sys; print('no such topic', file=sys.stderr); sys.exit(3)"))


async def test_a_tail_without_end_is_killed() -> None:
    code = f"import time; print({LINE!r}, flush=True); time.sleep(60)"
    with pytest.raises(Unavailable, match="no end after 1 s and [01] lines"):
        await read_topic(Comparison(), tail(code), patience=1)
