"""Ports that processes find free, and keep."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fleet_simulator import ports as module
from fleet_simulator.ports import Ports, free_ports
from waybill.errors import Unavailable

OTHER = "from fleet_simulator.ports import free_ports; print(*free_ports(1000), flush=True); input()"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> range:
    """Leave two blocks of a few ports, out of one that nobody else has, and where nobody listens."""
    block = module._OURS._block()
    while not all(map(module._is_free, block)):
        block = module._OURS._block()
    monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setattr(module, "_FLOOR", block.start + 8)
    monkeypatch.setattr(module, "_ceiling", lambda: block.start + 24)
    return range(block.start + 8, block.start + 24)


@pytest.fixture
def ports() -> Iterator[Ports]:
    """Give ports such as another process has."""
    made = Ports()
    yield made
    for held in made._mine.values():
        os.close(held)


def test_they_are_free_and_different() -> None:
    found = free_ports(200)
    assert len(set(found)) == 200
    for port in found:
        socket.create_server(("127.0.0.1", port)).close()


def test_no_two_processes_are_given_the_same() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout is not None
            theirs = set(map(int, other.stdout.readline().split()))
            assert len(theirs) == 1000
            assert theirs.isdisjoint(free_ports(1000))
        finally:
            other.communicate("\n")


def test_one_where_somebody_listens_is_left_out_and_ours_come_again_when_there_are_no_others(
    few: range, ports: Ports
) -> None:
    with socket.create_server(("127.0.0.1", few[3])):
        found = ports.take(len(few) - 1)
        assert sorted([*found, few[3]]) == list(few)
        assert ports.take(3) == found[:3]


def test_where_there_are_not_so_many_that_is_said(few: range, ports: Ports) -> None:
    with pytest.raises(Unavailable, match=f"no {len(few) + 1} free TCP ports"):
        ports.take(len(few) + 1)
    with pytest.raises(Unavailable, match="other processes have all TCP ports"):
        Ports().take(1)
