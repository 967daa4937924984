"""Valid packets of every type and version, drawn at random, and what a mutator makes of them."""

from __future__ import annotations

from random import Random

from tests.unit.mqtt import rig, v5

NAMES = ("a", "b", "c", "d", "")
TOPICS = ("a", "a/b", "a/b/c", "ä/ö", "$x/y", "/", "a//b", "x" * 130)
FILTERS = ("a", "a/b", "a/+", "a/#", "#", "+/+", "$x/#", "$share/g/a/#", "$share/h/+", "x/+/y/#")
PAYLOADS = (b"", b"1", b"payload", b"\0\xff" * 40, b"p" * 200, b"q" * 5_000)
REASONS = (0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x92, 0x97, 0x99, 0x04)
EDGES = (0, 1, 2, 3, 4, 5, 0x10, 0x20, 0x26, 0x30, 0x32, 0x34, 0x3A, 0x62, 0x7F, 0x80, 0x82, 0xC0, 0xE0, 0xFE, 0xFF)
"""Bytes that mean something somewhere."""

LENGTHS = (b"\xff\xff\xff\xff\x01", b"\x80\x80\x80\x00", b"\xff\xff\xff\x7f", b"\x80\0")
"""Remaining lengths that are too long, not as short as can be, or more than anybody takes."""

Fields = tuple[bytes, ...]


class Corpus:
    """Valid packets of one protocol level (3, 4 or 5)."""

    def __init__(self, chance: Random, level: int) -> None:
        self.chance = chance
        self.level = level

    def connect(self) -> bytes:
        """A CONNECT."""
        pick, some = self.chance.choice, self.chance.random
        name = pick(NAMES)
        clean = some() < 0.5 or not name
        user, password = pick(((None, None), ("u", None), ("u", b"secret")))
        will = None
        if some() < 0.5:
            will = (pick(TOPICS), pick(PAYLOADS), self.chance.randint(0, 2), some() < 0.3)
        keepalive = pick((0, 1, 60, 65_535))
        if self.level < 5:
            protocol = b"MQIsdp" if self.level == 3 else b"MQTT"
            return rig.connect(
                name or (b"" if clean else b"e"), clean=clean, keepalive=keepalive, will=will, user=user,
                password=password, name=protocol, level=self.level,
            )  # fmt: skip
        said = self._properties(
            (
                v5.expiry(pick((0, 1, 100, 0xFFFFFFFF))),
                v5.receive_maximum(pick((1, 2, 65_535))),
                v5.max_packet(pick((30, 200, 2**28))),
                v5.alias_maximum(pick((0, 1, 10))),
                b"\x17\x00",
                b"\x19\x01",
                v5.user("k", "v"),
            )
        )
        of_will = self._properties((v5.delay(pick((0, 1, 50))), v5.expires(5), v5.CONTENT, v5.user("k", "v")))
        return v5.connect(
            name, said, clean=clean, keepalive=keepalive, will=(*will, of_will) if will else None, user_name=user,
            password=password,
        )  # fmt: skip

    def packet(self) -> bytes:
        """Any packet, PUBLISH and SUBSCRIBE more often than others."""
        kind = self.chance.choices(range(9), (8, 4, 1, 4, 1, 1, 1, 0.3, 1))[0]
        make = (
            self._publish, self._subscribe, self._unsubscribe, self._ack, self._ping, self._disconnect, self.connect,
            self._auth, self._of_a_server,
        )  # fmt: skip
        return make[kind]()

    def _properties(self, fields: Fields) -> bytes:
        return b"".join(each for each in fields if self.chance.random() < 0.3)

    def _pid(self) -> int:
        return self.chance.choice((1, 1, 1, 2, 3, 4, 255, 65_535))

    def _publish(self) -> bytes:
        pick = self.chance.choice
        qos = self.chance.randint(0, 2)
        topic, payload, pid = pick(TOPICS), pick(PAYLOADS), self._pid()
        dup, retain = qos > 0 and self.chance.random() < 0.2, self.chance.random() < 0.2
        if self.level < 5:
            return rig.publish(topic, payload, qos, pid, dup=dup, retain=retain)
        said = self._properties(
            (
                v5.expires(pick((0, 1, 1000))),
                v5.alias(pick((1, 2, 32))),
                v5.FORMAT,
                v5.CONTENT,
                v5.RESPONSE,
                v5.CORRELATION,
                v5.user("name", "value"),
            )
        )
        return v5.publish(topic, payload, qos, pid, said, dup=dup, retain=retain)

    def _subscribe(self) -> bytes:
        some = self.chance.sample(FILTERS, self.chance.randint(1, 3))
        if self.level < 5:
            return rig.subscribe(*((each, self.chance.randint(0, 2)) for each in some), pid=self._pid())
        said = self._properties((v5.identifier(self.chance.choice((1, 127, 128, 268_435_455))), v5.user("k", "v")))
        wanted = [
            (each, self.chance.randint(0, 2) | self.chance.choice((0, 8, 16, 32, 0 if each[0] == "$" else 4)))
            for each in some
        ]
        return v5.subscribe(*wanted, pid=self._pid(), properties=said)

    def _unsubscribe(self) -> bytes:
        some = self.chance.sample(FILTERS, self.chance.randint(1, 3))
        return (rig.unsubscribe if self.level < 5 else v5.unsubscribe)(*some, pid=self._pid())

    def _ack(self) -> bytes:
        kind = self.chance.choice((0x40, 0x50, 0x62, 0x70))
        if self.level < 5 or self.chance.random() < 0.7:
            return rig.ack(kind, self._pid())
        reason = self.chance.choice(REASONS)
        if self.chance.random() < 0.5:
            return v5.ack(kind, self._pid(), reason)
        said = v5.block(b"\x1f" + rig.text("why") + v5.user("k", "v"))
        return rig.packet(kind, self._pid().to_bytes(2, "big") + bytes([reason]) + said)

    def _ping(self) -> bytes:
        return rig.PING

    def _disconnect(self) -> bytes:
        if self.level < 5 or self.chance.random() < 0.5:
            return rig.DISCONNECT
        return v5.disconnect(self.chance.choice(REASONS), self._properties((v5.expiry(5), v5.user("k", "v"))))

    def _auth(self) -> bytes:
        return rig.packet(0xF0, b"" if self.chance.random() < 0.5 else b"\x18" + v5.block(b"\x15" + rig.text("PLAIN")))

    def _of_a_server(self) -> bytes:
        return self.chance.choice((rig.ACCEPTED, rig.suback(0, 1), rig.unsuback(), rig.PONG, v5.unsuback(0)))


