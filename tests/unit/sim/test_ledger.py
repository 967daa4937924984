"""The ledger of a run: what was written is read, whatever became of its writer."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fleet_simulator.ledger import (
    ACKED,
    PUBLISHED,
    About,
    Asked,
    Behind,
    Command,
    Content,
    Counted,
    End,
    Item,
    Ledger,
    Note,
    Sample,
    Stream,
    Torn,
    digest,
    read,
)
from waybill.errors import ConfigError, Corrupt, Unavailable

S = 1_000_000_000


def spans(path: Path) -> list[tuple[int, int, int]]:
    return [
        (tag & 1, first, first + count - 1) for block in read(path) for tag, count, first, _ in block.spans() if tag < 2
    ]


def items(path: Path) -> list[Item]:
    return [item for block in read(path) for item in block.items]


def test_digests_that_go_on_are_one_item_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    said = [digest(b"%d" % number) for number in range(10)]
    with Ledger(path) as ledger:
        ledger.published("V1", "telemetry", 1, 2, S, said[1] + said[2])
        ledger.published("V1", "telemetry", 3, 3, S + 1, said[3])  # a block of its own ended before
        ledger.published("V1", "telemetry", 4, 4, S + 2, said[4])
        ledger.published("V1", "telemetry", 6, 6, S + 3, said[6])
    found = [(item.first, item.digests) for item in items(path) if isinstance(item, Content)]
    assert found == [(1, said[1] + said[2]), (3, said[3] + said[4]), (6, said[6])]


def test_a_digest_is_never_the_one_of_nothing_known() -> None:
    assert all(digest(b"%d" % number) != b"\0\0" for number in range(200_000))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.about({"scenario": "commute", "topics": ["fleet.telemetry"]})
        ledger.behind("V1", "depot")
        ledger.published("V1", "telemetry", 1, 3, S)
        ledger.acked("V1", "telemetry", 1, 1, S)
        ledger.note(S, "fault", "depot", "killed")
        ledger.sample(S, "backlog", "depot", 2.5)
        ledger.asked("kills", "depot", 1)
        ledger.counted("kills", "depot", 1)
        ledger.sent("c1", "V1", S)
        ledger.acted("c1", "V1", S)
        ledger.replied("c1", "V1", "done", S)
        ledger.published("V1", "events", 1, 1, S)
    assert items(path) == [
        About("scenario", msgspec.Raw(msgspec.msgpack.encode("commute"))),
        About("topics", msgspec.Raw(msgspec.msgpack.encode(["fleet.telemetry"]))),
        Behind("V1", "depot"),
        Stream(0, "V1", "telemetry"),
        Note(S, "fault", "depot", "killed"),
        Sample(S, "backlog", "depot", 2.5),
        Asked("kills", "depot", 1),
        Counted("kills", "depot", 1),
        Command(S, "c1", "V1", "sent"),
        Command(S, "c1", "V1", "acted"),
        Command(S, "c1", "V1", "done"),
        Stream(1, "V1", "events"),
        End(),
    ]
    assert sorted(spans(path)) == [(PUBLISHED, 1, 3), (ACKED, 1, 1)]


def test_numbers_that_go_on_share_a_range(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.published("V1", "telemetry", 1, 1, S)  # a block of its own
        for number in range(2, 1000):
            for vehicle in ("V1", "V2"):
                ledger.published(vehicle, "telemetry", number, number, S + number)
        ledger.acked("V1", "telemetry", 2, 2, S + 1000)
        ledger.acked("V1", "telemetry", 1, 1, S + 1000)
    assert sorted(spans(path)) == [(PUBLISHED, 1, 1), (PUBLISHED, 2, 999), (ACKED, 1, 1), (ACKED, 2, 2)]


def test_more_numbers_than_one_range_can_say(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.published("V1", "telemetry", 1, 1 << 33, S)
        for first, last in ((0, 1), (2, 1), (1, (1 << 40) + 1)):
            with pytest.raises(ValueError, match="no numbers from 1 on"):
                ledger.acked("V1", "telemetry", first, last, S)
    found = spans(path)
    assert found[0][1] == 1
    assert found[-1][2] == 1 << 33
    assert all(a[2] + 1 == b[1] for a, b in itertools.pairwise(found))


def test_half_a_block_at_the_end_is_told_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path)
    ledger.published("V1", "telemetry", 1, 5, S)
    whole = path.stat().st_size
    ledger.acked("V1", "telemetry", 1, 5, 2 * S)
    ledger.close(ended=False)
    data = path.read_bytes()
    for cut in range(whole + 1, len(data)):
        path.write_bytes(data[:cut])
        assert items(path)[-1] == Torn(whole, cut - whole)
        assert spans(path) == [(PUBLISHED, 1, 5)]
    path.write_bytes(data[:-1] + b"\1")  # as long as it should be, and not what was written
    assert items(path)[-1] == Torn(whole, len(data) - whole)


def test_damage_before_the_end_is_no_ledger_to_judge_by(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.published("V1", "telemetry", 1, 5, S)
        whole = path.stat().st_size
        ledger.acked("V1", "telemetry", 1, 5, 2 * S)
    data = bytearray(path.read_bytes())
    data[whole - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="the block at offset 0 is damaged"):
        items(path)
    path.write_bytes(b"[gateway]\nname = 'depot'\n")
    with pytest.raises(Corrupt, match="no block at offset 0: it is no ledger"):
        items(path)


def test_a_ledger_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger(path).close()
    with pytest.raises(ConfigError, match="cannot be made: File exists"):
        Ledger(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        items(tmp_path / "nowhere")


def test_a_full_disk_is_no_ledger() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        ledger = object.__new__(Ledger)
        ledger.__init__(Path(f"/tmp/{full.fileno()}-{id(full)}"))  # type: ignore[misc]
        ledger.path.unlink()
        ledger._file.close()
        ledger._file = full
        with pytest.raises(Unavailable, match="No space left"):
            ledger.published("V1", "telemetry", 1, 1, S)


WRITER = """
import sys, pathlib
from fleet_simulator.ledger import Ledger
ledger = Ledger(pathlib.Path(sys.argv[1]))
number = 0
while True:
    number += 1
    ledger.published("V1", "telemetry", number, number, number * 20_000_000)
    ledger.acked("V1", "telemetry", number, number, number * 20_000_000)
    if number % 10 == 0:
        print(number, flush=True)
"""


def test_a_killed_writer_leaves_what_it_had_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        said = 0
        while said < 5000:
            said = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
    found = spans(path)
    for kind in (PUBLISHED, ACKED):
        mine = [(first, last) for one, first, last in found if one == kind]
        assert mine[0][0] == 1
        assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(mine))
        assert mine[-1][1] >= said - 10
    assert End() not in items(path)
