"""The ledger of a run: what the vehicles published and saw acknowledged, and what was done to the deployment.

One file, written by one process, only ever appended to, outside of all that faults touch. A process that is killed
leaves what it had written (a block each 0.2 s, and where 64 KiB are together); half a block at the end is told, and
not read. Memory grows with vehicles and streams, not with messages. On the disk a call takes 24 bytes at most; calls
that go on where the one before of the same vehicle and stream ended share them. A message's content takes 2 more.

The file is a sequence of blocks::

    WBL1 | CRC-32 of the rest | bytes of ranges | bytes of items | ranges | items         little endian, 4 × 4 bytes
    a range: stream × 2 + (0 published, 1 acked) | count | first | at_ns                    4, 4, 8, 8 bytes
    items: a MessagePack array of arrays; the first field of each is its name

Streams, each of one vehicle, are numbered in the order in which they are first named. All times are nanoseconds since
1970 UTC of the runner's clock, as ``time.time_ns`` has them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec

from waybill.errors import ConfigError, Corrupt, Unavailable

PUBLISHED: Final = 0
ACKED: Final = 1

HIGHEST: Final = 1 << 40
"""The highest number that a message may have."""

_HEADER: Final = Struct("<4sIII")
_RANGE: Final = Struct("<IIQQ")
_MAGIC: Final = b"WBL1"
_BLOCK: Final = 64 << 10
_OPEN: Final = 4096
_WAIT: Final = 200_000_000
_MOST: Final = 0xFFFF_FFFF


class Stream(msgspec.Struct, frozen=True, array_like=True, tag="stream"):
    """A vehicle's stream gets the number that ranges name it by."""

    number: int
    vehicle: str
    stream: str


class Content(msgspec.Struct, frozen=True, array_like=True, tag="content"):
    """Digests (:func:`digest`) of the messages of a stream from ``first`` on, one after the other."""

    number: int
    first: int
    digests: bytes


class Behind(msgspec.Struct, frozen=True, array_like=True, tag="behind"):
    """``vehicle`` speaks to ``gateway``; said again where it moves."""

    vehicle: str
    gateway: str


class About(msgspec.Struct, frozen=True, array_like=True, tag="about"):
    """A fact of the run, see :meth:`Ledger.about`."""

    name: str
    value: msgspec.Raw


class Note(msgspec.Struct, frozen=True, array_like=True, tag="note"):
    """Something happened, see :meth:`Ledger.note`."""

    at_ns: int
    kind: str
    subject: str
    text: str


class Sample(msgspec.Struct, frozen=True, array_like=True, tag="sample"):
    """A value at a time, for the charts, see :meth:`Ledger.sample`."""

    at_ns: int
    name: str
    subject: str
    value: float


class Asked(msgspec.Struct, frozen=True, array_like=True, tag="asked"):
    """The scenario wants ``counter`` of ``subject`` to come to ``at_least``."""

    counter: str
    subject: str
    at_least: float


class Counted(msgspec.Struct, frozen=True, array_like=True, tag="counted"):
    """``counter`` of ``subject`` is at ``value`` now; the last one counts."""

    counter: str
    subject: str
    value: float


class Command(msgspec.Struct, frozen=True, array_like=True, tag="command"):
    """What happened to a command: ``sent``, ``acted`` (once each time the vehicle acted on it), or its final state."""

    at_ns: int
    command: str
    vehicle: str
    state: str


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """The run came to its end; without it the runner did not live to see it."""


class Torn(msgspec.Struct, frozen=True, array_like=True, tag="torn"):
    """Never written: the file ends with ``size`` bytes, from ``offset`` on, that are no whole block."""

    offset: int
    size: int


Item = Stream | Content | Behind | About | Note | Sample | Asked | Counted | Command | End | Torn

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Item]).decode


def digest(payload: bytes) -> bytes:
    """Return the 2 bytes by which a message's content is known again: of CRC-32, and never zero."""
    return (zlib.crc32(payload) & 0xFFFF or 1).to_bytes(2, "little")


