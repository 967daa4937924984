"""The Debian package of docs/gateway.md: each command of its section, on a fresh root file system, into a real Kafka.

The root file system is Debian 12's own; it has no network while packages are installed,
upgraded and removed, and no systemd. The cloud's side is outside.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from fleet_simulator.ports import free_ports

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gateway.md").read_text()
(SECTION,) = re.findall(r"(?ms)^## As a Debian package$(.*?)(?=^## )", PAGE)
BUILD, INSTALL, RUN, REMOVE, PURGE = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
ISSUE = re.findall(r"(?m)^waybill cloud (?:ca|server|gateway) .*$", PAGE)
(PUBLISH,) = re.findall(r"(?m)^mosquitto_pub .*$", PAGE)
TAIL = "waybill cloud tail fleet.telemetry --config cloud.toml --end"
TRANSCRIPT = ROOT / "docs" / "transcripts" / "debian-package.txt"
WAITING = [f"message {number}" for number in range(200)]
FAR = 240.0
"""Seconds after which nothing is waited for any more."""

CLOUD = """
data = "var/cloud"
deployment = "{name}"
[listener]
address = "127.0.0.1:{ingest}"
certificate = "pki/server/server.pem"
key = "pki/server/server.key"
ca = "pki/server/ca.pem"
[log]
kind = "kafka"
"bootstrap.servers" = "{kafka}"
[topics]
prefix = "{name}."
partitions = 1
[[route]]
topic = "{name}.telemetry"
"""

ENTER = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" &&
exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive bash -c "cd /srv; $1"
"""


