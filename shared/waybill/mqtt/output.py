"""What a connection owes and writes: tickets for the next commit, output in one piece. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from waybill.mqtt.pending import Ticket

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from waybill.mqtt.broker import Broker
    from waybill.mqtt.settings import Answer

CHARGE: Final = 128
"""Bytes that a packet other than PUBLISH counts as uncommitted, besides its own."""


class Output:
    """The writing half of a connection.

    ``written``: bytes handed to the shell. ``uncommitted``: bytes that wait for commits.
    """

    __slots__ = (
        "broker",
        "closed",
        "obuf",
        "obuf_bytes",
        "open_tickets",
        "paused",
        "ticket",
        "ticket_of",
        "uncommitted",
        "written",
    )

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.closed = False
        self.paused = False
        self.written = 0
        self.uncommitted = 0
        self.obuf: list[bytes] = []
        self.obuf_bytes = 0
        self.ticket: Ticket | None = None
        self.ticket_of: object = None
        self.open_tickets = 0

    def answer(self, packet: bytes, size: int = 0) -> Ticket:
        """Owe a packet; what it answers counts as uncommitted with ``size`` bytes and a charge."""
        ticket = self.owe()
        ticket.out.append(packet)
        self.charge(ticket, CHARGE + size)
        return ticket

    def charge(self, ticket: Ticket, size: int) -> None:
        """Count uncommitted bytes; reading pauses at the limits."""
        broker = self.broker
        ticket.size += size
        self.uncommitted += size
        broker.uncommitted += size
        if self.uncommitted > broker.settings.uncommitted_bytes:
            self.hold()
        if broker.uncommitted > broker.settings.uncommitted_bytes_all:
            broker.hold_all()

    def settle(self, ticket: Ticket) -> None:
        """The commit of a ticket returned, or failed: its bytes no longer count."""
        self.uncommitted -= ticket.size
        self.broker.uncommitted -= ticket.size
        self.open_tickets -= 1
        if self.ticket is ticket:  # else whoever is silent from now on would keep all of that batch alive
            self.ticket = self.ticket_of = None

    def push(self, packet: bytes) -> None:
        """Add a packet to the output; ``flush`` writes it."""
        self.obuf.append(packet)
        self.obuf_bytes += len(packet)

    def flush(self) -> None:
        """Write the output in one piece."""
        if self.obuf and not self.closed:
            data = self.obuf[0] if len(self.obuf) == 1 else b"".join(self.obuf)
            self.written += len(data)
            self.broker.counters.bytes_out += len(data)
            self.write(data)
        self.obuf.clear()
        self.obuf_bytes = 0

    def owe(self) -> Ticket:
        """Return what this connection is owed at the next commit."""
        raise NotImplementedError

    def hold(self) -> None:
        """Stop reading until the broker finds that it may go on."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Read again, beginning with what was read already."""
        raise NotImplementedError

    # -- what a shell provides -----------------------------------------------------------------------------------

    def peer(self) -> tuple[bytes | None, str]:
        """Return the verified certificate of the peer (DER) or None, and its address."""
        raise NotImplementedError

    def ask(self, answer: Awaitable[Answer]) -> None:
        """Await an answer of ``authorize_connect``, and call ``answered`` with it.

        With UNAVAILABLE where it raises; not at all, and cancel it, when the connection ends before.
        """
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send bytes; never blocks."""
        raise NotImplementedError

    def shut(self) -> None:
        """Close the transport after what was written."""
        raise NotImplementedError

    def pause(self) -> None:
        """Stop reading."""
        raise NotImplementedError

    def resume(self) -> None:
        """Read again."""
        raise NotImplementedError

    def buffered(self) -> int:
        """Return how many bytes of output wait in the process."""
        raise NotImplementedError

    def acknowledged(self) -> int | None:
        """Return how many bytes of the output the peer's TCP has acknowledged; None: unknown."""
        raise NotImplementedError
