"""waybill.mqtt.resend: which PUBLISH with DUP is a copy (O1-O3)."""

from __future__ import annotations

import pytest

from tests.unit.mqtt import rig
from waybill.mqtt import resend
from waybill.mqtt.memories import Memories
from waybill.mqtt.resend import ClientMemory, Commit, entries_of, fingerprint
from waybill.mqtt.state import Publish


def message(pid: int, payload: bytes, topic: bytes = b"t") -> Publish:
    return (topic, payload, 2, pid.to_bytes(2, "big"), 0, 100, b"")


def add(memory: ClientMemory, *messages: Publish, commit: Commit | None = None, size: int = 100) -> resend.Chunk:
    chunk = memory.add(list(messages), len(messages), size, commit or Commit())
    chunk.commit.open = commit is not None
    return chunk


def is_copy(memory: ClientMemory, pid: int, payload: bytes, topic: bytes = b"t", flags: int = 10) -> bool:
    return memory.judge(pid.to_bytes(2, "big"), topic, payload, flags) is not None


def test_o1_a_repetition_is_a_copy() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"), message(2, b"b"))
    assert is_copy(memory, 1, b"a")
    assert is_copy(memory, 2, b"b")


@pytest.mark.parametrize(
    ("pid", "payload", "topic", "flags"),
    [(2, b"a", b"t", 10), (1, b"x", b"t", 10), (1, b"a", b"u", 10), (1, b"a", b"t", 11), (1, b"a", b"t", 12)],
    ids=["other id", "other payload", "other topic", "other retain flag", "other QoS"],
)
def test_o1_anything_that_differs_is_stored(pid: int, payload: bytes, topic: bytes, flags: int) -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"))
    assert not is_copy(memory, pid, payload, topic, flags)


def test_o1_only_the_newest_use_of_an_id_counts() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"))
    add(memory, message(1, b"b"))
    assert not is_copy(memory, 1, b"a")
    assert is_copy(memory, 1, b"b")


def test_o1_content_that_occurs_twice_is_stored() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"on"), message(2, b"off"))
    add(memory, message(3, b"on"))
    assert not is_copy(memory, 3, b"on")
    assert is_copy(memory, 2, b"off")


def test_o1_what_tcp_acknowledged_is_stored() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a")).end = 4
    add(memory, message(2, b"b")).end = 8
    memory.prove(7)
    assert not is_copy(memory, 1, b"a")
    assert is_copy(memory, 2, b"b")
    memory.prove(8)
    assert not is_copy(memory, 2, b"b")
    assert len(memory) == 0


def test_o1_an_ack_not_written_yet_cannot_have_arrived() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"))
    memory.prove(1 << 40)
    assert is_copy(memory, 1, b"a")


def test_o1_a_disconnect_shows_that_the_acks_arrived() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"))
    memory.disconnected()
    memory.freeze()
    assert not is_copy(memory, 1, b"a")


def test_o1_a_disconnect_shows_nothing_of_what_is_uncommitted() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"), commit=Commit())
    memory.disconnected()
    memory.freeze()
    assert is_copy(memory, 1, b"a")


def test_o1_proof_does_not_bring_an_older_use_of_the_id_back() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"))
    memory.freeze()
    add(memory, message(1, b"b")).end = 4
    memory.prove(4)
    assert not is_copy(memory, 1, b"a")
    assert not is_copy(memory, 1, b"b")


def test_o1_the_copys_own_ack_is_proof_too() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"), message(2, b"b"))
    memory.freeze()
    copy = memory.judge(b"\0\1", b"t", b"a", 10)
    assert copy is not None
    memory.reacknowledged(copy, 4)
    memory.prove(3)
    assert is_copy(memory, 1, b"a")
    memory.prove(4)
    assert not is_copy(memory, 1, b"a")
    assert is_copy(memory, 2, b"b")


def test_o2_a_failed_commit_takes_its_messages_away() -> None:
    memory = ClientMemory()
    first, second = Commit(), Commit()
    add(memory, message(1, b"a"), commit=first)
    add(memory, message(2, b"b"), commit=second)
    entry = memory.judge(b"\0\2", b"t", b"b", 10)
    assert entry is not None
    assert not entry.stored
    memory.failed(second)
    assert is_copy(memory, 1, b"a")
    assert not is_copy(memory, 2, b"b")
    memory.freeze()
    memory.failed(first)
    assert len(memory) == 0


