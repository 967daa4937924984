"""``waybill edge check`` against a real ingest, beside a real agent: what it proves, and what it finds wrong."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from edge_agent import config
from edge_agent.setup import check_machine
from edge_agent.setup.check import check
from edge_agent.setup.finding import Finding
from tests.integration.cloud.gateway import Pki, connected
from tests.integration.edge import agents
from tests.integration.edge.peer import GATEWAY, until
from tests.integration.ways import arrived, ingest_at, numbered
from tests.support.proxies import http_proxy
from waybill import pki, wire
from waybill.config import address
from waybill.console.main import main
from waybill.mqtt.server import MqttServer
from waybill.mqtt.testing import MemorySink

FILES = (("certificate", "pem"), ("key", "key"))
WAY = ["certificate", "dns", "tcp", "tls", "mqtt", "credit"]


def written(directory: Path, *tables: str, **top: Any) -> Path:
    """Write a configuration with one listener on a free port, unless ``tables`` has some."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in ({"gateway": GATEWAY, "data": "data"} | top).items()]
    listener = [] if any("[[listener]]" in table for table in tables) else ["[[listener]]", "port = 0"]
    path = directory / "agent.toml"
    path.write_text("\n".join([*lines, *listener, *tables]) + "\n")
    return path


def uplink(url: str, bundle: Path | None = None, **more: Any) -> str:
    files = {} if bundle is None else {"ca": "ca.pem", "certificate": "gateway.pem", "key": "gateway.key"}
    lines = [f'{key} = "{bundle}/{name}"' for key, name in files.items() if key not in more]
    return "\n".join(["[[uplink]]", f'url = "{url}"', *lines, *(f"{key} = {json.dumps(v)}" for key, v in more.items())])


async def steps(path: Path) -> dict[str, Finding]:
    """Run it; the steps by name."""
    found = [finding async for finding in check(path)]
    return {finding.step: finding for finding in found}


async def one(path: Path, step: str, verdict: str, text: str) -> None:
    """Run it; the step has this verdict, a text with ``text`` in it, and where it failed a mend."""
    found = (await steps(path))[step]
    assert (found.verdict, text in found.text) == (verdict, True), found
    assert found.mend or verdict in {"ok", "skipped"} or step == "config"


