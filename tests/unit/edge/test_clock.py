"""The agent's clock: stamps are put right as far as anything vouches for it, and never called better than that."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.buffer.port import Stored
from edge_agent.clock import CHECK_EVERY, FILE, Clock, boot_id, kernel_synced

HOUR = 3_600_000
DAY = 24 * HOUR
TODAY = 1_800_000_000_000
"""Right time when a machine has run for 0 s, milliseconds."""


class Machine:
    """A gateway's hardware: how long it runs, what its wall clock says, whether the kernel trusts that."""

    def __init__(self, wall_ms: int = TODAY, *, synced: bool = False) -> None:
        self.running = 0.0
        self.suspended = 0.0
        self.set_ms = wall_ms
        self.synced = synced

    def step(self, seconds: float) -> None:
        self.running += seconds


class OnMachine(Clock):
    """The clock on such a machine."""

    def __init__(self, machine: Machine, directory: Path | None = None, boot: str = "b1", built_ms: int = 0) -> None:
        self.machine = machine
        super().__init__(directory, boot=boot, synced=lambda: machine.synced, built_ms=built_ms)

    def mono(self) -> float:
        return self.machine.running

    def since_boot(self) -> float:
        return self.machine.running + self.machine.suspended

    def wall_ms(self) -> int:
        return self.machine.set_ms + int(self.since_boot() * 1000)

    def stamp(self) -> tuple[int, int]:
        return self.wall_ms(), int(self.mono() * 1e9)


def test_t1_a_stamp_of_before_the_clock_was_set_is_corrected_once_it_is() -> None:
    machine = Machine(0)
    clock = OnMachine(machine)
    machine.step(10)
    early = clock.stamp()
    assert clock.right(*early, "b1") == (10_000, "unknown")
    machine.set_ms, machine.synced = TODAY, True
    machine.step(CHECK_EVERY)
    late = clock.stamp()
    clock.look()
    assert clock.right(*early, "b1") == (TODAY + 10_000, "corrected")
    assert clock.right(*late, "b1") == (late[0], "synced")


def test_stamps_of_an_earlier_boot_are_as_right_as_that_boot_became(tmp_path: Path) -> None:
    machine = Machine(0)
    clock = OnMachine(machine, tmp_path)
    stamp = clock.stamp()
    machine.set_ms, machine.synced = TODAY, True
    machine.step(2)
    clock.look()
    assert clock.is_unsaved
    clock.save()
    after = OnMachine(Machine(TODAY + DAY), tmp_path, "b2")
    assert after.right(*stamp, "b1") == (TODAY, "corrected")
    assert after.right(TODAY + 2000, 2_000_000_000, "b1") == (TODAY + 2000, "synced")
    assert after.right(*stamp, "b0") == (0, "unknown")


def test_what_was_stamped_after_the_sync_was_lost_is_unknown() -> None:
    machine = Machine(synced=True)
    clock = OnMachine(machine)
    good = clock.stamp()
    machine.step(2)
    machine.synced = False
    clock.look()
    machine.step(5)
    machine.set_ms += DAY
    doubtful = clock.stamp()
    assert clock.right(*good, "b1") == (good[0], "synced")
    assert clock.right(*doubtful, "b1") == (TODAY + 7000, "unknown")


def test_t2_a_clock_that_jumps_is_asked_for_at_once_and_expires_nothing() -> None:
    machine = Machine(synced=True)
    clock = OnMachine(machine)
    machine.step(0.5)
    machine.set_ms, machine.synced = TODAY + 30 * DAY, False  # setting it is what makes the kernel doubt it
    assert clock.now_ms() == TODAY + 500
    machine.set_ms = TODAY - 30 * DAY
    assert clock.now_ms() == TODAY + 500
    machine.set_ms, machine.synced = TODAY + 1000, True
    machine.step(CHECK_EVERY)
    assert clock.now_ms() == TODAY + 2500


def test_t2_a_clock_that_nobody_vouches_for_may_jump_and_nothing_expires() -> None:
    machine = Machine()
    clock = OnMachine(machine)
    machine.set_ms += 30 * DAY
    machine.step(3)
    assert clock.now_ms() == TODAY + 3000


def test_the_age_of_a_stamp_does_not_ask_the_wall_clock(tmp_path: Path) -> None:
    machine = Machine()
    clock = OnMachine(machine, tmp_path)
    stamp = clock.stamp()
    machine.step(100)
    machine.set_ms += 30 * DAY
    assert clock.age_ms(*stamp, "b1") == 100_000
    assert clock.age_ms(*stamp, "b0") is None
    machine.set_ms, machine.synced = TODAY, True
    clock.look()
    clock.save()
    second = Machine(TODAY + HOUR)
    clock = OnMachine(second, tmp_path, "b2")
    assert clock.age_ms(*stamp, "b1") is None  # how long ago an earlier boot was nobody knows without the time
    second.synced = True
    second.step(CHECK_EVERY)
    clock.look()
    assert clock.age_ms(*stamp, "b1") == HOUR + 1000


