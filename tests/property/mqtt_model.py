"""What a server owes each client, as the standards say it: a small model of sessions, wills and time.

What happens is durable at once.

Times are whole seconds. Section numbers are those of MQTT 5.0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NEVER = 0xFFFFFFFF
INFLIGHT = 3
"""What the server under test has in flight to one client, at most."""


@dataclass
class Entry:
    """A message of QoS 1 or 2 for a session. ``sent``: or perhaps sent; ``open``: on the present connection."""

    n: int
    payload: bytes
    qos: int
    expires: int | None
    sent: bool = False
    open: bool = False
    received: bool = False


@dataclass
class Will:
    payload: bytes
    delay: int


@dataclass
class Session:
    """The state of a client id. ``window``: what its connection takes at a time; None: it has no connection."""

    name: str
    expiry: int
    window: int | None = None
    subscriptions: dict[str, int] = field(default_factory=dict)
    due: list[Entry] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    will: Will | None = None
    ends: int | None = None
    will_at: int | None = None
    count: int = 0


@dataclass(frozen=True)
class Sent:
    """A PUBLISH that a client must get now. ``left``: its message expiry."""

    payload: bytes
    qos: int
    dup: bool
    left: int | None


def matches(pattern: str, topic: str) -> bool:
    """Say whether a filter of at most two levels matches a topic."""
    wanted, given = pattern.split("/"), topic.split("/")
    return len(wanted) == len(given) and all(a in ("+", b) for a, b in zip(wanted, given, strict=True))


class Model:
    """All sessions. ``sent``, ``released``: what is on its way to each client; ``stored``: every message, in order."""

    def __init__(self) -> None:
        self.now = 0
        self.sessions: dict[str, Session] = {}
        self.stored: list[bytes] = []
        self.sent: dict[str, list[Sent]] = {}
        self.released: dict[str, list[bytes]] = {}

    # -- connections ---------------------------------------------------------------------------------------------

    def connect(self, name: str, expiry: int, window: int, will: Will | None, *, clean: bool) -> bool:
        """CONNECT; says whether a session is present."""
        old, last = self.sessions.get(name), None
        if old is not None and old.window is not None:
            last = old.will
            self.lose(name)  # 3.1.4-3: take-over
            old = self.sessions.get(name)
        if old is not None and clean:
            self._end(old)
            old = None
        session = self.sessions.setdefault(name, Session(name, expiry))
        session.expiry, session.window, session.will = expiry, min(window, INFLIGHT), will
        session.ends = session.will_at = None
        self.sent[name], self.released[name] = [], []
        if last is not None and not last.delay and old is not None and self._granted(old, f"w/{name}") == 0:
            self.sent[name].append(Sent(last.payload, 0, dup=False, left=None))  # it comes after the take-over
        for each in session.due:
            each.open = False
        for each in session.due:
            if each.received:
                each.open = True
                self.released[name].append(each.payload)
            elif each.sent:
                self.pump(session)
        self.pump(session)
        return old is not None

    def lose(self, name: str, *, will: bool = True) -> None:
        """The connection ends; ``will``: it counts."""
        session = self.sessions[name] = self.sessions.pop(name)  # now the last one whose connection has ended
        last, session.window = session.will, None
        session.will = last if will else None
        if not session.expiry:
            self._end(session)
            return
        session.ends = None if session.expiry == NEVER else self.now + session.expiry
        if session.will is not None:
            session.will_at = self.now + session.will.delay
            if not session.will.delay:
                self._fire(session)

    def disconnect(self, name: str, expiry: int | None, *, will: bool) -> None:
        """DISCONNECT, with another session expiry or None; ``will``: reason code 0x04."""
        if expiry is not None:
            self.sessions[name].expiry = expiry
        self.lose(name, will=will)

    def second(self) -> None:
        """A second passes. Sessions end before wills are looked at, each in the order in which connections ended."""
        self.now += 1
        for session in [each for each in self._absent() if each.ends is not None and each.ends <= self.now]:
            self._end(session)
        for session in [each for each in self._absent() if each.will_at is not None and each.will_at <= self.now]:
            self._fire(session)

    def restart(self) -> None:
        """SIGKILL and a new start: no wills, and connections ended now (see docs/mqtt-conformance.md)."""
        for session in list(self.sessions.values()):
            if not session.expiry:
                del self.sessions[session.name]
                continue
            if session.window is not None:
                session.ends = None if session.expiry == NEVER else self.now + session.expiry
            session.window = session.will = session.will_at = None
            for each in sorted(session.due, key=lambda entry: entry.n)[:INFLIGHT]:
                each.sent = True
            session.due.sort(key=lambda entry: not entry.received)

    def _absent(self) -> list[Session]:
        return [each for each in self.sessions.values() if each.window is None]

    def _end(self, session: Session) -> None:
        del self.sessions[session.name]
        if session.will is not None:
            self._fire(session)

    def _fire(self, session: Session) -> None:
        """3.1.2.5: the will is published, once."""
        will, session.will, session.will_at = session.will, None, None
        assert will is not None
        self.publish(f"w/{session.name}", will.payload, 1, None)

    # -- messages ------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, qos: int, expiry: int | None) -> None:
        """A message is stored, and owed to all who subscribed."""
        self.stored.append(payload)
        expires = None if expiry is None else self.now + expiry
        for session in self.sessions.values():
            lower = min(qos, self._granted(session, topic))
            if lower < 0:
                continue
            if lower:
                session.count += 1
                session.due.append(Entry(session.count, payload, lower, expires))
                self.pump(session)
            elif session.window is not None and expiry != 0:
                self.sent[session.name].append(Sent(payload, 0, dup=False, left=expiry))

    @staticmethod
    def _granted(session: Session, topic: str) -> int:
        """The highest QoS that a session's subscriptions give a topic; -1 for none."""
        return max((q for pattern, q in session.subscriptions.items() if matches(pattern, topic)), default=-1)

    def pump(self, session: Session) -> None:
        """Send what the Receive Maximum allows (3.3.4), in order; what has expired unsent is dropped (3.3.2.3.3)."""
        if session.window is None:
            return
        for each in list(session.due):
            if each.open:
                continue
            if sum(one.open for one in session.due) >= session.window:
                return
            if each.expires is not None and each.expires <= self.now and not each.sent:
                session.due.remove(each)
                continue
            left = None if each.expires is None else max(0, each.expires - self.now)
            self.sent[session.name].append(Sent(each.payload, each.qos, each.sent, left))
            each.sent = each.open = True

    def find(self, name: str, payload: bytes) -> Entry:
        """What a client has in hand."""
        return next(each for each in self.sessions[name].due if each.payload == payload and each.open)

    def done(self, name: str, payload: bytes) -> None:
        """PUBACK, PUBCOMP, or a PUBREC that refuses."""
        session = self.sessions[name]
        session.due.remove(self.find(name, payload))
        self.pump(session)

    def received(self, name: str, payload: bytes) -> None:
        """PUBREC."""
        self.find(name, payload).received = True
        self.released[name].append(payload)
