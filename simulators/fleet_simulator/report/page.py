"""The report as one HTML page that loads nothing: no script, no font, no picture from elsewhere. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final

from fleet_simulator.report import charts
from fleet_simulator.report.charts import Axis, Band, Drawn, escape
from fleet_simulator.report.model import Event, Report
from fleet_simulator.report.series import Line
from fleet_simulator.verdict import StreamTally

ROWS: Final = 100
"""Rows of a table at most, the worst first."""

_BANDS: Final = 300
_MARKS: Final = 200
_BACKLOGS: Final = 5
_COUNTS: Final = ("published", "acked", "delivered", "unacked", "declared", "lost", "duplicated", "out_of_order")


def page(report: Report) -> str:
    """Return the page."""
    style = resources.files("fleet_simulator.report").joinpath("page.css").read_text(encoding="utf-8")
    title = f"{report.outcome}: {report.scenario or 'a run of the fleet'}"
    body = (_head(report), _tiles(report), _checks(report), _charts(report), _gateways(report), _vehicles(report))
    more = (_commands(report), _faults(report), _events(report), _facts(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{''.join(body)}{''.join(more)}</body></html>\n"
    )


def _head(report: Report) -> str:
    when = ""
    if report.began_ms:
        began = dt.datetime.fromtimestamp(report.began_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        when = f"{began}, {charts.duration((report.ended_ms - report.began_ms) / 1000)}"
    return (
        f'<header class="{report.outcome.lower()}"><h1><span class="word">{report.outcome}</span> '
        f"{escape(report.scenario or 'a run of the fleet')}</h1><p>{escape(when)}</p>"
        f"<p><code>{escape(report.line)}</code></p></header>"
    )


def _tiles(report: Report) -> str:
    counts = report.counts
    tiles = [
        (_grouped(counts.published), "published", ""),
        (_grouped(counts.acked), "acknowledged", ""),
        (_grouped(counts.delivered), "delivered", ""),
        (_grouped(counts.declared), "declared lost", "warn" if counts.declared else ""),
        (_grouped(counts.lost), "lost", "bad" if counts.lost else ""),
        (_grouped(counts.duplicated), "duplicated", "bad" if counts.duplicated else ""),
        (_grouped(counts.out_of_order), "out of order", "bad" if counts.out_of_order else ""),
    ]
    if report.latency is not None:
        tiles += [
            (charts.span(report.latency.p50), "p50 to the topic", ""),
            (charts.span(report.latency.p99), "p99 to the topic", ""),
        ]
    inside = "".join(
        f'<div class="tile {kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name, kind in tiles
    )
    return f'<section class="tiles">{inside}</section>'


def _checks(report: Report) -> str:
    rows = []
    for check in report.checks:
        findings = "".join(f"<li>{escape(finding)}</li>" for finding in check.findings)
        detail = f"<details open><summary>{escape(check.text)}</summary><ul>{findings}</ul></details>"
        rows.append(
            f'<tr class="{check.outcome.lower()}"><td><span class="word">{check.outcome}</span></td>'
            f"<td>{escape(check.title)}</td><td>{detail if findings else escape(check.text)}</td></tr>"
        )
    return f'<section><h2>Checks</h2><div class="scroll"><table>{"".join(rows)}</table></div></section>'


def _charts(report: Report) -> str:
    times = [at for line in report.lines for at, _ in line.points] + [event.at_ms for event in report.events]
    times += [at for at in (report.began_ms, report.ended_ms) if at]
    if not times:
        return ""
    axis = Axis(report.began_ms or min(times), max(report.ended_ms, report.began_ms + 1000) or max(times))
    outages = charts.bands(report.events, axis.end)[:_BANDS]
    faults = [event for event in report.events if event.kind == "fault"][:_MARKS]
    rates = [Drawn(name, line) for name in ("published", "acked", "delivered") if (line := _total(report, name))]
    latency = [Drawn(line.name, line) for line in report.lines if line.name in {"p50", "p95", "p99", "p100"}]
    latency = [Drawn("longest" if one.name == "p100" else one.name, one.line) for one in latency]
    traffic = [
        Drawn(text, line)
        for name, text in (("bytes_up", "up"), ("bytes_down", "down"))
        if (line := _total(report, name))
    ]
    connected = [Drawn("vehicles", line)] if (line := _total(report, "connected")) else []
    drawn = (
        charts.strip(axis, outages, faults),
        _chart("Messages a second", axis, rates, outages, faults),
        _chart("Backlog of the gateways, messages", axis, _backlogs(report.lines), outages, faults),
        charts.chart("From device to topic", axis, latency, outages, faults, say=charts.span, log=True),
        charts.chart("Bytes a second on the uplinks", axis, traffic, outages, faults, say=charts.size),
        _chart("Connected vehicles", axis, connected, outages, faults),
    )
    if not any(drawn):
        return ""
    note = ""
    if latency:
        note = (
            '<p class="note">Latency is from <code>ts</code> in the message (the vehicle\'s clock) to the timestamp of '
            "the record in its topic, drawn at the time at which the message was made; each percentile is right within "
            "9 %.</p>"
        )
    return f"<section><h2>Over time</h2>{''.join(drawn)}{note}</section>"


def _chart(title: str, axis: Axis, drawn: Sequence[Drawn], outages: Sequence[Band], faults: Sequence[Event]) -> str:
    return charts.chart(title, axis, drawn, outages, faults)


def _total(report: Report, name: str) -> Line | None:
    """Return the line of all together: as it was noted, or as the sum of its subjects' at the same times."""
    lines = [line for line in report.lines if line.name == name]
    for line in lines:
        if not line.subject:
            return line
    sums: dict[int, float] = {}
    for line in lines:
        for at, value in line.points:
            sums[at] = sums.get(at, 0.0) + (value or 0.0)
    return Line(name, "", tuple(sorted(sums.items()))) if sums else None


