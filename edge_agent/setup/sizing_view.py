"""How a terminal draws what a gateway needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.setup.sizing import DAY, JOURNAL, Sizing

if TYPE_CHECKING:
    from rich.console import RenderableType

_GB = 10**9


def render(found: Sizing, *, own: bool) -> RenderableType:
    """Draw it. ``own``: the messages were the user's."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    given = found.given
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    like = f"as {found.messages:,} messages of the sample" if own else "of made-up JSON; --sample FILE takes your own"
    facts.add_row(
        "messages", f"{given.rate:,.3g} a second of {given.devices} devices, {found.size:.0f} bytes each, {like}"
    )
    lasts = f"max_bytes = {given.max_bytes} lasts {_days(found.holds_days)}"
    facts.add_row("outage", f"{_days(given.outage_s / DAY)} take {_gb(found.outage_bytes)} of the buffer; {lasts}")
    share = f"{found.written_message:,.0f} bytes a message, {_gb(found.written_day)} a day"
    facts.add_row(
        "card", f"{share}: {given.tbw:g} TB are written in {found.card_years:.1f} years (gather_ms = {given.gather_ms})"
    )
    facts.add_row("", f"the file system's journal included ({JOURNAL - 1:.0%}); figures are right to about 40 %")
    facts.add_row("idle uplink", f"{found.ping_mb:.1f} MB a month for pings, every {given.ping_s} s")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="MB a month on the wire, both ways", title_justify="left")
    for heading in ("linger_ms", "messages a frame", "plain", "columns", "plain, dictionary", "columns, dictionary"):
        table.add_column(heading, justify="right")
    for each in found.traffic:
        mine = " *" if each.linger_ms == given.linger_ms else ""
        cells = (each.plain, each.columns, each.plain_dictionary, each.columns_dictionary)
        said = ("–" if cell is None else f"{cell:,.1f}" for cell in cells)
        table.add_row(f"{each.linger_ms}{mine}", f"{each.a_frame:,}", *said)
    return Group(facts, "", table, "* as configured. A metered uplink takes columns, and a dictionary where one pays.")


def _days(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * 24:.1f} hours"


def _gb(count: float) -> str:
    return f"{count / _GB:,.1f} GB" if count >= _GB / 10 else f"{count / 1e6:,.1f} MB"
