"""A broker without sockets: connections that record what is written, commits that happen when the test says so."""

from __future__ import annotations

from collections.abc import Awaitable

from waybill.mqtt.broker import Broker
from waybill.mqtt.limits import Limits
from waybill.mqtt.reader import Reader
from waybill.mqtt.settings import Answer, Hooks, Settings
from waybill.mqtt.state import SavedState
from waybill.mqtt.testing import MemorySink

MS = 1_000_000


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(head: int, body: bytes) -> bytes:
    size, length = len(body), bytearray()
    while True:
        size, low = divmod(size, 128)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([head]) + bytes(length) + body


def connect(
    client: str | bytes = "dev",
    *,
    clean: bool = True,
    keepalive: int = 0,
    will: tuple[str | bytes, bytes, int, bool] | None = None,
    user: str | None = None,
    password: bytes | None = None,
    name: bytes = b"MQTT",
    level: int = 4,
) -> bytes:
    flags = (2 if clean else 0) | (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
    tail = text(client)
    if will is not None:
        flags |= 4 | will[2] << 3 | (0x20 if will[3] else 0)
        tail += text(will[0]) + text(will[1])
    if user is not None:
        tail += text(user)
    if password is not None:
        tail += text(password)
    return packet(0x10, text(name) + bytes([level, flags]) + keepalive.to_bytes(2, "big") + tail)


def publish(
    topic: str | bytes, payload: bytes = b"", qos: int = 0, pid: int = 0, *, dup: bool = False, retain: bool = False
) -> bytes:
    head = 0x30 | (8 if dup else 0) | qos << 1 | retain
    return packet(head, text(topic) + (pid.to_bytes(2, "big") if qos else b"") + payload)


def ack(kind: int, pid: int) -> bytes:
    return packet(kind, pid.to_bytes(2, "big"))


def puback(pid: int) -> bytes:
    return ack(0x40, pid)


def pubrec(pid: int) -> bytes:
    return ack(0x50, pid)


def pubrel(pid: int) -> bytes:
    return ack(0x62, pid)


def pubcomp(pid: int) -> bytes:
    return ack(0x70, pid)


def subscribe(*filters: tuple[str, int], pid: int = 1) -> bytes:
    return packet(0x82, pid.to_bytes(2, "big") + b"".join(text(each) + bytes([qos]) for each, qos in filters))


def unsubscribe(*filters: str, pid: int = 1) -> bytes:
    return packet(0xA2, pid.to_bytes(2, "big") + b"".join(map(text, filters)))


def suback(*codes: int, pid: int = 1) -> bytes:
    return packet(0x90, pid.to_bytes(2, "big") + bytes(codes))


def unsuback(pid: int = 1) -> bytes:
    return ack(0xB0, pid)


PING = b"\xc0\x00"
PONG = b"\xd0\x00"
DISCONNECT = b"\xe0\x00"
ACCEPTED = b"\x20\x02\x00\x00"
PRESENT = b"\x20\x02\x01\x00"


class Wire(Reader):
    """A connection whose output is a list. ``tcp``: bytes that the peer's TCP has acknowledged, None for unknown."""

    def __init__(self, rig: Rig, limits: Limits | None = None, listener: str = "") -> None:
        super().__init__(rig.broker, limits, listener)
        self.rig = rig
        self.output = bytearray()
        self.tcp: int | None = 0
        self.shut_down = False
        self.reading = True
        self.unread = 0
        self.awaited: Awaitable[Answer] | None = None

    def __call__(self, *packets: bytes) -> bytes:
        """Feed packets in one read, and return what is new in the output."""
        self.feed(b"".join(packets))
        return self.take()

    def take(self) -> bytes:
        output = bytes(self.output)
        self.output.clear()
        return output

    def peer(self) -> tuple[bytes | None, str]:
        return None, "127.0.0.1:1"

    def ask(self, answer: Awaitable[Answer]) -> None:
        self.awaited = answer

    def write(self, data: bytes) -> None:
        assert not self.shut_down
        self.output += data

    def shut(self) -> None:
        self.shut_down = True
        self.gone()

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True

    def buffered(self) -> int:
        return self.unread

    def acknowledged(self) -> int | None:
        return self.tcp

    def drop(self) -> None:
        """The connection breaks."""
        self.broker.detach(self, "connection lost")
        self.lost()
        self.gone()

    def all_acknowledged(self) -> None:
        self.tcp = self.written


class Rig:
    """A broker and its store."""

    def __init__(
        self, settings: Settings | None = None, hooks: Hooks | None = None, saved: SavedState | None = None
    ) -> None:
        self.sink = MemorySink()
        self.settings = settings or Settings()
        self.hooks = hooks or Hooks()
        self.woken = 0
        self.ids = 0
        self.broker = self._make(saved or SavedState())

    def _make(self, saved: SavedState, now: tuple[int, int] = (5_000, 1_000 * MS)) -> Broker:
        def wake() -> None:
            self.woken += 1

        def new_id() -> str:
            self.ids += 1
            return f"made-{self.ids}"

        return Broker(self.settings, self.hooks, saved, new_id=new_id, wake=wake, now=now)

    def pass_time(self, seconds: float) -> None:
        self.broker.mono_ns += int(seconds * 1e9)
        self.broker.wall_ms += int(seconds * 1e3)

    def open(self, *packets: bytes) -> Wire:
        """A connection on which CONNECT was accepted, with everything committed."""
        wire = Wire(self)
        wire.feed(b"".join(packets or (connect(),)))
        self.commit()
        return wire

    def client(self, name: str = "dev", *, clean: bool = True) -> Wire:
        wire = self.open(connect(name, clean=clean))
        assert wire.take() in (ACCEPTED, PRESENT)
        return wire

    def commit(self, error: Exception | None = None) -> None:
        """Commit what is pending, as often as that makes something pending again."""
        for _ in range(10):
            if not self.broker.pending.woken or self.broker.committing is not None:
                return  # nothing to do, or the test holds a commit under way
            self.commit_one(error)
            error = None
        raise AssertionError("commits without end")

    def commit_one(self, error: Exception | None = None) -> None:
        pending = self.broker.cut()
        if error is not None:
            self.broker.failed(pending, error)
            return
        try:
            self.sink.commit(pending.batch).send(None)
        except StopIteration:
            self.broker.committed(pending)

    def restart(self) -> None:
        """SIGKILL and a new start on what was committed."""
        try:
            self.sink.restore().send(None)
        except StopIteration as stop:
            self.broker = self._make(stop.value, (self.broker.wall_ms, self.broker.mono_ns))

    @property
    def stored(self) -> list[bytes]:
        """Payloads stored, in order."""
        return [payload for _, _, payload in self.sink.messages]
