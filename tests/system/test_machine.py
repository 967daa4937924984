"""docs/gateway.md on a computer that boots: systemd is its process 1, its clock may be wrong, and its power is cut.

The cloud's side is on this host, and so are the devices; the gateway is a :class:`Machine`.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleet_simulator.ports import free_ports
from tests.support.machine import FAR, Machine, packages, until
from tests.system.test_deb import BUILD, INSTALL, ISSUE, PUBLISH, PURGE, REMOVE, ingest, newer

pytestmark = [pytest.mark.system, pytest.mark.long]

ROOT: Final = Path(__file__).parents[2]
DAY: Final = 86_400
AHEAD: Final = 30 * DAY
"""What the network's time has over that of this host, so that it can be told from any other: seconds."""

CLOUD: Final = """
data = "cloud"
[listener]
address = "127.0.0.1:{port}"
certificate = "pki/server/server.pem"
key = "pki/server/server.key"
ca = "pki/server/ca.pem"
[log]
kind = "embedded"
"""

TIME: Final = """
import socket, struct, sys, time
right = float(sys.argv[1]) - time.monotonic() + 2_208_988_800
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 123))
while True:
    asked, who = server.recvfrom(512)
    now = struct.pack("!Q", int((right + time.monotonic()) * 2**32))
    server.sendto(struct.pack("!BBbbII4s", 0x24, 1, 0, -20, 0, 0, b"GPS") + now + asked[40:48] + now + now, who)
"""
"""An SNTP server (RFC 4330) in the machine, for systemd's client."""


class Device:
    """It publishes 1, 2, 3 … with QoS 1, a few at a time, until the connection ends. ``acked``: in their order."""

    def __init__(self, port: int) -> None:
        self.acked: list[int] = []
        self._sent: dict[int, int] = {}
        self._client = paho.Client(CallbackAPIVersion.VERSION2, "truck-7", clean_session=True)
        self._client.username_pw_set("truck-7", "correct horse")
        self._client.on_publish = self._on_publish
        self._client.on_connect = self._on_connect
        self._client.connect("127.0.0.1", port)
        self._loop = threading.Thread(target=self._run, daemon=True)
        self._loop.start()

    def end(self) -> None:
        """Wait for the end of the connection, which somebody else has ended."""
        self._loop.join(FAR)
        assert not self._loop.is_alive()

    def _publish(self) -> None:
        number = len(self._sent) + 1
        self._sent[self._client.publish("vehicles/truck-7/telemetry", str(number), 1).mid] = number

    def _on_connect(self, *_: object) -> None:
        for _each in range(20):
            self._publish()

    def _on_publish(self, _client: object, _data: object, mid: int, *_: object) -> None:
        self.acked.append(self._sent[mid])
        self._publish()

    def _run(self) -> None:
        while self._client.loop(1.0) == paho.MQTT_ERR_SUCCESS:
            pass


class Site:
    """The gateway, and a computer with the cloud's side."""

    def __init__(self, work: Path) -> None:
        self.computer = work / "computer"
        self.computer.mkdir()
        self.machine = Machine(work / "gateway")
        self.ingest, self.devices = free_ports(2)
        self._environment = os.environ | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}

    def prepare(self) -> None:
        """Make what the computer has for the gateway, and the gateway's disk with that in /srv."""
        (self.computer / "cloud.toml").write_text(CLOUD.format(port=self.ingest))
        for old in (ROOT / "dist").glob("waybill-edge_*.deb"):
            old.unlink()
        subprocess.run(shlex.split(BUILD.splitlines()[0]), check=True, cwd=ROOT, env=self._environment)
        for line in ISSUE:
            self.run(*shlex.split(line))
        (package,) = (ROOT / "dist").glob("waybill-edge_*+deb12_amd64.deb")
        srv = self.machine.root / "srv"
        srv.mkdir()
        shutil.copy(package, srv)
        (srv / "newer").mkdir()
        newer(package, srv / "newer" / package.name)
        shutil.copytree(self.computer / "pki/gateways/depot-1", srv / "depot-1")
        (srv / "time.py").write_text(TIME)
        (self.machine.root / "var/log/journal").mkdir(parents=True)
        to_it = self.machine.root / "etc/systemd/timesyncd.conf.d/here.conf"
        to_it.parent.mkdir(parents=True)
        to_it.write_text("[Time]\nNTP=127.0.0.1\n")
        # What it remembers of the time would hide what a machine is like that has nothing of the kind.
        self.machine.build(packages(), "10.0.2.2 ingest.example", off=("systemd-timesyncd.service",))

    def run(self, *command: str) -> str:
        """Run a command on the computer; return what it printed."""
        return subprocess.run(
            command,
            check=True,
            cwd=self.computer,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=FAR,
        ).stdout

    def on_gateway(self, lines: str) -> str:
        """Do what the page says for the gateway; without a network where packages change."""
        said = ""
        for line in lines.strip().splitlines():
            text = re.sub(r"\b8883\b", str(self.ingest), line).replace("sudo ", "")
            said += self.machine.does(f"unshare --net {text}" if "apt-get" in text else text)
        return said

    def cloud(self) -> AbstractContextManager[None]:
        """Let the ingest run."""
        return ingest(self.computer, self.ingest, self._environment)

    def arrived(self) -> list[dict[str, Any]]:
        """Return the telemetry that the cloud has."""
        said = self.run("waybill", "cloud", "tail", "fleet.telemetry", "--config", "cloud.toml", "--end", "--json")
        return [json.loads(line) for line in said.splitlines()]

    def values(self) -> list[str]:
        """Return its payloads."""
        return [each["value"] for each in self.arrived()]

    @contextmanager
    def gateway(self, *, clock: str = "") -> Iterator[Machine]:
        """Let the gateway run."""
        with self.machine.on({self.devices: 1883}, clock=clock):
            yield self.machine

    def serves(self) -> None:
        """Wait until the service is up."""
        until(lambda: self.machine.types("systemctl is-active waybill-edge")[1] == "active\n")

    def property(self, name: str) -> str:
        return self.machine.does(f"systemctl show --property={name} --value waybill-edge").strip()

    def publish(self, payload: str) -> None:
        """Have a device on the gateway publish as the page says, again where it was too slow to be let in."""
        device = shlex.split(PUBLISH)
        command = shlex.join([*device[: device.index("-m")], "-m", payload])
        until(lambda: self.machine.types(command)[0] == 0)


