"""Charts for the page: SVG for what is drawn, HTML for what is read, so that letters keep their size on a phone. Pure.

All charts of a page have one time axis, from ``Axis.begin`` to ``Axis.end``; outages are bands, faults are marks in
each of them. A drawing is 1000 × 100 units, stretched to the place it gets.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from fleet_simulator.report.model import Event
from fleet_simulator.report.series import Line
from waybill.printable import printable

COLOURS: Final = 6
_ROWS: Final = 12
_LATENCIES: Final = (1, 10, 100, 1e3, 1e4, 6e4, 6e5, 3.6e6, 3.6e7, 8.64e7, 8.64e8, 8.64e9)


class Axis(NamedTuple):
    """The time axis: milliseconds since 1970 UTC."""

    begin: int
    end: int

    def x(self, at: int) -> float:
        """Return where a time stands, 0 … 1000."""
        return round(min(max((at - self.begin) * 1000 / max(self.end - self.begin, 1), 0), 1000), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return where labels stand, and what they say: the time since the begin."""
        seconds = max(self.end - self.begin, 1000) / 1000
        steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)
        step = next((one for one in steps if seconds / one <= 7), 86400 * math.ceil(seconds / 86400 / 7))  # noqa: PLR2004
        return [
            (self.x(self.begin + at * 1000), duration(at)) for at in range(0, int(seconds) + 1, step) if at <= seconds
        ]


class Band(NamedTuple):
    """An outage of ``subject``, from one time to another."""

    begin: int
    end: int
    subject: str
    text: str


def bands(events: Iterable[Event], end: int) -> list[Band]:
    """Return from when to when each subject was down; what never came up again lasts to the ``end``."""
    down: dict[str, Event] = {}
    found = []
    for event in events:
        if event.kind == "down":
            down.setdefault(event.subject, event)
        elif event.kind == "up" and event.subject in down:
            begin = down.pop(event.subject)
            found.append(Band(begin.at_ms, event.at_ms, event.subject, begin.text))
    found += [Band(one.at_ms, end, one.subject, one.text) for one in down.values()]
    return sorted(found)


class Drawn(NamedTuple):
    """A line to draw, by the name it has in the legend."""

    name: str
    line: Line


def chart(
    title: str,
    axis: Axis,
    drawn: Sequence[Drawn],
    outages: Sequence[Band],
    faults: Sequence[Event],
    *,
    say: Callable[[float], str] | None = None,
    log: bool = False,
) -> str:
    """Return a chart of lines, "" where there is nothing to draw. ``say``: how a value is written."""
    values = [value for one in drawn for _, value in one.line.points if value is not None]
    if not values:
        return ""
    say = say or amount
    low, high, ticks = _times_of(values) if log else _even(max(values))

    def y(value: float) -> float:
        if log:
            value = min(max(math.log10(max(value, 1)), low), high)
        return round(100 - (value - low) * 100 / (high - low), 1)

    paths = [f'<path class="l c{at % COLOURS}" d="{_path(one.line, axis, y)}"/>' for at, one in enumerate(drawn)]
    grid = "".join(f'<path class="g" d="M0 {y(tick)}H1000"/>' for tick in ticks)
    labels = "".join(f'<i class="y" style="top:{y(tick):g}%">{escape(say(tick))}</i>' for tick in ticks)
    legend = " ".join(f'<span><b class="c{at % COLOURS}"></b>{escape(one.name)}</span>' for at, one in enumerate(drawn))
    return (
        f'<figure><figcaption>{escape(title)} <span class="legend">{legend}</span></figcaption><div class="plot">'
        f"{_svg(_shades(axis, outages) + grid + ''.join(paths) + _marks(axis, faults), title)}{labels}{_times(axis)}"
        "</div></figure>"
    )


def strip(axis: Axis, outages: Sequence[Band], faults: Sequence[Event]) -> str:
    """Return what was down when, a row a subject, with the faults as numbered marks; "" where nothing happened."""
    if not (outages or faults):
        return ""
    subjects = list(dict.fromkeys(band.subject for band in outages))
    rows = []
    for subject in subjects[:_ROWS]:
        bars = "".join(
            f'<path class="down" d="M{axis.x(one.begin)} 10H{max(axis.x(one.end), axis.x(one.begin) + 1.5)}V90'
            f'H{axis.x(one.begin)}Z"><title>{escape(_when(one, axis))}</title></path>'
            for one in outages
            if one.subject == subject
        )
        rows.append(f'<div class="row"><em>{escape(subject)}</em>{_svg(bars, f"outages of {subject}")}</div>')
    if len(subjects) > _ROWS:
        rows.append(f'<p class="more">and {len(subjects) - _ROWS} more</p>')
    if faults:
        rows.append(f'<div class="row"><em>faults</em>{_svg(_marks(axis, faults), "faults")}</div>')
    return (
        '<figure><figcaption>What was down <span class="legend"><span><b class="down"></b>outage</span> '
        f'<span><b class="fault"></b>fault</span></span></figcaption><div class="strip">{"".join(rows)}'
        f'<div class="row axis"><em></em><div>{_times(axis)}</div></div></div></figure>'
    )


