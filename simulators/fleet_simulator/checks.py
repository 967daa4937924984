"""The checks of a run, each PASS, FAIL or INCONCLUSIVE, and what they come to. Pure.

One FAIL makes the run FAIL. Else one INCONCLUSIVE makes it INCONCLUSIVE: nothing was found wrong, but something that
the scenario set out to show was not shown, because a fault did not happen, a message is still under way or the runner
did not live to the end. Only what was shown whole is a PASS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from fleet_simulator.accounts import LaneAudit
from fleet_simulator.ledger import Asked, Command, Counted, Torn
from fleet_simulator.verdict import EXAMPLES, Verdict

Word = Literal["PASS", "FAIL", "INCONCLUSIVE"]

EXIT_CODES: Final[dict[Word, int]] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}
"""What a process ends with. 2 is left to what has to be mended before anything can be judged."""


COMMANDS: Final = 1_000_000
"""Commands that are known one by one."""


class Check(msgspec.Struct, frozen=True):
    """One check. ``text``: what was found, in one line; ``findings``: the first ones, in words."""

    name: str
    title: str
    outcome: Word
    text: str
    findings: tuple[str, ...] = ()


class Commands(msgspec.Struct, frozen=True):
    """What became of the commands; counts of commands.

    ``done``: the vehicle acted once and its answer came back. ``expired``: the deployment says that it expired or was
    rejected, and the vehicle acted once at most. ``twice``: acted on more than once. ``without``: said to be done, and
    the vehicle never acted. ``unanswered``: nothing is said of how it ended.
    """

    sent: int = 0
    done: int = 0
    expired: int = 0
    twice: int = 0
    without: int = 0
    unanswered: int = 0
    examples: tuple[str, ...] = ()


class Counter(msgspec.Struct, frozen=True):
    """A fault that the scenario asks for, and how often it is known to have happened."""

    name: str
    subject: str
    asked: float
    counted: float


def outcome(checks: Iterable[Check]) -> Word:
    """Return what the checks come to."""
    words = {check.outcome for check in checks}
    return "FAIL" if "FAIL" in words else "INCONCLUSIVE" if "INCONCLUSIVE" in words else "PASS"


class Sent:
    """What is known of the commands of a run, a few words each; of those beyond ``COMMANDS`` how many there were."""

    def __init__(self) -> None:
        """Start with none."""
        self._known: dict[str, _Known] = {}
        self._beyond = 0

    def take(self, item: Command) -> None:
        """Note what happened to a command."""
        known = self._known.get(item.command)
        if known is None:
            if len(self._known) >= COMMANDS:
                self._beyond += item.state == "sent"
                return
            known = self._known[item.command] = _Known(item.vehicle)
        if item.state == "sent":
            known.sent = True
        elif item.state == "acted":
            known.acted += 1
        else:
            known.state = item.state

    def effects(self) -> Commands:
        """Return what became of them. Those that are not known one by one count as unanswered."""
        counts = dict.fromkeys(("done", "expired", "twice", "without", "unanswered"), 0)
        examples: list[str] = []
        sent = 0
        for command, known in self._known.items():
            if not known.sent:
                continue
            sent += 1
            kind = known.kind
            counts[kind] += 1
            if kind not in {"done", "expired"} and len(examples) < EXAMPLES:
                ended = known.state or "never answered"
                examples.append(f"command {command} to {known.vehicle}: acted on {known.acted} times, {ended}")
        counts["unanswered"] += self._beyond
        return Commands(sent=sent + self._beyond, examples=tuple(examples), **counts)


class _Known:
    __slots__ = ("acted", "sent", "state", "vehicle")

    def __init__(self, vehicle: str) -> None:
        self.vehicle = vehicle
        self.sent = False
        self.acted = 0
        self.state = ""

    @property
    def kind(self) -> str:
        if self.acted > 1:
            return "twice"
        if self.state in {"expired", "rejected"}:
            return "expired"
        if self.state == "done":
            return "done" if self.acted else "without"
        return "unanswered"


def counters(asked: Iterable[Asked], counted: Iterable[Counted]) -> tuple[Counter, ...]:
    """Return each fault asked for, with what its counter came to."""
    there = {(one.counter, one.subject): one.value for one in counted}
    return tuple(
        Counter(one.counter, one.subject, one.at_least, there.get((one.counter, one.subject), 0.0)) for one in asked
    )


def checks(
    verdict: Verdict,
    audits: Sequence[LaneAudit] | None,
    effects: Commands,
    faults: Sequence[Counter],
    *,
    ended: bool,
    torn: Torn | None,
) -> tuple[Check, ...]:
    """Return all checks of a run.

    ``audits``: None where there is no ledger of the cloud's to ask. ``ended``: the runner saw the run to its end, and
    waited for what was under way; else what is missing may still come.
    """
    found = [
        _messages(verdict, "lost", "Every acknowledged message is in its topic, or declared lost", proven=ended),
        _messages(verdict, "duplicated", "None is there twice"),
        _messages(verdict, "out_of_order", "Each vehicle's stream is in order"),
        _messages(verdict, "misplaced", "Each stream is in one partition, under its vehicle's key"),
        _messages(verdict, "unknown", "Nothing is there that no vehicle has published"),
    ]
    if audits is not None:
        found += [
            _messages(verdict, "reused", "Each ce_id names one message"),
            _messages(verdict, "disagreeing", "What gateways and cloud declare is what is missing"),
        ]
        if pending := sum(one.pending for one in audits if not one.gateway.startswith("node:")):
            text = f"{pending} messages are pending by the audit: wait for the link, or drain longer"
            found.append(Check("drained", "Everything has arrived", "INCONCLUSIVE", text))
    if effects.sent:
        found.append(_commands(effects, ended=ended))
    if faults:
        found.append(_faults(faults))
    found.append(_ledger(verdict, ended=ended, torn=torn))
    return tuple(found)


def _messages(verdict: Verdict, name: str, title: str, *, proven: bool = True) -> Check:
    count: int = getattr(verdict, name)
    text = f"{count} {name.replace('_', ' ')}"
    if name == "lost":
        text += f"; {verdict.published} published, {verdict.acked} acknowledged, {verdict.delivered} delivered"
        text += f", {verdict.declared} declared lost" if verdict.declared else ""
        text += "" if proven or not count else "; missing so far, the run was not seen to its end"
    word: Word = "PASS" if not count else "FAIL" if proven else "INCONCLUSIVE"
    return Check(name, title, word, text, verdict.findings.get(name, ()))


def _commands(effects: Commands, *, ended: bool) -> Check:
    wrong = effects.twice + effects.without + effects.unanswered
    text = f"{effects.done} of {effects.sent} done, {effects.expired} expired" + (f", {wrong} wrong" if wrong else "")
    title = "Each command had its effect once, and was answered"
    word: Word = "PASS" if not wrong else "FAIL" if effects.twice or ended else "INCONCLUSIVE"
    return Check("commands", title, word, text, effects.examples)


def _faults(faults: Sequence[Counter]) -> Check:
    absent = [one for one in faults if one.counted < one.asked]
    findings = tuple(f"{one.name} of {one.subject}: {one.counted:g}, asked for {one.asked:g}" for one in absent)
    text = f"{len(faults) - len(absent)} of {len(faults)} are known to have happened"
    word: Word = "INCONCLUSIVE" if absent else "PASS"
    return Check("faults", "The faults that the scenario asks for happened", word, text, findings[:EXAMPLES])


def _ledger(verdict: Verdict, *, ended: bool, torn: Torn | None) -> Check:
    findings = []
    if not ended:
        findings.append("the runner did not live to the end of the run: what it did last may not be noted")
    if torn is not None:
        findings.append(
            f"the ledger ends with {torn.size} bytes, from offset {torn.offset} on, that are no whole block"
        )
    if not verdict.acked:
        findings.append("no message was acknowledged: nothing is proven")
    text = "; ".join(findings) or "the run came to its end, and its ledger is whole"
    return Check("ledger", "The run is known whole", "INCONCLUSIVE" if findings else "PASS", text, tuple(findings))