def installed(site: Site) -> None:
    """As the page says, up to the first message; then what systemd sees of it."""
    site.on_gateway(INSTALL)
    site.serves()
    site.on_gateway(PUBLISH)
    until(lambda: site.values() == ['{"speed": 50}'])
    machine = site.machine
    assert site.property("UnitFileState") == "enabled"
    assert re.search(r"level for .*: 1\.\d", machine.does("systemd-analyze security waybill-edge"))
    lines = [json.loads(line) for line in machine.does("journalctl -u waybill-edge -o json _COMM=python3").splitlines()]
    (warned,) = [line for line in lines if "passwords cross the network" in line["MESSAGE"]]
    assert (warned["PRIORITY"], warned["SYSLOG_IDENTIFIER"]) == ("4", "waybill")
    assert "online" in machine.does("waybill edge status")
    user = "setpriv --reuid nobody --regid nogroup --clear-groups"
    for command in ("edge status", "monitor --once"):
        code, said = machine.types(f"{user} waybill {command}")
        assert (code, said.count("\n")) == (2, 1)
        assert "not for this user" in said


def restarted_by_the_watchdog(site: Site) -> None:
    """An agent that does nothing any more is ended, and started anew."""
    site.machine.does(f"kill -STOP {site.property('MainPID')}")
    until(lambda: site.property("NRestarts") == "1")
    site.serves()
    assert "Watchdog timeout" in site.machine.does("journalctl -u waybill-edge")


def set_time(site: Site) -> None:
    """Have systemd's client set the clock, from a server that is thirty days ahead."""
    site.machine.does(f"systemd-run --quiet python3 -IS /srv/time.py {time.time() + AHEAD:.0f}")
    site.machine.does("systemctl start systemd-timesyncd")
    until(lambda: "yes" in site.machine.does("timedatectl show --property=NTPSynchronized"))
    until(lambda: '"good":true' in site.machine.does("cat /var/lib/waybill/clock.json"))


def test_b1_t1_t3_a_gateway_under_systemd_through_a_power_cut_and_a_wrong_clock(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.prepare()
    with site.gateway() as machine:
        with site.cloud():
            installed(site)
            restarted_by_the_watchdog(site)
            device = Device(site.devices)
            until(lambda: len(device.acked) >= 300)
        kept = len(device.acked) + 300
        until(lambda: len(device.acked) >= kept)
        machine.cut_power()
        device.end()
    acked = [str(number) for number in device.acked]

    with site.gateway(clock="1970-01-01") as machine:
        site.serves()  # without anybody's doing
        with site.cloud():
            until(lambda: set(acked) <= set(site.values()))
        assert "the clock is wrong" in machine.does("journalctl -b -u waybill-edge")
        found = [value for value in site.values() if value.isdigit()]
        assert found[: len(acked)] == acked
        assert len(found) == len(set(found))
        site.publish("kept")
        set_time(site)
        site.publish("right")
        machine.power_off()

    with site.gateway() as machine:
        assert "waybill-edge.service: Deactivated successfully" in machine.does("journalctl -b -1 -u waybill-edge")
        site.serves()
        with site.cloud():
            until(lambda: "right" in site.values())
        last = [each for each in site.arrived() if each["value"] in {"kept", "right"}]
        assert [each["value"] for each in last] == ["kept", "right"]
        for each in last:
            assert each["headers"]["waybill_clock"] == "corrected"
            stamp = dt.datetime.fromisoformat(each["headers"]["ce_time"]).timestamp()
            assert abs(stamp - time.time() - AHEAD) < DAY
        upgraded_and_removed(site)


def upgraded_and_removed(site: Site) -> None:
    """With messages that wait: a newer package goes on with them, a removal leaves them, a purge does not."""
    machine = site.machine
    for number in range(3):
        site.publish(f"before {number}")
    before = site.property("MainPID")
    site.on_gateway("apt-get install -y -q ./newer/waybill-edge_*.deb")
    site.serves()
    assert site.property("MainPID") != before
    site.publish("after")
    with site.cloud():
        until(lambda: "after" in site.values())
    last = dict.fromkeys(value for value in site.values() if value.startswith(("before", "after")))
    assert list(last) == ["before 0", "before 1", "before 2", "after"]
    site.on_gateway(REMOVE)
    assert "not-found" in machine.does("systemctl show --property=LoadState waybill-edge")
    assert machine.types("pgrep -u waybill")[0] == 1
    machine.does("test -s /etc/waybill/agent.toml && test -s /var/lib/waybill/buffer.db")
    site.on_gateway(PURGE)
    machine.does("test ! -e /etc/waybill && test ! -e /var/lib/waybill && ! getent passwd waybill")
