"""Bytes written to storage, by the kernel's count."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import flash
from edge_agent.flash import Flash, FlashState, written


def counted(path: Path, write: int, cancelled: int = 0) -> None:
    path.write_text(f"rchar: 1\nwrite_bytes: {write}\ncancelled_write_bytes: {cancelled}\n")


def test_bytes_are_counted_from_the_start_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_IO", tmp_path / "io")
    counted(tmp_path / "io", 1000)
    one = Flash(100.0)
    assert one.state(100.0, 0) == FlashState(0, None, 0.0)
    counted(tmp_path / "io", 9000, 2000)
    assert one.state(100.0 + 43_200, 10) == FlashState(6000, 600.0, 12_000.0)


def test_a_kernel_that_does_not_say_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_IO", tmp_path / "io")
    assert written() is None
    assert Flash(0.0).state(1.0, 1) is None


def test_this_kernel_does() -> None:
    assert written() is not None
