"""The units as systemd reads them, and whether what they forbid is what the agent does not do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.edge.peer import Cloud, listening, until
from tests.support.notified import notified
from waybill.console.main import main

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
UNITS = {"waybill-edge": ROOT / "edge_agent/setup", "waybill-cloud": ROOT / "deploy/systemd"}


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_understood_and_hardened(name: str, tmp_path: Path) -> None:
    text = (UNITS[name] / f"{name}.service").read_text()
    unit = tmp_path / f"{name}.service"
    unit.write_text(text.replace("/opt/waybill/bin/waybill", "/bin/true"))
    assert analyze("verify", str(unit)) == ""
    said = analyze("security", "--offline=true", "--threshold=20", str(unit))
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", said)
    assert found is not None
    assert float(found[1]) <= 2.0


def test_an_image_has_the_user_and_the_modes_once_it_boots(tmp_path: Path) -> None:
    """What the first boot does, done by systemd's own tools."""
    root, config = tmp_path / "image", tmp_path / "agent.toml"
    (root / "etc").mkdir(parents=True)
    config.write_text('gateway = "g"\ndata = "/var/lib/waybill"\n')
    options = ["--root", str(root), "--program", "/opt/waybill/bin/waybill", "--config", str(config)]
    assert main(["edge", "install", *options]) == 0
    (root / "etc/waybill/users").touch(mode=0o600)
    for tool in ("systemd-sysusers", "systemd-tmpfiles --create"):
        subprocess.run([*tool.split(), f"--root={root}"], check=True)
    (line,) = [each for each in (root / "etc/passwd").read_text().splitlines() if each.startswith("waybill:")]
    group = int(line.split(":")[3])
    for path, mode in (("", 0o750), ("agent.toml", 0o640), ("users", 0o640)):
        found = (root / "etc/waybill" / path).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, group, mode)


def calls(name: str) -> set[str]:
    """Return the system calls of one of systemd's groups."""
    found: set[str] = set()
    for line in analyze("syscall-filter", name).splitlines()[1:]:
        text = line.strip()
        if text and not text.startswith("#"):
            found |= calls(text) if text.startswith("@") else {text}
    return found


def allowed(unit: str) -> set[str]:
    """Return what the filters of a unit leave."""
    found: set[str] = set()
    for line in re.findall(r"(?m)^SystemCallFilter=(.*)$", unit):
        named = {call for name in line.lstrip("~").split() for call in (calls(name) if name[0] == "@" else {name})}
        found = found - named if line.startswith("~") else found | named
    return found


AS_ROOT = {"fchown"}
"""What SQLite does as root alone."""


async def test_the_agent_does_nothing_that_its_unit_forbids(tmp_path: Path) -> None:
    """By what the kernel is asked: system calls, address families, memory to write and execute."""
    trace, lock = tmp_path / "trace", tmp_path / "data" / "lock"
    async with listening(Cloud()) as cloud:
        config = tmp_path / "agent.toml"
        config.write_text(
            'gateway = "gw1"\ndata = "data"\n[[listener]]\nport = 0\n[[listener]]\nkind = "unix"\npath = "mqtt.sock"\n'
            f'[[uplink]]\nurl = "mqtt://localhost:{cloud.address[1]}"\n'
        )
        with notified(tmp_path, 2.0) as heard:
            strace = ["strace", "-f", "-qq", "-o", str(trace)]
            agent = await asyncio.create_subprocess_exec(*strace, sys.executable, "-P", "-m", "edge_agent", str(config))
            try:
                await heard.until("READY=1")
                await until(lambda: cloud.subscribed)
                await heard.until("WATCHDOG=1")
            finally:
                if lock.exists():
                    os.kill(int(lock.read_text()), signal.SIGTERM)
                async with asyncio.timeout(60):
                    await agent.wait()
        assert agent.returncode == 0
    said = trace.read_text()
    used = set(re.findall(r"(?m)^\d+ +([a-z]\w+)\(", said))
    unit = (UNITS["waybill-edge"] / "waybill-edge.service").read_text()
    assert {"fdatasync", "execve", "socket"} <= used
    assert {"adjtimex", "clock_adjtime"} & used
    assert used - allowed(unit) <= AS_ROOT
    families = set(re.findall(r"socket\((AF_\w+)", said))
    assert {"AF_UNIX", "AF_INET"} <= families <= set(re.findall(r"AF_\w+", unit))
    assert not re.search(r"mmap\([^)]*PROT_WRITE\|PROT_EXEC", said)
    assert not re.search(r"mprotect\([^)]*PROT_EXEC", said)
