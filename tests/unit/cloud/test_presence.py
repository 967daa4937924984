"""C3: an offline counts only for the current connection, whatever the order in which nodes notice, and leases."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from cloud_ingest.presence import LEASE, Here, Presence, record_of

ON, OFF = "online", "offline"


def on(node: str, connection: str, gateway: str = "g") -> Here:
    return Here("online", 1, gateway, "", node, connection)


@dataclass
class Topic:
    """The topic, its nodes, and which connections they hold; nodes read as far as a test lets them."""

    nodes: dict[str, Presence] = field(default_factory=dict)
    records: list[tuple[str, Here | None]] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    closed: list[tuple[str, str]] = field(default_factory=list)

    def node(self, name: str) -> Presence:
        made = self.nodes[name] = Presence(name)
        self.at[name] = 0
        made.renew(0)
        return made

    def connect(self, name: str, connection: str) -> None:
        self.held[name] = connection
        self.nodes[name].came(on(name, connection))

    def lose(self, name: str, reason: str = "lost") -> None:
        if self.held.pop(name, None):
            self.nodes[name].went("g", reason, 2)

    def write(self, *names: str) -> None:
        for name in names or tuple(self.nodes):
            self.records += self.nodes[name].take(100).items()

    def read(self, *names: str, now: float = 0.0) -> None:
        for name in names or tuple(self.nodes):
            for key, found in self.records[self.at[name] :]:
                reason = self.nodes[name].read(key, found, now)
                if reason:
                    self.closed.append((name, reason))
                    self.lose(name, reason)
            self.at[name] = len(self.records)

    def settle(self, now: float = 0.0) -> None:
        for _ in range(10):
            self.write()
            self.read(now=now)

    @property
    def now(self) -> Here | None:
        """What a reader of the compacted topic finds."""
        return dict(self.records).get("g")

    @property
    def current(self) -> str:
        """What a reader of the whole topic knows: the connection that is there, or empty."""
        found = ""
        for key, here in self.records:
            if key == "g" and here is not None:
                if here.state == "online":
                    found = here.connection
                elif here.connection == found:
                    found = ""
        return found

    def stay(self, name: str, since: int, until: float) -> None:
        """Let a node renew its lease and read that, every ten seconds, and nothing else; then judge the others."""
        for now in (*range(since, int(until), 10), until):
            self.nodes[name].read(name, Here("online", 3, node=name), now)
        self.nodes[name].lapse(until, 5)


def two() -> Topic:
    topic = Topic()
    topic.node("node:a")
    topic.node("node:b")
    topic.settle()
    return topic


def state(here: Here | None) -> tuple[str, str, str]:
    assert here is not None
    return here.state, here.node, here.connection


def test_what_comes_and_goes_is_written_with_node_connection_and_reason() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    assert state(topic.now) == (ON, "node:a", "1")
    topic.lose("node:a", "keepalive")
    topic.settle()
    assert state(topic.now) == (OFF, "node:a", "1")
    assert "keepalive" in str(topic.now)


def test_c3_an_offline_of_an_older_connection_is_not_written_once_the_new_one_is_known() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    topic.connect("node:b", "2")
    topic.write()
    topic.read("node:b")
    topic.nodes["node:a"].read("g", on("node:b", "2"), 0.0)
    topic.lose("node:a")
    assert topic.nodes["node:a"].due == 0


def test_c3_an_older_connections_offline_that_comes_after_the_new_online_is_overruled() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    topic.connect("node:b", "2")
    topic.lose("node:a")  # it has not read of the new one
    topic.write("node:b")
    topic.write("node:a")
    assert state(topic.now) == (OFF, "node:a", "1")
    assert topic.current == "2"
    topic.settle()
    assert state(topic.now) == (ON, "node:b", "2")
    assert topic.held == {"node:b": "2"}


def test_c3_a_connection_that_another_node_has_taken_over_is_closed() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    topic.connect("node:b", "2")
    topic.settle()
    assert topic.closed == [("node:a", "it has connected to another node")]
    assert state(topic.now) == (ON, "node:b", "2")


def test_c3_an_older_online_that_is_read_late_closes_nothing() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.write("node:a")
    topic.connect("node:b", "2")  # node:b has read nothing of the first
    topic.settle()
    assert topic.held == {"node:b": "2"}
    assert state(topic.now) == (ON, "node:b", "2")


def test_c3_the_connections_of_a_node_whose_lease_has_expired_are_ended_by_one_of_the_others() -> None:
    topic = two()
    topic.node("node:c")
    topic.connect("node:a", "1")
    topic.settle()
    later = LEASE + 1
    for name in ("node:b", "node:c"):
        for now in range(0, int(later), 10):
            for other in ("node:b", "node:c"):
                topic.nodes[name].read(other, Here("online", 3, node=other), now)
        topic.nodes[name].lapse(later, 5)
    due = {name: topic.nodes[name].take(9) for name in ("node:b", "node:c")}
    assert due["node:c"] == {}
    assert due["node:b"].keys() == {"g", "node:a"}
    assert state(due["node:b"]["g"]) == (OFF, "node:a", "1")
    assert "is gone" in str(due["node:b"]["g"])


def test_c3_a_node_that_goes_on_after_its_lease_closes_what_was_ended() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    topic.stay("node:b", 0, LEASE + 1)
    topic.write("node:b")
    topic.read("node:a")
    assert topic.closed == [("node:a", "this node's lease had expired")]
    topic.settle()
    assert topic.current == ""


def test_c3_a_node_that_was_paused_or_had_no_log_ends_nobody_elses_connections() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    blind = topic.nodes["node:b"]
    blind.lapse(900.0, 5)
    assert blind.due == 0
    topic.stay("node:b", 900, 900.0)  # what the other wrote meanwhile is read after its own
    assert blind.due == 0
    topic.stay("node:b", 910, 900.0 + LEASE + 1)
    assert state(blind.take(9)["g"]) == (OFF, "node:a", "1")


def test_c3_a_node_that_left_in_order_leaves_nothing() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    topic.lose("node:a", "the server shuts down")
    topic.nodes["node:a"].end()
    topic.write("node:a")
    del topic.nodes["node:a"]
    topic.settle()
    topic.stay("node:b", 0, 1.0)
    assert topic.nodes["node:b"].due == 0
    assert dict(topic.records)["node:a"] is None


def test_c3_what_a_dead_node_left_is_found_by_one_that_starts_later() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.settle()
    late = topic.node("node:0")
    topic.read("node:0", now=0.0)
    topic.stay("node:0", 0, 1.0)
    assert "g" not in late.take(9)
    topic.stay("node:0", 10, LEASE + 1)
    assert state(late.take(9)["g"]) == (OFF, "node:a", "1")


def test_a_connection_that_nobody_was_told_of_leaves_nothing_to_say() -> None:
    topic = two()
    topic.connect("node:a", "1")
    topic.lose("node:a")
    assert topic.nodes["node:a"].due == 0
    topic.connect("node:a", "2")
    topic.write("node:a")
    topic.lose("node:a")
    topic.connect("node:a", "3")
    topic.lose("node:a")
    topic.settle()
    assert state(topic.now) == (OFF, "node:a", "2")


def test_while_nothing_can_be_written_the_newest_state_of_each_is_kept() -> None:
    topic = two()
    node = topic.nodes["node:a"]
    for n in range(100):
        topic.connect("node:a", str(n))
        topic.lose("node:a")
    assert node.due == 0
    topic.connect("node:a", "old")
    assert node.due == 1
    ((key, here),) = node.take(9).items()
    topic.lose("node:a")
    topic.connect("node:a", "new")
    node.put_back(key, here)
    assert state(node.take(9)["g"]) == (ON, "node:a", "new")


def test_c3_whatever_the_order_the_topic_ends_with_who_is_there() -> None:
    """Connections that move between three nodes; writes, reads and losses in any order."""
    for seed in range(500):
        rnd = random.Random(seed)
        topic = Topic()
        names = ["node:a", "node:b", "node:c"]
        for name in names:
            topic.node(name)
        for n in range(rnd.randrange(1, 12)):
            act = rnd.randrange(4)
            name = rnd.choice(names)
            if act == 0:
                if name in topic.held:
                    topic.lose(name, "taken over")
                topic.connect(name, str(n))
            elif act == 1:
                topic.lose(name)
            elif act == 2:
                topic.write(name)
            else:
                topic.read(name)
        topic.settle()
        assert len(topic.held) <= 1, seed
        ends = topic.now
        if topic.held:
            ((name, connection),) = topic.held.items()
            assert state(ends) == (ON, name, connection), seed
        elif ends is not None:
            assert ends.state == OFF, seed
        assert topic.current == "".join(topic.held.values()), seed


def test_keys() -> None:
    assert on("node:a", "1").key == "g"
    assert Here("online", 1, "g", "V7").key == "g/V7"
    assert Here("online", 1, "", "V7").key == "/V7"
    assert Here("online", 1, node="node:a").key == "node:a"
    assert record_of("t", Here("online", 1, "g")).value == b'{"state":"online","at_ms":1,"gateway":"g"}'
