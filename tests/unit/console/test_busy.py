"""What is shown on a terminal alone."""

import io
import os
import pty
import re
import subprocess
import sys

from rich.console import Console

from edge_agent.setup.finding import Finding, row

SCRIPT = """
import sys
from waybill.console.busy import busy, counted
with busy("reading the ledger"):
    pass
with counted("acknowledged", 10) as draw:
    draw(7)
print("done")
"""


def said(stderr: int) -> str:
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, timeout=60, check=True)
    assert done.stdout == b"done\n"
    return (done.stderr or b"").decode()


def test_a_finding_fits_a_terminal_between_words() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, no_color=True)
    console.print(row(Finding("clock", "warning", "no NTP client vouches for it " * 4, "here", "chrony " * 12)))
    lines = [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in out.getvalue().splitlines()]
    assert lines[0].startswith("warning  clock       here: no NTP client")
    assert len(lines) > 3
    assert all(len(line) <= 80 and line.startswith(" " * 21) for line in lines[1:])
    assert {line.split()[-1] for line in lines} <= {"no", "NTP", "client", "vouches", "for", "it", "chrony"}


def test_nothing_into_a_pipe() -> None:
    assert said(subprocess.PIPE) == ""


def test_on_a_terminal_what_goes_on_and_how_far() -> None:
    ours, theirs = pty.openpty()
    try:
        said(theirs)
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert "reading the ledger" in shown
    assert "7/10" in shown