def test_o3_the_window_bounds_what_is_remembered() -> None:
    memory = ClientMemory(window=3)
    add(memory, message(1, b"a"))
    memory.freeze()
    add(memory, message(2, b"b"), message(3, b"c"), message(4, b"d"))
    assert len(memory) == 3
    assert not is_copy(memory, 1, b"a")
    add(memory, message(5, b"e"))
    assert [is_copy(memory, pid, payload) for pid, payload in ((2, b"b"), (3, b"c"), (5, b"e"))] == [False, True, True]
    add(memory, *[message(pid, b"%d" % pid) for pid in range(10, 20)])
    assert len(memory) == memory.tail_count == 3
    assert is_copy(memory, 19, b"19")
    assert not is_copy(memory, 16, b"16")


def test_o3_a_memory_comes_back_from_what_was_saved() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a"), message(2, b"b"))
    assert memory.freeze()
    again = ClientMemory(saved=memory.saved())
    assert is_copy(again, 1, b"a")
    assert is_copy(again, 2, b"b")


def test_reads_are_not_kept_alive_beyond_64_kib() -> None:
    memory = ClientMemory()
    chunks = [add(memory, message(n, b"%d" % n), size=10_000) for n in range(1, 20)]
    assert sum(chunk.size for chunk in chunks if chunk.publishes is not None) <= resend.FOLD_BYTES
    assert all(is_copy(memory, n, b"%d" % n) for n in range(1, 20))


def test_the_hot_path_makes_no_hash() -> None:
    memory = ClientMemory()
    for n in range(1, 100):
        add(memory, message(n, b"x")).end = n
        memory.prove(n - 1)
    assert memory._newest is None
    assert all(chunk.publishes is not None for chunk in memory.tail)


def test_the_index_goes_with_the_last_message() -> None:
    memory = ClientMemory()
    add(memory, message(1, b"a")).end = 1
    assert is_copy(memory, 1, b"a")
    assert memory._newest is not None
    memory.prove(1)
    assert memory._newest is None


def test_entries_of_raw_are_what_was_remembered() -> None:
    packets = [
        rig.publish("a", b"0"),
        rig.publish("a/b", b"1", 1, 7),
        rig.publish("a", b"x" * 300, 2, 8, retain=True),
        rig.publish("w", b"will", 1, 0),
        rig.publish("a", b"", 1, 65535, dup=True),
    ]
    assert entries_of(b"".join(packets)) == [
        (7, fingerprint(b"a/b", b"1", 2)),
        (8, fingerprint(b"a", b"x" * 300, 5)),
        (65535, fingerprint(b"a", b"", 10)),
    ]


def test_fingerprints_keep_fields_apart() -> None:
    prints = {
        fingerprint(b"a", b"b", 2),
        fingerprint(b"ab", b"", 2),
        fingerprint(b"", b"ab", 2),
        fingerprint(b"a", b"b", 4),
        fingerprint(b"a", b"b", 3),
        fingerprint(b"a", b"", 2, b"b"),
    }
    assert len(prints) == 6
    assert fingerprint(b"a", b"b", 2) == fingerprint(b"a", b"b", 10)


def test_clients_that_are_away_are_bounded_and_the_longest_gone_goes_first() -> None:
    memories = Memories(clients=2, entries=10)

    def away(name: str, count: int) -> list[str]:
        memory = memories.enter(name)
        add(memory, *[message(n + 1, b"%d" % n) for n in range(count)])
        memory.freeze()
        return memories.leave(name, memory)

    assert away("a", 1) == []
    assert away("b", 1) == []
    assert away("c", 1) == ["a"]
    assert away("d", 9) == ["b"]
    assert away("e", 10) == ["c", "d"]
    assert len(memories.enter("a")) == 0
    assert len(memories.enter("e")) == 10


def test_a_client_with_nothing_unproven_costs_nothing() -> None:
    memories = Memories()
    memories.leave("a", memories.enter("a"))
    assert len(memories) == 0