def mutate(chance: Random, packet: bytes, other: bytes) -> bytes:
    """Change a packet in one to three places; ``other`` is one to take pieces from.

    In most cases the remaining length is then made right, so that what follows is still read as packets.
    """
    at = 1
    while packet[at] & 0x80:
        at += 1
    head, body = packet[0], bytearray(packet[at + 1 :])
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        match chance.randrange(6):
            case 0:
                head ^= 1 << chance.randrange(8)
            case 1:
                head = chance.randrange(1, 16) << 4 | head & 0xF
            case 2 | 3 if body:
                _replace(chance, body)
            case _:
                _shift(chance, body, other)
    made = rig.packet(head, bytes(body))
    if chance.random() < 0.04:
        return made[:1] + chance.choice(LENGTHS) + made[2:]
    if chance.random() < 0.08:
        return made[:1] + bytes([chance.randrange(128)]) + made[2:]
    return made


def _replace(chance: Random, body: bytearray) -> None:
    """Change bytes in their places."""
    where = chance.randrange(len(body))
    match chance.randrange(4):
        case 0:
            body[where] ^= 1 << chance.randrange(8)
        case 1:
            body[where] = chance.choice(EDGES)
        case 2:
            body[where] = chance.randrange(256)
        case _:  # a length
            body[where : where + 2] = chance.choice((b"\0\0", b"\xff\xff", b"\0\1", b"\1\0"))


def _shift(chance: Random, body: bytearray, other: bytes) -> None:
    """Delete or insert bytes."""
    where = chance.randrange(len(body) + 1)
    match chance.randrange(4):
        case 0:
            del body[where : where + chance.choice((1, 1, 2, 4, len(body)))]
        case 1:
            body[where:where] = bytes(chance.choices(EDGES, k=chance.choice((1, 1, 2, 4, 200))))
        case 2:
            body[where:where] = body[where : where + chance.randint(1, 12)]
        case _:
            begin = chance.randrange(len(other))
            body[where:where] = other[begin : begin + chance.randint(1, 20)]


def cut(chance: Random, stream: bytes) -> list[bytes]:
    """Cut a stream at any bytes."""
    ends = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.choice((0, 0, 0, 1, 2, 5))))
    return [piece for begin, end in zip([0, *ends], [*ends, len(stream)], strict=True) if (piece := stream[begin:end])]