def until(met: Callable[[], object], agent: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for ``met``; fails after ``FAR``, or when ``agent`` has ended."""
    end = time.monotonic() + FAR
    while not met():
        assert time.monotonic() < end
        assert agent is None or agent.poll() is None
        time.sleep(0.1)


def answers(port: int) -> bool:
    """Return whether somebody listens on a port of this machine."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def ingest(directory: Path, port: int, environment: Mapping[str, str]) -> Iterator[None]:
    """Run the ingest of the ``cloud.toml`` in ``directory``, which listens on ``port``."""
    with (directory / "cloud.log").open("a") as said:
        node = subprocess.Popen(
            ["waybill", "cloud", "run", "--config", "cloud.toml"],
            cwd=directory, env=environment, stdout=said, stderr=said,
        )  # fmt: skip
    try:
        until(lambda: answers(port), node)
        yield
    finally:
        node.terminate()
        assert node.wait(60) == 0


def fresh_root(to: Path) -> None:
    """Unpack a Debian with Python: downloaded once a day."""
    kept = ROOT / "var" / "debian"
    tar = kept / f"bookworm-{time.strftime('%Y%m%d')}.tar"
    if not tar.exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        made = kept / "part.tar"
        options = [
            "--quiet",
            "--variant=apt",
            "--include=python3",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=force-unsafe-io",
        ]
        subprocess.run(["mmdebstrap", *options, "bookworm", str(made)], check=True)
        made.rename(tar)
    to.mkdir()
    subprocess.run(["tar", "-xf", str(tar), "-C", str(to)], check=True)


class Site:
    """A computer with the cloud's side, a gateway in a root file system, and what was typed on both."""

    def __init__(self, work: Path, kafka: str, name: str) -> None:
        self.computer, self.root, self.name, self.kafka = work / "computer", work / "root", name, kafka
        self.ingest, self.devices = free_ports(2)
        self.log = work / "agent.log"
        self.typed: list[str] = []
        self._path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"

    def own(self, line: str) -> str:
        """Return a line of the page with the ports and the topic of this run."""
        line = re.sub(r"\b8883\b", str(self.ingest), line).replace(":1883", f":{self.devices}")
        line = line.replace("mosquitto_pub -h 127.0.0.1", f"mosquitto_pub -h 127.0.0.1 -p {self.devices}")
        return line.replace("fleet.telemetry", f"{self.name}.telemetry")

    def on_computer(self, lines: str) -> str:
        """Do what the page says for the computer; return what was said."""
        return "".join(self._typed("computer", line, self._here(line)) for line in lines.strip().splitlines())

    def on_gateway(self, lines: str) -> str:
        """Do what the page says for the gateway, without a network but loopback where packages change."""
        said = ""
        for line in lines.strip().splitlines():
            offline = ["--net"] if "apt-get" in line else []
            said += self._typed("gateway", line, ["unshare", "--mount", *offline, *self.inside(line)])
        return said

    def inside(self, line: str) -> list[str]:
        """Return the command that does a line in the gateway's root file system, as root, so that sudo is nothing."""
        text = self.own(line).replace("sudo ", "")
        return ["bash", "-c", ENTER, str(self.root), text]

    def environment(self) -> dict[str, str]:
        return os.environ | {"PATH": self._path}

    def _here(self, line: str) -> list[str]:
        text = self.own(line)
        if line.startswith("make "):
            text = f"cd {shlex.quote(str(ROOT))}; {text}"
        copy = f'scp() {{ shift 2; cp -r "${{@:1:$#-1}}" {shlex.quote(str(self.root / "srv"))}; }}; '
        return ["bash", "-c", copy + text]

    def _typed(self, where: str, line: str, command: list[str]) -> str:
        done = subprocess.run(
            command, check=False, cwd=self.computer, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=FAR,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        said = done.stdout.replace(self.name, "fleet").replace(f"{ROOT}/", "").replace(str(self.ingest), "8883")
        said = said.replace(str(self.computer), "/home/you")
        self.typed += [f"{where}$ {line}", *said.replace(str(self.devices), "1883").splitlines()]
        return done.stdout

    def cloud(self) -> AbstractContextManager[None]:
        """Let the ingest run."""
        return ingest(self.computer, self.ingest, self.environment())

    @contextmanager
    def agent(self) -> Iterator[None]:
        """Let the agent run, as the page says it for a machine without systemd."""
        line = RUN.splitlines()[-1]
        with self.log.open("wb") as said:
            agent = subprocess.Popen(
                ["unshare", "--mount", *self.inside(line.replace("sudo ", "exec "))], stdout=said, stderr=said
            )
        try:
            until(lambda: answers(self.devices), agent)
            yield
        finally:
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(60) == 0, self.log.read_text()

    def in_kafka(self) -> list[str]:
        """Return the telemetry that Kafka has, as a client of other people's reads it."""
        read = [
            "kcat",
            "-C",
            "-b",
            self.kafka,
            "-t",
            f"{self.name}.telemetry",
            "-o",
            "beginning",
            "-e",
            "-q",
            "-f",
            "%s\n",
        ]
        return subprocess.run(read, capture_output=True, text=True, check=True, timeout=FAR).stdout.splitlines()


def newer(package: Path, to: Path) -> None:
    """Build the same package again, as a higher version."""
    tree = to.parent / "newer"
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(tree)], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^(Version: .*)-1\+", r"\1-2+", control.read_text()))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(to)], check=True)


@pytest.fixture
def site(tmp_path: Path, kafka: str, unique: str) -> Iterator[Site]:
    """Give a fresh gateway, a package for it and a computer with a configuration for its ingest."""
    site = Site(tmp_path, kafka, unique)
    site.computer.mkdir()
    (site.computer / "dist").symlink_to(ROOT / "dist")
    (site.computer / "cloud.toml").write_text(CLOUD.format(name=unique, ingest=site.ingest, kafka=kafka))
    fresh_root(site.root)
    with (site.root / "etc" / "hosts").open("a") as hosts:
        hosts.write("127.0.0.1 localhost ingest.example\n")
    for old in (ROOT / "dist").glob("waybill-edge_*.deb"):
        old.unlink()
    site.on_computer(BUILD.splitlines()[0])
    yield site
    shutil.rmtree(site.root)


def first_message(site: Site) -> None:
    """From certificates to the first message in Kafka."""
    began = time.monotonic()
    site.on_computer("\n".join([*ISSUE, *BUILD.splitlines()[1:]]))
    with ExitStack() as stack:
        stack.enter_context(site.cloud())
        site.on_gateway(INSTALL)
        assert not [line for line in site.typed if line.startswith("failed")]
        *prepare, run = RUN.splitlines()
        site.on_gateway("\n".join(prepare))
        site.typed.append(f"gateway$ {run} &")
        stack.enter_context(site.agent())
        site.on_computer(PUBLISH)
        until(lambda: site.in_kafka() == ['{"speed": 50}'])
        assert '{"speed": 50}' in site.on_computer(TAIL)
    taken = time.monotonic() - began
    site.typed.append(f"From the certificates to here it took less than {taken // 60 + 1:.0f} min.")


def test_from_a_fresh_debian_to_kafka_and_through_an_upgrade(site: Site, tmp_path: Path) -> None:
    first_message(site)
    bundle, unit = site.root / "usr/lib/waybill", site.root / "etc/systemd/system/waybill-edge.service"
    assert "ExecStart=/usr/bin/waybill " in unit.read_text()
    assert not [path for path in bundle.iterdir() if "kafka" in path.name or path.name in {"cramjam", "pip", "bin"}]
    said = "".join(f"{line}\n" for line in site.typed)
    (ROOT / "var" / "debian-package.txt").write_text(said)
    commands = re.compile(r"(?m)^(?:computer|gateway)\$ .*$")
    assert commands.findall(TRANSCRIPT.read_text()) == commands.findall(said), "see var/debian-package.txt"

    kept = (site.root / "etc/waybill/agent.toml").read_bytes()
    with site.agent():
        device = shlex.split(site.own(PUBLISH))
        device = [*device[: device.index("-m")], "-l"]
        subprocess.run(device, input="\n".join(WAITING), text=True, check=True, timeout=FAR)
    (package,) = (site.root / "srv").glob("*.deb")
    newer(package, tmp_path / "waybill-edge_newer.deb")
    package.unlink()
    shutil.copy(tmp_path / "waybill-edge_newer.deb", site.root / "srv")
    link = unit.parent / "multi-user.target.wants" / unit.name
    link.unlink()  # disabled
    site.on_gateway(INSTALL.splitlines()[0])
    assert unit.exists()
    assert not link.is_symlink()
    assert "-2+deb" in site.on_gateway("dpkg-query --show waybill-edge")
    assert len(site.in_kafka()) == 1
    with site.cloud(), site.agent():
        until(lambda: len(site.in_kafka()) > len(WAITING))
    assert site.in_kafka() == ['{"speed": 50}', *WAITING]

    assert "messages that wait" in site.on_gateway(REMOVE)
    assert not bundle.exists()
    assert not unit.exists()
    assert (site.root / "etc/waybill/agent.toml").read_bytes() == kept
    assert (site.root / "var/lib/waybill/buffer.db").stat().st_size > 0
    site.on_gateway(INSTALL.splitlines()[0])
    assert link.is_symlink()
    site.on_gateway(PURGE)
    assert not unit.exists()
    assert not [name for name in ("etc/waybill", "var/lib/waybill") if (site.root / name).exists()]
    assert "\nwaybill:" not in (site.root / "etc/passwd").read_text()
