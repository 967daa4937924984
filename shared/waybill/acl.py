"""Who may publish and subscribe to what: the ``[[acl]]`` rules of the configuration. Pure.

Without a rule everything is allowed; with any, only what some rule that matches the client allows. A rule matches where
all that it names (``user``, ``client``, ``listener``) fits. A client without a verified identity has no user, and no
rule that names one matches it.

A subscription is allowed where one allowed filter *covers* it: matches every topic name that the wanted filter can
match (OASIS MQTT 5.0, section 4.7). It is not enough that they overlap, else ``#`` would be had for the asking.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from waybill.mqtt.topics import valid_filter

_PLACEHOLDER: Final = re.compile("%[cu]")
_STRUCTURE: Final = re.compile(r"[+#/\0]")


class AclRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[acl]]``: what the clients that it matches may do.

    ``user``: the verified identity; ``client``: the client id; ``listener``: the name of a listener. None matches all.
    In ``user`` and ``client`` one ``*`` stands for any text, none included. ``publish``, ``subscribe``: topic filters,
    in which ``%u`` and ``%c`` stand for the client's user and client id.
    """

    user: str | None = None
    client: str | None = None
    listener: str | None = None
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


class Acl:
    """All rules."""

    def __init__(self, rules: tuple[AclRule, ...]) -> None:
        """Take ``rules``, each without a :func:`fault`."""
        self._rules = rules

    def may_publish(self, client_id: str, user: str, listener: str, topic: str) -> bool:
        """Say whether a client may publish to a valid topic name. ``user``: empty for nobody in particular."""
        return self._allows("publish", client_id, user, listener, topic)

    def may_subscribe(self, client_id: str, user: str, listener: str, pattern: str) -> bool:
        """Say whether a client may subscribe to a valid filter; of a shared subscription, the one behind the name."""
        return self._allows("subscribe", client_id, user, listener, pattern)

    def _allows(self, verb: str, client_id: str, user: str, listener: str, wanted: str) -> bool:
        if not self._rules:
            return True
        for rule in self._rules:
            if _matches(rule, client_id, user, listener):
                allowed: tuple[str, ...] = getattr(rule, verb)
                for template in allowed:
                    pattern = fill(template, client_id, user)
                    if pattern is not None and covers(pattern, wanted):
                        return True
        return False


def fault(rule: AclRule, max_levels: int) -> str:
    """Return what is wrong with a rule, as key and mend; empty where nothing is."""
    for key, name in (("user", rule.user), ("client", rule.client)):
        if name is not None and (not name or name.count("*") > 1):
            return f"{key}: {name!r}: write a whole name, or one with a single '*'; leave the key out to match all"
    for key, filters in (("publish", rule.publish), ("subscribe", rule.subscribe)):
        for text in filters:
            if text.startswith("$share/"):
                return f"{key}: {text!r}: write the filter behind the share name; it allows shared subscriptions too"
            if not valid_filter(text, max_levels):
                return (
                    f"{key}: {text!r} is no MQTT topic filter: '+' stands for one whole level, "
                    "'#' for the rest and comes last"
                )
    if not rule.publish and not rule.subscribe:
        return "publish: the rule allows nothing; give it publish or subscribe, or leave it out"
    return ""


def fill(template: str, client_id: str, user: str) -> str | None:
    """Return an allowed filter with ``%c`` and ``%u`` filled in; None where a value could change its meaning.

    That is a value that is empty or holds ``+``, ``#``, ``/`` or U+0000, and one that makes an ordinary filter begin
    with ``$``: a client picks its own id, and must not pick its rights with it.
    """
    if "%" not in template:
        return template
    values = {"%c": client_id, "%u": user}
    used = {values[name] for name in _PLACEHOLDER.findall(template)}
    if any(not value or _STRUCTURE.search(value) for value in used):
        return None
    filled = _PLACEHOLDER.sub(lambda found: values[found[0]], template)
    return None if filled.startswith("$") and not template.startswith("$") else filled


def covers(allowed: str, wanted: str) -> bool:
    """Say whether ``allowed`` matches every topic name that ``wanted`` matches; both are valid filters.

    A topic name counts as the filter that matches itself alone.
    """
    mine, other = allowed.split("/"), wanted.split("/")
    if mine[0] in ("+", "#") and other[0].startswith("$"):
        return False  # 4.7.2: a leading wildcard does not match $SYS and the like
    if other in (["#"], ["", "#"]):
        other.insert(-1, "+")  # elsewhere '#' stands for no level as well, but no topic name is empty
    for depth, level in enumerate(mine):
        if level == "#":
            return True
        if depth == len(other) or other[depth] == "#" or level not in ("+", other[depth]):
            return False
    return len(mine) == len(other)


def _matches(rule: AclRule, client_id: str, user: str, listener: str) -> bool:
    return (
        (rule.user is None or (bool(user) and _fits(rule.user, user)))
        and (rule.client is None or _fits(rule.client, client_id))
        and (rule.listener is None or rule.listener == listener)
    )


def _fits(pattern: str, name: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return name == pattern
    return len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail)
