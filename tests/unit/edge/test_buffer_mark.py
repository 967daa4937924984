"""The mark beside the database: two slots in turn, a torn write, what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.buffer.index import Index, LaneIndex, Track
from edge_agent.buffer.mark import SLOT, Mark, MarkFile, Reached, mark_of, pack, unpack


def reached(ordinal: int = 1, last: int = 10) -> Reached:
    return Reached("telemetry", ordinal, 1000 + ordinal, 0, 0, last, 5)


def marks(path: Path) -> Mark | None:
    return MarkFile.read(path).last


def test_the_last_one_written_holds(tmp_path: Path) -> None:
    file = MarkFile.read(tmp_path)
    assert file.last is None
    for number in range(1, 6):
        file.write(Mark(number, (reached(last=number),)))
        assert marks(tmp_path) == Mark(number, (reached(last=number),))
    again = MarkFile.read(tmp_path)  # the next start goes on counting
    again.write(Mark(6, ()))
    assert marks(tmp_path) == Mark(6, ())


@pytest.mark.parametrize("cut", [0, 3, 15, 30])
def test_a_write_that_is_cut_in_two_leaves_the_one_before(tmp_path: Path, cut: int) -> None:
    file = MarkFile.read(tmp_path)
    file.write(Mark(1, (reached(),)))
    before = file.path.read_bytes()
    file.write(Mark(2, (reached(last=99),)))
    after = file.path.read_bytes()
    changed = next(at for at in range(len(before)) if before[at] != after[at])
    assert unpack(after)[0] == Mark(2, (reached(last=99),))
    assert unpack(after[: changed + cut] + before[changed + cut :])[0] == Mark(1, (reached(),))


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"WBMK" * 5000])
def test_anything_else_is_no_mark(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "mark").write_bytes(data)
    file = MarkFile.read(tmp_path)
    assert file.last is None
    file.write(Mark(3, ()))
    assert marks(tmp_path) == Mark(3, ())


def test_the_newest_epochs_are_in_it_where_not_all_fit() -> None:
    index = Index(2000, 1, "boot-1", ())
    tracks = [
        Track(number, 2**62 + number, "boot-1", 2**62 + number - 1, 1 << 40, 1 << 40) for number in range(1, 1000)
    ]
    index.lanes["telemetry"] = LaneIndex(tracks)
    index.lanes["control"] = LaneIndex([Track(1500, 7, "boot-1", 0, 0, 3, delivered=2)])
    slot = pack(mark_of(index), 1)
    assert len(slot) <= SLOT
    found, _ = unpack(slot)
    assert found is not None
    assert found.reached[0] == Reached("control", 1500, 7, 0, 0, 3, 2)
    ordinals = [one.ordinal for one in found.reached]
    assert ordinals[1:] == list(range(999, 999 - len(ordinals) + 1, -1))
    assert len(ordinals) > 200


def test_a_mark_that_cannot_be_written_is_said_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = MarkFile.read(tmp_path)
    file.path.mkdir()
    file.write(Mark(1, ()))
    assert "mark cannot be written: Is a directory" in caplog.text.replace("[Errno 21] ", "")
