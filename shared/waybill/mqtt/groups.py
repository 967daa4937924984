"""Subscriptions as routes see them: grants, and shared subscriptions (OASIS MQTT 5.0, 4.8). No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from waybill.mqtt import properties
from waybill.mqtt.codec import NO_LOCAL, RETAIN_AS_PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from waybill.mqtt.session import Session
    from waybill.mqtt.state import Subscription

SHARE: Final = "$share/"


class Grant:
    """What one session gets of a topic: the highest QoS among its filters, and all their identifiers.

    ``retain``: the RETAIN flag stays as published. ``block``: the identifiers as properties. ``own``: what it gets of
    what it publishes itself, None for nothing; another grant only where it said No Local.
    """

    __slots__ = ("block", "own", "qos", "retain")

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        mine = list(subscriptions)
        self.qos = max(options & 3 for options, _ in mine)
        self.retain = any(options & RETAIN_AS_PUBLISHED for options, _ in mine)
        self.block = b"".join(properties.number(properties.SUBSCRIPTION_ID, each) for _, each in mine if each)
        heard = [each for each in mine if not each[0] & NO_LOCAL]
        self.own: Grant | None = self if len(heard) == len(mine) else Grant(heard) if heard else None


class Group:
    """The sessions of one shared subscription; each message goes to one of them."""

    __slots__ = ("_next", "members", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.members: dict[Session, Grant] = {}
        self._next = 0

    def choose(self, qos: int) -> tuple[Session, Grant] | None:
        """Return whose turn it is: of those online whose output is not stuck, else online, else asleep (QoS 1, 2)."""
        members = list(self.members.items())
        if not members:
            return None
        first = self._next % len(members)
        self._next = first + 1
        turns = members[first:] + members[:first]
        sleeping: tuple[Session, Grant] | None = None
        busy: tuple[Session, Grant] | None = None
        for member in turns:
            connection = member[0].connection
            if connection is None:
                if sleeping is None and min(qos, member[1].qos):
                    sleeping = member
            elif connection.choked:
                busy = busy or member
            else:
                return member
        return busy or sleeping


def split(pattern: str) -> tuple[str, str]:
    """Return the share name (empty: none) and the filter of what a client subscribes to.

    A share name that is none leaves the filter as it is, where it is not valid.
    """
    if not pattern.startswith(SHARE):
        return "", pattern
    name, _, rest = pattern[len(SHARE) :].partition("/")
    return name, rest


def valid_share(pattern: str) -> bool:
    """Say whether a filter is not shared, or has a share name and a filter as it must (4.8.2)."""
    if not pattern.startswith(SHARE):
        return True
    name, rest = split(pattern)
    return bool(name and rest) and "+" not in name and "#" not in name