def _backlogs(lines: Iterable[Line]) -> list[Drawn]:
    mine = [line for line in lines if line.name == "backlog"]
    mine.sort(key=lambda line: -max(value or 0 for _, value in line.points))
    drawn = [Drawn(line.subject or "all", line) for line in mine[:_BACKLOGS]]
    if len(mine) > _BACKLOGS:
        drawn[-1] = Drawn(f"{drawn[-1].name} (and {len(mine) - _BACKLOGS} with less)", drawn[-1].line)
    return drawn


def _gateways(report: Report) -> str:
    by_gateway: dict[str, list[StreamTally]] = {}
    for one in report.streams:
        by_gateway.setdefault(one.gateway, []).append(one)
    if not by_gateway:
        return ""
    reasons = {account.gateway: account.reasons for account in report.accounts}
    rows = []
    for gateway, streams in by_gateway.items():
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.get(gateway, {}).items())
        vehicles = len({one.vehicle for one in streams})
        rows.append((_worst(streams), [gateway or "–", str(vehicles), *_sums(streams), why]))
    return _table("Gateways", ["gateway", "vehicles", *_names(), "declared by reason"], rows)


def _vehicles(report: Report) -> str:
    by_vehicle: dict[str, list[StreamTally]] = {}
    for one in report.streams:
        by_vehicle.setdefault(one.vehicle, []).append(one)
    rows = [
        (_worst(streams), [vehicle, streams[0].gateway or "–", *_sums(streams)])
        for vehicle, streams in by_vehicle.items()
    ]
    return _table("Vehicles", ["vehicle", "gateway", *_names()], rows)


def _worst(streams: Sequence[StreamTally]) -> tuple[int, int]:
    return sum(one.wrong for one in streams), sum(one.declared for one in streams)


def _sums(streams: Sequence[StreamTally]) -> list[str]:
    return [_grouped(sum(getattr(one, name) for one in streams)) for name in _COUNTS]


def _names() -> list[str]:
    return [name.replace("_", " ") for name in _COUNTS]


def _table(title: str, columns: Sequence[str], rows: list[tuple[tuple[int, int], list[str]]]) -> str:
    rows.sort(key=lambda row: (-row[0][0], -row[0][1], [_natural(cell) for cell in row[1]]))
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f'<tr class="{"fail" if wrong else ""}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for (wrong, _), cells in rows[:ROWS]
    )
    more = f'<p class="more">and {len(rows) - ROWS} more, none worse</p>' if len(rows) > ROWS else ""
    return (
        f'<section><h2>{title}</h2><div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}</section>"
    )


def _commands(report: Report) -> str:
    effects = report.commands
    if not effects.sent:
        return ""
    names = ("sent", "done", "expired", "twice", "without", "unanswered")
    return _table("Commands", names, [((0, 0), [_grouped(getattr(effects, name)) for name in names])])


def _faults(report: Report) -> str:
    if not report.faults:
        return ""
    rows = [
        ((int(one.counted < one.asked), 0), [one.name, one.subject or "–", f"{one.asked:g}", f"{one.counted:g}"])
        for one in report.faults
    ]
    return _table("Faults", ["counter", "of", "asked for", "counted"], rows)


def _events(report: Report) -> str:
    if not report.events:
        return ""
    rows = "".join(
        f"<tr><td>{charts.duration((one.at_ms - report.began_ms) / 1000)}</td><td>{escape(one.kind)}</td>"
        f"<td>{escape(one.subject)}</td><td>{escape(one.text)}</td></tr>"
        for one in report.events[:ROWS]
    )
    hidden = len(report.events) - ROWS + report.left_out.get("events", 0)
    more = f'<p class="more">and {hidden} more</p>' if hidden > 0 else ""
    return f'<section><h2>What happened</h2><div class="scroll"><table>{rows}</table></div>{more}</section>'


def _facts(report: Report) -> str:
    if not report.facts:
        return ""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in report.facts.items())
    return f'<section><h2>The run</h2><div class="scroll"><table>{rows}</table></div></section>'


def _grouped(count: int) -> str:
    return f"{count:,}".replace(",", " ")  # a narrow space that does not break


def _natural(text: str) -> list[tuple[int, str]]:
    """Return the key by which ``car-2`` comes before ``car-10``."""
    return [(int(part), "") if at % 2 else (0, part) for at, part in enumerate(re.split(r"([0-9]+)", text))]
