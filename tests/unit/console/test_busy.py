"""What is shown while a command works: on a terminal alone."""

import os
import pty
import subprocess
import sys

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