class Ledger:
    """Writes the ledger. Used by one thread; a context manager.

    Every method raises Unavailable where the disk does not take it: without its ledger a run proves nothing.
    """

    def __init__(self, path: Path) -> None:
        """Make the file. Raises ConfigError where it is there already or cannot be made."""
        self.path = path
        try:
            self._file: BinaryIO = path.open("xb", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"ledger {path}: cannot be made: {error.strerror}; name a directory of its own"
            ) from error
        self._streams: dict[tuple[str, str], int] = {}
        self._open: dict[int, tuple[int, int, int]] = {}  # by tag: a range that may grow: first, next, at_ns
        self._content: dict[int, tuple[int, bytearray]] = {}  # by stream: digests that may grow
        self._ranges = bytearray()
        self._items: list[Item] = []
        self._written_at = 0

    # -- messages --

    def published(
        self, vehicle: str, stream: str, first: int, last: int, at_ns: int, content: bytes | bytearray = b""
    ) -> None:
        """Note that ``vehicle`` has given its messages ``first`` to ``last`` of ``stream`` to its MQTT client.

        Before they can be acknowledged. ``content``: their digests, or nothing, and then it is not compared. Raises
        ValueError where these are no numbers from 1 on.
        """
        if content:
            number = self._tag(vehicle, stream) >> 1
            run = self._content.get(number)
            if run is not None and run[0] + len(run[1]) // 2 == first:
                run[1].extend(content)
            else:
                if run is not None:
                    self._items.append(Content(number, run[0], bytes(run[1])))
                self._content[number] = first, bytearray(content)
        self._range(PUBLISHED, vehicle, stream, first, last, at_ns)

    def acked(self, vehicle: str, stream: str, first: int, last: int, at_ns: int) -> None:
        """Note that the PUBACKs (QoS 2: PUBCOMPs) of the messages ``first`` to ``last`` came. Raises ValueError."""
        self._range(ACKED, vehicle, stream, first, last, at_ns)

    # -- what else happens --

    def about(self, facts: Mapping[str, object]) -> None:
        """Note facts of the run; said again, a fact is replaced.

        What the verdict and the report use of them:

        ``scenario``, ``seed``: for the title. ``topics``: names of those to read back. ``source``: the arguments of
        ``waybill cloud tail`` and ``audit`` that say which deployment (``["--config", FILE]`` or
        ``["--bootstrap", HOST:PORT]``). ``waybill``: false where something else carries the messages, so that there
        are no ``ce_id`` and no audit. ``real_time``: false where the vehicles' ``ts`` is not this clock's, so that
        latencies mean nothing.
        """
        self._items += [About(name, msgspec.Raw(_encode(value))) for name, value in facts.items()]

    def behind(self, vehicle: str, gateway: str) -> None:
        """Note which gateway ``vehicle`` speaks to."""
        self._items.append(Behind(vehicle, gateway))

    def note(self, at_ns: int, kind: str, subject: str, text: str) -> None:
        """Note that something happened to ``subject``, for the report.

        ``kind``: ``fault`` (a mark in the charts), ``down`` and ``up`` (a band from one to the other: a link, an
        agent, Kafka), ``link`` (another state of a link that is up), ``phase`` (of the run).
        """
        self._items.append(Note(at_ns, kind, subject, text))
        self._due(at_ns)

    def sample(self, at_ns: int, name: str, subject: str, value: float) -> None:
        """Note a value, for the charts. Once a second is enough.

        ``name``: ``published``, ``acked``, ``routed``, ``bytes_up``, ``bytes_down`` (sums since the start, drawn as
        rates), ``backlog``, ``connected`` (as they are). ``subject``: the gateway, or ``""`` for all.
        """
        self._items.append(Sample(at_ns, name, subject, value))
        self._due(at_ns)

    def asked(self, counter: str, subject: str, at_least: float) -> None:
        """Note that the scenario asks for a fault: without ``counter`` of ``subject`` at ``at_least`` no PASS."""
        self._items.append(Asked(counter, subject, at_least))

    def counted(self, counter: str, subject: str, value: float) -> None:
        """Note where a counter stands, by who saw it happen (the relay, the process table), not by who ordered it."""
        self._items.append(Counted(counter, subject, value))

    def sent(self, command: str, vehicle: str, at_ns: int) -> None:
        """Note that a command was sent to ``vehicle``. ``command``: its id."""
        self._command(at_ns, command, vehicle, "sent")

    def acted(self, command: str, vehicle: str, at_ns: int) -> None:
        """Note that ``vehicle`` has acted on a command."""
        self._command(at_ns, command, vehicle, "acted")

    def replied(self, command: str, vehicle: str, state: str, at_ns: int) -> None:
        """Note how the deployment says the command ended: ``done``, ``expired``, ``rejected``."""
        self._command(at_ns, command, vehicle, state)

    # -- the file --

    def flush(self) -> None:
        """Write what is not written yet; from then on it outlives this process."""
        for tag, (first, after, at_ns) in self._open.items():
            self._put(tag, first, after, at_ns)
        self._open.clear()
        self._items += [Content(number, first, bytes(those)) for number, (first, those) in self._content.items()]
        self._content.clear()
        if not (self._ranges or self._items):
            return
        items = _encode(self._items) if self._items else b""
        sizes = Struct("<II").pack(len(self._ranges), len(items))
        crc = zlib.crc32(items, zlib.crc32(self._ranges, zlib.crc32(sizes)))
        block = memoryview(b"".join((_MAGIC, crc.to_bytes(4, "little"), sizes, self._ranges, items)))
        try:
            while block:
                block = block[self._file.write(block) :]
        except OSError as error:
            raise Unavailable(f"ledger {self.path}: cannot be written: {error.strerror}") from error
        self._ranges.clear()
        self._items.clear()

    def close(self, *, ended: bool = True) -> None:
        """Write the rest and close the file. ``ended``: the run came to its end."""
        if self._file.closed:
            return
        try:
            if ended:
                self._items.append(End())
            self.flush()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close(ended=kind is None)

    def _range(self, kind: int, vehicle: str, stream: str, first: int, last: int, at_ns: int) -> None:
        tag = self._tag(vehicle, stream) | kind
        if not 0 < first <= last <= HIGHEST:
            raise ValueError(f"{vehicle} {stream}: {first} to {last} are no numbers from 1 on")
        run = self._open.get(tag)
        if run is not None and run[1] == first:
            self._open[tag] = (run[0], last + 1, run[2])
        else:
            if run is not None:
                self._put(tag, *run)
            self._open[tag] = (first, last + 1, at_ns)
            if len(self._ranges) > _BLOCK or len(self._open) > _OPEN:
                self.flush()
        self._due(at_ns)

    def _put(self, tag: int, first: int, after: int, at_ns: int) -> None:
        while first < after:
            count = min(after - first, _MOST)
            self._ranges += _RANGE.pack(tag, count, first, at_ns)
            first += count

    def _tag(self, vehicle: str, stream: str) -> int:
        tag = self._streams.get((vehicle, stream))
        return self._stream(vehicle, stream) if tag is None else tag

    def _stream(self, vehicle: str, stream: str) -> int:
        number = len(self._streams)
        self._items.append(Stream(number, vehicle, stream))
        tag = self._streams[vehicle, stream] = 2 * number
        return tag

    def _command(self, at_ns: int, command: str, vehicle: str, state: str) -> None:
        self._items.append(Command(at_ns, command, vehicle, state))
        self._due(at_ns)

    def _due(self, at_ns: int) -> None:
        # By the times given: no clock is read a message. One that is set back only writes a block more.
        if not 0 <= at_ns - self._written_at < _WAIT:
            self._written_at = at_ns
            self.flush()


