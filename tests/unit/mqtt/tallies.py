"""What a broker has counted as used of its limits, counted anew."""

from __future__ import annotations

from collections.abc import Iterable

from waybill.mqtt import budget
from waybill.mqtt.broker import Broker
from waybill.mqtt.connection import Connection


def tallies(broker: Broker, connections: Iterable[Connection] | None = None) -> dict[str, tuple[int, int]]:
    """Return what a broker counts as used of its limits, and the same counted anew: they have to be equal.

    ``connections``: all there are, for what they have in memory; without them that is not looked at.
    """
    sessions = list(broker.sessions.values())
    online = [each.connection for each in sessions if each.connection is not None]
    batches = [each for each in (broker.pending, broker.committing) if each is not None]
    outs = [out for each in sessions for out in (*each.flight.values(), *each.waiting)]
    outs += [out for each in batches for session, out in each.queued if session in sessions]
    wills = [each.will for each in online if each.will is not None] + [each[2] for each in broker._delayed.values()]
    memories = [each.memory for each in online if each.memory is not None] + list(broker.memories._away.values())
    return {
        "queues": (broker.queues.used, sum(out.size + budget.QUEUED for out in outs)),
        "filters": (broker.filters.used, sum(budget.subscription(f) for each in sessions for f in each.subscriptions)),
        "subscribed": (sum(each.subscribed for each in sessions), broker.filters.used),
        "held": (broker.held.used, sum(len(each.held) for each in sessions)),
        "wills": (broker.wills.used, sum(budget.will(w.topic, w.payload, w.content.kept) for w in wills)),
        "routes": (
            broker.route_bytes,
            sum(
                budget.ROUTE + len(topic) + budget.TARGET * (len(r.targets) + len(r.groups) + len(r.callbacks))
                for topic, r in broker.routes.items()
            ),
        ),
        "persistent": (broker._persistent, sum(each.persistent for each in sessions)),
        "remembered": (broker.memories.shared.messages, sum(map(len, memories))),
        "unfolded": (broker.memories.shared.unfolded, sum(each._unfolded for each in memories)),
        "uncommitted": (broker.uncommitted, sum(ticket.size for each in batches for ticket in each.tickets)),
        "buffers": (
            broker.buffers.used,
            broker.buffers.used if connections is None else sum(each.weight for each in connections),
        ),
    }


def check(broker: Broker, connections: Iterable[Connection] | None = None) -> None:
    """Assert that nothing is counted that is not there, and nothing there that is not counted."""
    for name, (counted, there) in tallies(broker, connections).items():
        assert counted == there, name
