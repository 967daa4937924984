"""The report as JUnit XML: a suite with a test case for each check; for CI servers that show such files. Pure.

After the schema that Jenkins' and others' readers share: ``testsuites/testsuite/testcase`` with ``failure`` or
``skipped``. A check that is INCONCLUSIVE is a failure of the type ``INCONCLUSIVE``: CI must not take it for a success.
"""

from __future__ import annotations

import datetime as dt
import re
from xml.sax.saxutils import escape, quoteattr

from fleet_simulator.checks import Check
from fleet_simulator.report.model import Report

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """Return the XML."""
    failures = sum(check.outcome != "PASS" for check in report.checks)
    name = f"waybill.fleet.{report.scenario or 'run'}"
    seconds = (report.ended_ms - report.began_ms) / 1000
    began = dt.datetime.fromtimestamp(report.began_ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    counts = f'tests="{len(report.checks)}" failures="{failures}" errors="0" time="{seconds:.3f}"'
    cases = "".join(_case(name, check) for check in report.checks)
    where = f'id="0" package="waybill.fleet" name={_attribute(name)} timestamp="{began}" hostname="localhost"'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n'
        f"<testsuite {where} {counts}>\n"
        f"<properties>{_properties(report)}</properties>\n{cases}<system-out>{_text(report.line)}</system-out>\n"
        "<system-err></system-err>\n</testsuite>\n</testsuites>\n"
    )


def _case(suite: str, check: Check) -> str:
    begin = f'<testcase classname={_attribute(suite)} name={_attribute(check.title)} time="0"'
    if check.outcome == "PASS":
        return f"{begin}/>\n"
    words = "\n".join([check.text, *check.findings])
    return (
        f"{begin}><failure type={_attribute(check.outcome)} message={_attribute(check.text)}>{_text(words)}</failure>"
        "</testcase>\n"
    )


def _properties(report: Report) -> str:
    return "".join(
        f"<property name={_attribute(name)} value={_attribute(value)}/>" for name, value in report.facts.items()
    )


def _text(text: str) -> str:
    return escape(_NOT_XML.sub("?", text))


def _attribute(text: str) -> str:
    return quoteattr(_NOT_XML.sub("?", text), {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"})
