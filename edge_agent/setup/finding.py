"""What a step of ``waybill edge check`` has found, and how it is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from rich.table import Table

Verdict = Literal["ok", "warning", "failed", "skipped"]

_STYLES: Final = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


class Finding(msgspec.Struct, frozen=True):
    """One step. ``about``: which uplink, listener or file, or empty. ``mend``: what to do; empty where nothing is.

    ``skipped``: not tried, because of a step before it that failed; or because it cannot be.
    """

    step: str
    verdict: Verdict
    text: str
    about: str = ""
    mend: str = ""


class Report(msgspec.Struct, frozen=True):
    """All steps, in order. ``verdict``: the worst of them."""

    verdict: Verdict
    steps: tuple[Finding, ...]


def report(findings: list[Finding]) -> Report:
    """Sum up."""
    found = {finding.verdict for finding in findings}
    return Report("failed" if "failed" in found else "warning" if "warning" in found else "ok", tuple(findings))


def row(finding: Finding) -> Table:
    """Return a step as a person reads it on a terminal: lines end between words, below each other."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=8)
    grid.add_column(width=11)
    grid.add_column(overflow="fold")
    about = f"{finding.about}: " if finding.about else ""
    said = Text(about + finding.text)
    if finding.mend:
        said.append(f"\n{finding.mend}", "bold")
    grid.add_row(Text(finding.verdict, _STYLES[finding.verdict]), finding.step, said)
    return grid


def line(finding: Finding) -> str:
    """Return a step as one line, and one for the mend, in rich's markup: for what is not a terminal."""
    from rich.markup import escape

    style = _STYLES[finding.verdict]
    about = f"{finding.about}: " if finding.about else ""
    said = f"[{style}]{finding.verdict:8}[/] {finding.step:11} {escape(about + finding.text)}"
    return f"{said}\n{'':20} [bold]{escape(finding.mend)}[/]" if finding.mend else said