@pytest.fixture
def certificates(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


async def test_each_step_of_each_way_is_proven(tmp_path: Path, certificates: Pki) -> None:
    async with ingest_at(tmp_path / "cloud", certificates) as (_, make), http_proxy(tmp_path) as proxy:
        bundle = certificates.directory / GATEWAY
        through = f"http://{proxy.user}@127.0.0.1:{proxy.port}"
        ways = [
            uplink(make("mqtts").url, bundle, name="a"),
            uplink(make("wss").url, bundle, name="b", metered=True),
            uplink(make("wss").url, bundle, name="c", proxy=through),
        ]
        found = [finding async for finding in check(written(tmp_path, *ways))]
    of = {name: [each for each in found if each.about == name] for name in "abc"}
    assert [each.step for each in of["a"]] == WAY
    assert [each.step for each in of["b"]] == [*WAY[:4], "websocket", *WAY[4:], "cost"]
    assert [each.step for each in of["c"]] == [*WAY[:3], "proxy", "tls", "websocket", *WAY[4:]]
    assert {each.verdict for each in (*of["a"], *of["b"], *of["c"])} == {"ok"}
    assert str(proxy.port) not in str(of["c"])  # nor its password
    machine = {each.step: each.verdict for each in found if not each.about}
    assert {"config", "agent", "disk", "room", "clock", "memory", "permissions", "file system"} <= machine.keys()
    assert "failed" not in machine.values()


async def test_the_agent_beside_it_stays_connected_and_sends(tmp_path: Path, certificates: Pki) -> None:
    async with ingest_at(tmp_path / "cloud", certificates) as (ingest, make):
        path = written(tmp_path, uplink(make("mqtts").url, certificates.directory / GATEWAY))
        settings = config.load(path)
        async with agents.running(settings.data, settings.uplinks) as agent:
            state = agent.agent.status
            await until(lambda: state().link.state == "online")
            before = ingest.listener.connected[GATEWAY]
            path.write_text(path.read_text().replace("port = 0", f"port = {agent.port}"))
            found = await steps(path)
            await agents.publish(agent.port, numbered(1, 10))
            assert await arrived(ingest, 10) == list(range(1, 11))
            assert state().counters["uplink_connects"] == 1
            assert ingest.listener.connected == {GATEWAY: before}
        assert "runs, version" in found["agent"].text
        assert found["listener"].text == f"127.0.0.1:{agent.port} is held by the running agent"
        assert {found[step].verdict for step in WAY} == {"ok"}


async def test_who_tries_the_way_may_do_nothing_else(tmp_path: Path, certificates: Pki) -> None:
    async with ingest_at(tmp_path / "cloud", certificates) as (ingest, _):
        trial = wire.trial_id(GATEWAY)
        async with connected(ingest, trial, certificates.gateway(GATEWAY)) as gateway:
            assert (await gateway.acks.get()).credit
            await gateway.send(b"a frame")
            await asyncio.wait_for(gateway.closed.wait(), 60)
        assert ingest.listener.intake.counters.refused == 0
        host, port = address(ingest.listener.address)
        for name, as_whom in ((trial, "other"), (wire.trial_id(trial), GATEWAY)):
            with pytest.raises(aiomqtt.MqttError):
                async with aiomqtt.Client(
                    host, port, identifier=name, tls_context=certificates.gateway(as_whom), timeout=60
                ):
                    pass
        assert ingest.listener.connected == {}


async def test_what_is_wrong_on_the_way_is_named_at_its_step(tmp_path: Path, certificates: Pki, free_port: int) -> None:
    bundle = certificates.directory / GATEWAY
    async with ingest_at(tmp_path / "cloud", certificates) as (_, make):
        url = make("mqtts").url
        port = url.rpartition(":")[2]
        pki.ca_init(tmp_path / "other", now=certificates.now)
        pki.issue_gateway(tmp_path / "other", tmp_path / "stranger", GATEWAY, now=certificates.now)
        stranger = {name: str(tmp_path / "stranger" / f"gateway.{end}") for name, end in FILES}
        for way, step, text, mend in (
            (uplink("mqtts://nowhere.invalid", bundle), "dns", "'nowhere.invalid' is not known", "resolv.conf"),
            (
                uplink(f"mqtts://127.0.0.1:{free_port}", bundle),
                "tcp",
                "refuses the connection",
                "nothing listens",
            ),
            (uplink(url, bundle, ca=str(tmp_path / "other" / "ca.pem")), "tls", "is not trusted", "ca is the ca.pem"),
            (uplink(f"mqtts://localhost:{port}", bundle), "tls", "'localhost'; check", "one that has localhost"),
            (uplink(url, bundle, interface="none0"), "tcp", "'none0' is not there", "nothing listens"),
            (uplink(url, bundle, proxy=f"http://127.0.0.1:{port}"), "proxy", "the proxy", "[[uplink]] proxy"),
            (uplink(url.replace("mqtts", "wss"), bundle), "websocket", "", "[websocket]"),
            (uplink(url.replace("mqtts", "mqtt")), "mqtt", "", "url begins with mqtts://"),
            (uplink(url, bundle, **stranger), "mqtt", "refused by the cloud", "of its [listener] ca"),
        ):
            found = await steps(written(tmp_path, way))
            assert found[step].verdict == "failed", found
            assert text in found[step].text
            assert mend in found[step].mend
            later = [each.verdict for each in list(found.values())[list(found).index(step) + 1 :]]
            assert set(later) <= {"skipped"}
        certificates.gateway("gw2")
        other = uplink(url, certificates.directory / "gw2")
        await one(written(tmp_path, other), "certificate", "failed", "is of gateway 'gw2', and this is 'gw1'")
        await one(written(tmp_path, other), "mqtt", "warning", "refuses this gateway")


@pytest.mark.parametrize(("ago", "said"), [(3000, "has expired"), (-30, "not yet valid")])
async def test_an_ingest_whose_certificate_is_of_another_time(
    tmp_path: Path, certificates: Pki, ago: int, said: str
) -> None:
    when = certificates.now - dt.timedelta(days=ago)
    pki.issue_server(certificates.directory / "ca", tmp_path / "of-then", ["127.0.0.1"], now=when)
    context = pki.server_context(tmp_path / "of-then" / "server.pem", tmp_path / "of-then" / "server.key")
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        certificates.gateway(GATEWAY)
        found = await steps(written(tmp_path, uplink(f"mqtts://127.0.0.1:{port}", certificates.directory / GATEWAY)))
    assert said in found["tls"].text
    assert "waybill cloud server issue" in found["tls"].mend


async def test_one_that_takes_the_connection_and_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        way = uplink(f"mqtt://127.0.0.1:{mute.getsockname()[1]}", keepalive=5)
        found = (await steps(written(tmp_path, way)))["mqtt"]
    assert (found.verdict, found.text) == ("failed", "no answer from the cloud within the keepalive")
    assert "something else than an ingest" in found.mend


async def test_behind_a_broker_of_others_connect_is_answered_and_no_credit_waited_for(tmp_path: Path) -> None:
    server = MqttServer(MemorySink())
    await server.start()
    try:
        host, port = await server.listen("127.0.0.1", 0)
        found = await steps(written(tmp_path, uplink(f"mqtt://{host}:{port}", broker="foreign")))
        assert found["mqtt"].verdict == "ok"
        assert found["credit"].verdict == "skipped"
    finally:
        await server.close()


@pytest.mark.parametrize(
    ("days", "ago", "verdict", "text"),
    [(400, 0, "ok", "399 days left"), (10, 0, "warning", "9 days left"), (10, 20, "failed", "valid ")],
)
def test_a_certificates_dates(tmp_path: Path, days: int, ago: int, verdict: str, text: str) -> None:
    now = dt.datetime.now(dt.UTC)
    issued = now - dt.timedelta(days=ago)
    pki.ca_init(tmp_path / "ca", now=issued)
    made = pki.issue_gateway(tmp_path / "ca", tmp_path / "gw", "gw1", now=issued, days=days)
    found = check_machine.certificate(made.certificate, made.key, made.ca, "gw1", now, "x")
    assert (found.verdict, text in found.text) == (verdict, True), found


def test_a_certificate_without_its_key_or_its_ca(tmp_path: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    for name in ("a", "b"):
        pki.ca_init(tmp_path / f"ca-{name}", now=now)
        pki.issue_gateway(tmp_path / f"ca-{name}", tmp_path / name, "gw1", now=now)
    files = tmp_path / "a" / "gateway.pem", tmp_path / "a" / "gateway.key"
    other = tmp_path / "b"
    found = check_machine.certificate(files[0], other / "gateway.key", None, "gw1", now, "x")
    assert (found.verdict, "from one directory" in found.mend) == ("failed", True)
    found = check_machine.certificate(*files, other / "ca.pem", "gw1", now, "x")
    assert (found.verdict, "has not signed it" in found.text) == ("warning", True)
    found = check_machine.certificate(*files, tmp_path / "a" / "ca.pem", "gw1", now, "x")
    assert found.verdict == "ok"


async def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow_ms, verdict in ((0.0, "warning"), (math.inf, "ok")):  # on a disk with other work it is either
        monkeypatch.setattr(check_machine, "SLOW_MS", slow_ms)
        await one(written(tmp_path), "disk", verdict, "syncs of 4 KiB")
    await one(written(tmp_path), "file system", "ok", "is not there yet")
    await one(written(tmp_path, data="/proc/waybill"), "disk", "failed", "cannot be written and synced")
    closed = (await steps(written(tmp_path, data="/sys/waybill")))["disk"]
    assert "as root" in closed.mend if "Permission" in closed.text else "dmesg" in closed.mend, closed
    (tmp_path / "file").touch()
    await one(written(tmp_path, data="file"), "disk", "failed", "is no directory")
    much = f"[buffer]\nmax_bytes = {1 << 50}"
    await one(written(tmp_path, much), "room", "warning", "may take 1125899.9 GB")
    await one(written(tmp_path, f"{much}\nmin_free_bytes = {1 << 50}"), "room", "failed", "free")
    (tmp_path / "data").mkdir(mode=0o755)
    await one(written(tmp_path), "permissions", "warning", "everybody on this machine")
    assert list((tmp_path / "data").iterdir()) == []
    await one(written(tmp_path, data="/dev/shm/waybill"), "file system", "warning", "in memory")
    assert check_machine.file_system(Path("/proc/self"))[0] == "proc"


async def test_in_a_chroot_no_name_of_a_file_system_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine, "MOUNTS", tmp_path / "mountinfo")  # /proc is not mounted
    await one(written(tmp_path), "file system", "skipped", f"{tmp_path}: what it is on is not to be seen from here")
    (tmp_path / "mountinfo").write_text("24 1 0:22 / /proc rw - proc proc rw\n")  # and / is no mount's root
    await one(written(tmp_path), "file system", "skipped", f"{tmp_path}: what it is on is not to be seen from here")


async def test_files_and_listeners(tmp_path: Path, certificates: Pki, free_port: int) -> None:
    server = certificates.server
    tls = f'[[listener]]\nport = 0\ncertificate = "{server.certificate}"\nkey = "{server.key}"'
    await one(written(tmp_path, tls), "certificate", "ok", "days left")
    server.key.chmod(0o644)
    await one(written(tmp_path, tls), "permissions", "warning", "key: everybody may read it")
    users = '[[listener]]\nport = 0\npasswords = "users"'
    await one(written(tmp_path, users), "permissions", "failed", "passwords: No such file")
    (tmp_path / "users").touch(mode=0o600)
    await one(written(tmp_path, users), "passwords", "warning", "names nobody")
    (tmp_path / "users").write_text("nonsense\n")
    await one(written(tmp_path, users), "passwords", "failed", "users")
    mine = f"[[listener]]\nport = {free_port}"
    with socket.create_server(("127.0.0.1", free_port)):
        await one(written(tmp_path, mine), "listener", "failed", "in use by another program")
    await one(written(tmp_path, mine), "listener", "ok", "is free")
    await one(written(tmp_path, "[[listener]]\nport = 883"), "listener", "failed", "takes rights of root")
    unix = '[[listener]]\nkind = "unix"\npath = "none/mqtt.sock"'
    await one(written(tmp_path, unix), "listener", "failed", "no such directory")


def test_the_agents_user_must_be_able_to_read() -> None:
    def stat(mode: int, user: int, group: int) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 0, user, group, 0, 0, 0, 0))

    agent = stat(0o700, 990, 990)
    for found, expected in (
        (stat(0o640, 0, 990), True),
        (stat(0o600, 0, 990), False),
        (stat(0o644, 0, 0), True),
        (stat(0o640, 0, 0), False),
        (stat(0o400, 990, 0), True),
    ):
        assert check_machine._may_read(found, agent) is expected


def test_a_source_is_reached_without_taking_its_session(tmp_path: Path, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)) as broker:
        source = f'[[source]]\nurl = "mqtt://127.0.0.1:{free_port}"\ntopics = ["a/#"]'
        asyncio.run(one(written(tmp_path, source), "source", "ok", "no MQTT is tried"))
        said, _ = broker.accept()
        assert said.recv(100) == b""
        said.close()
    asyncio.run(one(written(tmp_path, source), "source", "failed", str(free_port)))


def test_exit_codes_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    assert main(["edge", "check", "--config", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "warning"
    assert {"step": "uplink", "verdict": "warning"}.items() <= said["steps"][-1].items()
    assert main(["edge", "check", "--config", str(path)]) == 0
    assert "messages stay here" in capsys.readouterr().out
    path.write_text("gateway = 1")
    assert main(["edge", "check", "--config", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["steps"][0]["step"] == "config"