def duration(seconds: float) -> str:
    """Write a time since the begin: 0:07, 12:30, 3:00:00, 2 d 4 h."""
    whole = int(seconds)
    if whole >= 86400:  # noqa: PLR2004
        hours = whole % 86400 // 3600
        return f"{whole // 86400} d" + (f" {hours} h" if hours else "")
    if whole >= 3600:  # noqa: PLR2004
        return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
    return f"{whole // 60}:{whole % 60:02}"


def amount(value: float) -> str:
    """Write a number in short: 0.5, 12, 3.4 k, 12 M."""
    for limit, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{sign}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Write bytes: 3.4 kB."""
    text = amount(value)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def span(ms: float) -> str:
    """Write milliseconds: 12 ms, 1.5 s, 2 min, 3 h."""
    for limit, sign in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")):
        if ms >= limit:
            return f"{ms / limit:.2g} {sign}" if ms < 10 * limit else f"{ms / limit:.0f} {sign}"
    return f"{ms:.3g} ms"


def _even(most: float) -> tuple[float, float, list[float]]:
    rough = max(most, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    count = max(1, math.ceil(most / step))
    return 0.0, step * count, [step * at for at in range(count + 1)]


def _times_of(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Return the ends of a logarithmic axis of milliseconds, as powers of ten, and its ticks."""
    low = max((tick for tick in _LATENCIES if tick <= min(values)), default=_LATENCIES[0])
    high = min((tick for tick in _LATENCIES if tick >= max(values) and tick > low), default=_LATENCIES[-1])
    return math.log10(low), math.log10(high), [tick for tick in _LATENCIES if low <= tick <= high]


def _path(line: Line, axis: Axis, y: Callable[[float], float]) -> str:
    words: list[str] = []
    pen, alone = "M", False  # a point between two holes is seen, too
    for at, value in [*line.points, (0, None)]:
        if value is None:
            words += ["h2"] if alone else []
            alone = False
            pen = "M"
            continue
        alone = pen == "M"
        words.append(f"{pen}{axis.x(at):g} {y(value):g}")
        pen = "L"
    return "".join(words)


def _shades(axis: Axis, outages: Sequence[Band]) -> str:
    return "".join(
        f'<path class="band" d="M{axis.x(one.begin)} 0H{max(axis.x(one.end), axis.x(one.begin) + 1)}V100'
        f'H{axis.x(one.begin)}Z"><title>{escape(_when(one, axis))}</title></path>'
        for one in _united(outages)
    )


def _united(outages: Sequence[Band]) -> list[Band]:
    """Return when anything was down: shades of many that lie on each other would hide what is drawn over them."""
    found: list[Band] = []
    for one in outages:
        last = found[-1] if found else None
        if last is None or one.begin > last.end:
            found.append(one)
        else:
            found[-1] = Band(last.begin, max(last.end, one.end), "several", "each is in the chart of what was down")
    return found


def _marks(axis: Axis, faults: Sequence[Event]) -> str:
    return "".join(
        f'<path class="fault" d="M{axis.x(one.at_ms)} 0V100"><title>'
        f"{escape(f'{duration((one.at_ms - axis.begin) / 1000)} {one.subject}: {one.text}')}</title></path>"
        for one in faults
    )


def _when(band: Band, axis: Axis) -> str:
    begin, end = (duration((at - axis.begin) / 1000) for at in (band.begin, band.end))
    return f"{begin} to {end} {band.subject}: {band.text}"


def _svg(inside: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">{inside}</svg>'
    )


def _times(axis: Axis) -> str:
    return "".join(f'<i class="x" style="left:{x / 10:g}%">{text}</i>' for x, text in axis.ticks())


def escape(text: str) -> str:
    """Return ``text`` as HTML, with what cannot be printed written as Python would."""
    return html.escape(printable(text))
