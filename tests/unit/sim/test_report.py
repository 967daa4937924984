"""What a run comes to: its checks, its outcome, and the files that show it."""

import inspect
import json
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from fleet_simulator.judging import Lines, judge
from fleet_simulator.ledger import Ledger
from fleet_simulator.report import charts
from fleet_simulator.report.junit import junit
from fleet_simulator.report.model import Report, from_file
from fleet_simulator.report.page import page
from fleet_simulator.report.series import Latencies, Line, Samples
from waybill.console.main import main
from waybill.errors import ConfigError, Unavailable, UnknownVersion

S = 1_000_000_000
T0 = 1_763_740_000 * S
PATIENCE = 1.0
EVIL = "<script>alert('&\"')</script>\x01"


class Made:
    """A run's directory with a ledger and the records that came of it."""

    def __init__(self, directory: Path, seconds: int = 20) -> None:
        self.directory = directory
        self.records = directory / "records"
        lines: list[dict[str, object]] = []
        self.ledger = Ledger(directory / "ledger")
        self.ledger.about({"scenario": "tunnel & city", "seed": 7})
        for second in range(seconds):
            at = T0 + second * S
            self.ledger.sample(at, "published", "", second * 2)
            self.ledger.sample(at, "backlog", "depot", second % 5)
            for vehicle in ("V1", "V2"):
                seq = second + 1
                self.ledger.behind(vehicle, "depot")
                self.ledger.published(vehicle, "telemetry", seq, seq, at)
                self.ledger.acked(vehicle, "telemetry", seq, seq, at)
                said = {"vehicle": vehicle, "stream": "telemetry", "seq": seq, "ts": at // 1_000_000}
                lines.append({
                    "topic": "fleet.telemetry", "partition": 0, "offset": len(lines), "key": vehicle,
                    "timestamp": at // 1_000_000 + 40, "headers": {"ce_id": f"depot/7/telemetry/{len(lines) + 1}"},
                    "value": json.dumps(said),
                })  # fmt: skip
        self.lines = lines
        self.write(lines)

    def write(self, lines: list[dict[str, object]]) -> None:
        self.records.write_text("\n".join(map(json.dumps, lines)))

    def outcome(self) -> int:
        """Close the ledger and ask the command line."""
        self.ledger.close()
        return main(["fleet", "verdict", str(self.directory), str(self.records)])

    def report(self) -> Report:
        return from_file(self.directory / "report.json")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def failed(report: Report) -> dict[str, tuple[str, ...]]:
    return {check.name: check.findings or (check.text,) for check in report.checks if check.outcome != "PASS"}


def test_a_run_that_passes(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.outcome() == 0
    assert capsys.readouterr().out == "verdict: PASS delivered=40 lost=0 duplicated=0 out_of_order=0\n"
    report = made.report()
    assert (report.outcome, failed(report)) == ("PASS", {})
    assert report.latency is not None
    assert 36 < report.latency.p50 < 44
    assert [one.delivered for one in report.streams] == [20, 20]
    assert {line.name for line in report.lines} == {
        "published", "backlog", "delivered", "p50", "p95", "p99", "p100",
    }  # fmt: skip


def test_one_record_is_removed(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.write(made.lines[:7] + made.lines[8:])
    assert made.outcome() == 1
    said = capsys.readouterr()
    assert said.out == "verdict: FAIL delivered=39 lost=1 duplicated=0 out_of_order=0\n"
    assert "  V2 telemetry seq 4\n" in said.err
    assert failed(made.report()) == {"lost": ("V2 telemetry seq 4",)}


def test_a_fault_that_did_not_happen_is_no_pass(made: Made) -> None:
    made.ledger.asked("kills", "depot", 2)
    made.ledger.counted("kills", "depot", 2)
    made.ledger.asked("cuts", "depot", 3)
    made.ledger.counted("cuts", "depot", 2)
    assert made.outcome() == 3
    report = made.report()
    assert failed(report) == {"faults": ("cuts of depot: 2, asked for 3",)}
    assert report.line.startswith("verdict: INCONCLUSIVE delivered=40 ")
    assert 'type="INCONCLUSIVE"' in junit(report)


def test_faults_that_happened_pass(made: Made) -> None:
    made.ledger.asked("kills", "depot", 2)
    made.ledger.counted("kills", "depot", 1)
    made.ledger.counted("kills", "depot", 2)
    assert made.outcome() == 0


def test_a_run_whose_runner_died_is_no_pass_what_is_missing_may_come_and_a_copy_is_a_fail(made: Made) -> None:
    made.ledger.sent("c1", "V1", T0)
    made.ledger.close(ended=False)
    assert made.outcome() == 3
    assert failed(made.report())["ledger"][0].startswith("the runner did not live to the end")
    with (made.directory / "ledger").open("ab") as file:
        file.write(b"WBL1half")
    made.write([*made.lines, {**made.lines[-1], "value": '{"vehicle":"V1","seq":21}'}])  # published, and not noted
    assert made.outcome() == 3
    assert "8 bytes" in failed(made.report())["ledger"][1]
    made.write(made.lines[1:])
    assert made.outcome() == 3
    assert {"lost", "commands", "ledger"} == set(failed(made.report()))
    made.write([*made.lines, made.lines[3]])
    assert made.outcome() == 1


def test_of_nothing_nothing_is_proven(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").close()
    (tmp_path / "records").touch()
    assert main(["fleet", "verdict", str(tmp_path), str(tmp_path / "records")]) == 3
    assert "no message was acknowledged: nothing is proven" in failed(from_file(tmp_path / "report.json"))["ledger"]


@pytest.mark.parametrize(
    ("happened", "outcome", "told"),
    [
        (["acted", "done"], 0, ""),
        (["expired"], 0, ""),
        (["acted", "expired"], 0, ""),
        (["acted", "acted", "done"], 1, "acted on 2 times, done"),
        (["done"], 1, "acted on 0 times, done"),
        (["acted"], 1, "acted on 1 times, never answered"),
        ([], 1, "acted on 0 times, never answered"),
    ],
)
def test_what_commands_did(made: Made, happened: list[str], outcome: int, told: str) -> None:
    made.ledger.sent("c1", "V1", T0)
    for what in happened:
        if what == "acted":
            made.ledger.acted("c1", "V1", T0)
        else:
            made.ledger.replied("c1", "V1", what, T0)
    assert made.outcome() == outcome
    assert failed(made.report()) == ({"commands": (f"command c1 to V1: {told}",)} if told else {})


class Page(HTMLParser):
    """Notes tags and what they would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "xlink:href", "data", "srcset"}]


def test_what_is_found_in_a_topic_does_not_command_the_terminal(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.write([*made.lines, {**made.lines[0], "value": json.dumps({"vehicle": "\x1b[2J", "seq": 1})}])
    assert made.outcome() == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "\\x1b[2J" in said


def test_vehicles_are_in_the_order_of_their_numbers(made: Made) -> None:
    for number in (10, 2, 1):
        made.ledger.behind(f"car-{number}", "depot")
        made.ledger.published(f"car-{number}", "telemetry", 1, 1, T0)
    made.outcome()
    text = (made.directory / "report.html").read_text()
    places = [text.index(f"<td>car-{number}</td>") for number in (1, 2, 10)]
    assert places == sorted(places)


def test_the_page_loads_nothing_and_nothing_gets_out_of_its_text(made: Made) -> None:
    made.ledger.about({"scenario": EVIL, EVIL: EVIL})
    made.ledger.note(T0, "down", EVIL, EVIL)
    made.ledger.note(T0 + 5 * S, "up", EVIL, EVIL)
    made.ledger.note(T0 + 6 * S, "fault", EVIL, EVIL)
    made.ledger.asked(EVIL, EVIL, 1)
    made.ledger.sample(T0 + 30 * S, "backlog", EVIL, 3)
    made.write([*made.lines, {**made.lines[0], "key": EVIL, "value": json.dumps({"vehicle": EVIL, "seq": 1})}])
    assert made.outcome() == 1
    text = (made.directory / "report.html").read_text()
    seen = Page()
    seen.feed(text)
    assert seen.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert "\x01" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert seen.tags.count("svg") >= 4
    assert 'class="band"' in text
    assert 'class="fault"' in text
    ET.fromstring((made.directory / "junit.xml").read_text())


ATTRIBUTES = {  # required and optional ones, and children in their order, of the schema for Ant's JUnit task
    "testsuites": (set(), ["testsuite"]),
    "testsuite": (
        {"package", "id", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "testcase": ({"name", "classname", "time"}, ["failure"]),
    "failure": ({"type", "message"}, []),
    "system-out": (set(), []),
    "system-err": (set(), []),
}


def test_junit_is_what_the_common_schema_wants(made: Made) -> None:
    made.ledger.asked("cuts", "depot", 3)
    made.write(made.lines[1:])
    assert made.outcome() == 1
    root = ET.fromstring((made.directory / "junit.xml").read_text())
    for element in root.iter():
        attributes, children = ATTRIBUTES[element.tag]
        assert set(element.attrib) == attributes
        places = [children.index(child.tag) for child in element]
        assert places == sorted(places)
    suite = root[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases) == len(made.report().checks)
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) == 2
    assert "V1 telemetry seq 1" in (suite.findall("testcase/failure")[0].text or "")


def test_a_report_is_made_anew_from_its_json(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.outcome() == 0
    out = made.directory / "other"
    assert main(["fleet", "report", str(made.directory), "--out", str(out)]) == 0
    for name in ("report.html", "junit.xml", "report.json"):
        assert (out / name).read_bytes() == (made.directory / name).read_bytes()
    assert main(["fleet", "report", str(made.directory / "nowhere")]) == 2
    assert "nowhere: cannot be read" in capsys.readouterr().err
    changed = msgspec.json.decode((out / "report.json").read_bytes()) | {"version": 9}
    (out / "report.json").write_bytes(msgspec.json.encode(changed))
    with pytest.raises(UnknownVersion, match="version 9"):
        from_file(out / "report.json")
    (out / "report.json").write_bytes(b"{}")
    with pytest.raises(ConfigError, match="not a report"):
        from_file(out / "report.json")


def test_the_schema_of_the_json_is_what_it_is() -> None:
    path = Path(__file__).parents[3] / "docs" / "schemas" / "fleet-report.schema.json"
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Report)}
    for one in schema["$defs"].values():
        one["description"] = inspect.cleandoc(one["description"]).replace("``", "`")
    assert json.loads(path.read_text()) == json.loads(json.dumps(schema))


async def test_a_ledger_that_does_not_say_where_the_records_are(made: Made) -> None:
    made.ledger.close()
    with pytest.raises(ConfigError, match="does not say where the records are: give RECORDS, or --topic"):
        await judge(made.directory)
    assert main(["fleet", "verdict", str(made.directory), "--bootstrap", "127.0.0.1:1"]) == 2


def test_the_page_of_a_large_run_is_bounded(made: Made) -> None:
    made.outcome()
    report = made.report()
    many = tuple(msgspec.structs.replace(report.streams[0], vehicle=f"V{n}", gateway=f"G{n}") for n in range(5000))
    events = tuple(msgspec.structs.replace(e, at_ms=report.began_ms + n) for n in range(2000) for e in report.events)
    text = page(msgspec.structs.replace(report, streams=many, events=events))
    assert len(text) < 300_000
    assert "and 4900 more" in text


def test_latencies_widen_and_keep_their_counts() -> None:
    latencies = Latencies()
    for second in range(10_000):
        latencies.add(second * 1000, second * 1000 + (100 if second % 10 else 5000))
    p50, p95, longest = latencies.overall(0.5, 0.95, 1.0)
    assert p50 == pytest.approx(100, rel=0.09)
    assert p95 == longest == pytest.approx(5000, rel=0.09)
    (line,) = latencies.percentiles(0.5)
    assert 1000 < len(line.points) <= 2001
    rates = latencies.arrivals("delivered")
    assert sum(value or 0 for _, value in rates.points) * 8 == pytest.approx(10_000)
    latencies.add(10_000_000, 9_000_000)
    assert latencies.negative == 1


def test_faster_than_real_time_there_are_arrivals_and_no_latency() -> None:
    latencies = Latencies(real_time=False)
    for second in range(100):
        latencies.add(second * 3_600_000, 1_000_000 + second * 1000)
    latencies.add(0, 1_000_000)
    assert latencies.overall(0.5) == []
    assert not latencies.percentiles(0.5)[0].points
    assert len(latencies.arrivals("delivered").points) == 100
    assert latencies.arrivals("delivered").points[0][1] == 2


def test_samples_thin_evenly_and_rates_survive_a_counter_that_begins_anew() -> None:
    samples = Samples()
    for second in range(10_000):
        samples.add(second * 1000, second * 5 if second < 6000 else (second - 6000) * 5)
    line = samples.rates("published", "")
    assert len(line.points) <= 2000
    assert all(value is not None and 0 <= value <= 5 for _, value in line.points)
    assert line.points[10][1] == 5


class Growing:
    """Lines of which more are there each time they are read; the first time nobody answers."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.reads = 0

    def __iter__(self) -> Iterator[bytes]:
        self.reads += 1
        if self.reads == 1:
            raise Unavailable("nobody answers")
        return iter(self.lines[: len(self.lines) - 5 + self.reads])


class Slow(Growing):
    """Lines whose last ones come while they are read for the first time, which takes longer than one wants to wait."""

    def __iter__(self) -> Iterator[bytes]:
        self.reads += 1
        if self.reads > 1:
            return iter(self.lines)
        time.sleep(1.5 * PATIENCE)
        return iter(self.lines[:-5])


async def test_what_comes_while_the_topic_is_read_is_not_lost(made: Made) -> None:
    made.ledger.close()
    slow = Slow(made.records.read_bytes().splitlines())
    report = await judge(made.directory, Lines(slow), drain=PATIENCE)
    assert (report.outcome, report.counts.lost, slow.reads) == ("PASS", 0, 2)


async def test_what_comes_late_is_waited_for_and_counted_once(made: Made) -> None:
    made.ledger.close()
    growing = Growing(made.records.read_bytes().splitlines())
    report = await judge(made.directory, Lines(growing), drain=60)
    assert (report.outcome, report.counts.records, growing.reads) == ("PASS", 40, 6)
    with pytest.raises(Unavailable, match="nobody answers"):
        await judge(made.directory, Lines(Growing([])))


def test_where_nothing_arrived_is_a_hole_and_a_lone_point_is_seen(made: Made) -> None:
    latencies = Latencies()
    for second in (1, 2, 3, 30, 60, 61):
        latencies.add(second * 1000, second * 1000 + 100)
    (line,) = latencies.percentiles(0.5)
    assert [at for at, value in line.points if value is None] == [30_000, 60_000]
    assert made.outcome() == 0
    text = page(msgspec.structs.replace(made.report(), lines=(line,), began_ms=0, ended_ms=100_000))
    (drawn,) = re.findall(r'class="l c0" d="([^"]*)"', text)
    assert [part.count("L") for part in drawn.split("M")[1:]] == [2, 0, 1]
    assert drawn.count("h2") == 1


def test_outages_that_lie_on_each_other_are_one_shade() -> None:
    axis = charts.Axis(0, 1000)
    outages = [
        charts.Band(100, 300, "V1", "tunnel"),
        charts.Band(200, 400, "V2", "tunnel"),
        charts.Band(600, 700, "V3", ""),
    ]
    line = Line("published", "", ((0, 1.0), (1000, 2.0)))
    drawn = charts.chart("title", axis, [charts.Drawn("published", line)], outages, [])
    assert drawn.count('class="band"') == 2