def test_t3_a_clock_at_1970_counts_on_from_what_has_surely_passed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(synced=True)
    OnMachine(machine, tmp_path).save()
    machine = Machine(0)
    clock = OnMachine(machine, tmp_path, "b2")
    machine.step(600)
    assert clock.right(*clock.stamp(), "b2") == (TODAY + 600_000, "unknown")
    clock.save()
    machine = Machine(0)
    clock = OnMachine(machine, tmp_path, "b3")
    machine.step(600)
    # It never runs backwards over boots.
    assert clock.right(*clock.stamp(), "b3") == (TODAY + 1_200_000, "unknown")
    assert clock.floor_ms() == clock.now_ms() == TODAY + 1_200_000
    assert clock.trouble == "wrong: it says 1970-01-01 00:10 UTC; times count on from 2027-01-15 08:20 UTC"
    assert "it says 1970-01-01 00:00 UTC, and that has passed" in caplog.text
    machine.set_ms, machine.synced = TODAY + DAY, True
    machine.step(CHECK_EVERY)
    clock.look()
    assert (clock.floor_ms(), clock.trouble) == (None, "")
    assert clock.right(1000, 10**9, "b3") == (TODAY + DAY + 1000, "corrected")
    assert clock.right(1000, 10**9, "b2") == (TODAY + 1000, "unknown")


def test_the_kernels_word_lowers_a_floor_that_was_too_high(tmp_path: Path) -> None:
    OnMachine(Machine(TODAY + 900 * DAY, synced=True), tmp_path).save()
    machine = Machine(TODAY)
    clock = OnMachine(machine, tmp_path, "b2")
    assert clock.is_behind()
    machine.synced = True
    machine.step(CHECK_EVERY)
    clock.look()
    clock.save()
    assert not clock.is_behind()
    assert not OnMachine(Machine(TODAY + HOUR), tmp_path, "b3").is_behind()


def test_the_program_is_older_than_the_present(tmp_path: Path) -> None:
    clock = OnMachine(Machine(0), tmp_path, built_ms=TODAY)
    assert clock.floor_ms() == TODAY


def test_a_suspended_machine_keeps_its_good_stamps_and_vouches_for_no_others() -> None:
    machine = Machine(synced=True)
    clock = OnMachine(machine)
    good = clock.stamp()
    machine.step(10)
    machine.suspended = HOUR / 1000
    clock.look()
    later = clock.stamp()
    assert clock.right(*good, "b1") == (good[0], "synced")
    assert clock.right(*later, "b1") == (later[0], "synced")
    assert clock.right(0, 5 * 10**9, "b1") == (TODAY + 5000, "unknown")  # before the suspend, or after?


def test_a_frame_says_the_worst_of_its_stamps() -> None:
    machine = Machine(0)
    clock = OnMachine(machine)
    messages = [Stored("t", "c", *_swap(clock.stamp()))]
    machine.set_ms, machine.synced = TODAY, True
    machine.step(CHECK_EVERY)
    clock.look()
    messages += [Stored("t", "c", *_swap(clock.stamp()))] * 2
    right, quality = clock.stamped(messages, "b1")
    assert [message.wall_ms for message in right] == [TODAY, TODAY + 1000, TODAY + 1000]
    assert quality == "corrected"
    assert clock.stamped(messages[1:], "b1") == (messages[1:], "synced")
    assert clock.stamped(messages, "other") == (messages, "unknown")


def _swap(stamp: tuple[int, int]) -> tuple[int, int, bytes, bytes, int]:
    """The fields of a stored message from its stamp on."""
    return stamp[0], 0, b"", b"", stamp[1]


@pytest.mark.parametrize("junk", [b"", b"{", b'{"floor_ms": "x"}', b"\xff"])
def test_a_file_that_cannot_be_read_is_said_and_costs_only_what_it_held(
    tmp_path: Path, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(junk)
    clock = OnMachine(Machine(synced=True), tmp_path)
    assert f"{tmp_path / FILE} cannot be used" in caplog.text
    clock.save()
    assert not clock.is_unsaved
    assert list(OnMachine(Machine(), tmp_path, "b2").boots) == ["b1"]


def test_a_file_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = OnMachine(Machine(synced=True), tmp_path / "missing")
    clock.save()
    assert "the time cannot be saved: No such file or directory" in caplog.text
    assert not clock.is_unsaved


def test_only_so_many_boots_are_kept(tmp_path: Path) -> None:
    for number in range(300):
        OnMachine(Machine(TODAY + number * HOUR, synced=True), tmp_path, f"b{number}").save()
    clock = OnMachine(Machine(TODAY + 300 * HOUR), tmp_path)
    assert list(clock.boots) == [f"b{number}" for number in range(300 - 256, 300)]


def test_without_a_boot_id_no_stamp_is_vouched_for() -> None:
    clock = OnMachine(Machine(synced=True), boot="")
    assert clock.right(*clock.stamp(), "") == (TODAY, "unknown")
    assert clock.age_ms(*clock.stamp(), "") is None


def test_the_kernels_answer_is_adjtimex_own() -> None:
    # The same question through another door: adjtimex(2) fills 208 bytes; its state is the return value.
    libc = ctypes.CDLL(None)
    buffer = ctypes.create_string_buffer(512)
    state = libc.adjtimex(buffer)
    status = int.from_bytes(buffer.raw[5 * ctypes.sizeof(ctypes.c_long) :][:4], sys.byteorder)
    assert kernel_synced() == (state < 5 and not status & 0x40)


def test_the_boot_id_is_the_kernels() -> None:
    assert boot_id() == subprocess.check_output(["cat", "/proc/sys/kernel/random/boot_id"], text=True).strip()
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == boot_id()