class Block(msgspec.Struct, frozen=True):
    """What was written at once; the streams that ``ranges`` name are in ``items`` of this block or an earlier one."""

    ranges: bytes
    items: list[Item]

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (stream × 2 + PUBLISHED or ACKED, count, first, at_ns) in the order in which they were noted."""
        return _RANGE.iter_unpack(self.ranges)


def read(path: Path) -> Iterator[Block]:
    """Yield the blocks of a ledger, also of one that is being written. What is torn at its end is told as Torn.

    Raises ConfigError where there is none, and Corrupt where something but the end is damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"ledger {path}: cannot be read: {error.strerror}") from error
    with file:
        offset = 0
        while header := file.read(_HEADER.size):
            body = b""
            if len(header) == _HEADER.size:
                magic, crc, ranges, items = _HEADER.unpack(header)
                if magic != _MAGIC:
                    raise Corrupt(f"ledger {path}: no block at offset {offset}: it is no ledger, or damaged there")
                body = file.read(ranges + items)
            else:
                crc = ranges = items = 0
            if len(header) < _HEADER.size or len(body) < ranges + items:
                yield Block(b"", [Torn(offset, len(header) + len(body))])
                return
            if zlib.crc32(body, zlib.crc32(header[8:])) != crc:
                if not file.read(1):
                    yield Block(b"", [Torn(offset, len(header) + len(body))])
                    return
                raise Corrupt(f"ledger {path}: the block at offset {offset} is damaged")
            offset += len(header) + len(body)
            try:
                found = _decode(body[ranges:]) if items else []
            except msgspec.MsgspecError as error:
                raise Corrupt(f"ledger {path}: the block at offset {offset}: {error}") from error
            yield Block(body[:ranges], found)
