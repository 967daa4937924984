"""Listeners of every kind on one agent, identities by certificate, and a fleet whose devices keep to themselves."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import time
from pathlib import Path
from typing import NamedTuple

import aiomqtt
import pytest

from edge_agent.listener_config import LimitSettings, ListenerSettings
from tests.integration.edge.agents import running
from tests.integration.edge.conftest import ACCEPTED, BAD_CREDENTIALS, NOT_AUTHORIZED, Dial, written
from tests.integration.edge.peer import Cloud, listening, until, url
from tests.unit.mqtt import rig, v5
from waybill import pki
from waybill.acl import AclRule
from waybill.wire import Envelope

OWN = (AclRule(user="*", publish=("vehicles/%u/#", "cmd/%u/+/res"), subscribe=("cmd/%u/+/req",)),)
"""The recipe of docs/security.md."""


class Site(NamedTuple):
    """Files of a site: a CA, the listener's certificate, a password file."""

    root: Path
    server: pki.Identity
    users: Path

    def device(self, name: str) -> ssl.SSLContext:
        """Return the context of a device with a certificate."""
        made = pki.issue_gateway(self.root / "ca", self.root / name, name, now=dt.datetime.now(dt.UTC))
        return pki.client_context(made.ca, made.certificate, made.key)

    def plain(self) -> ssl.SSLContext:
        """Return the context of a device without a certificate."""
        return pki.client_context(self.server.ca)

    def listener(self, **more: object) -> ListenerSettings:
        """Return a listener over TLS that knows the devices' CA."""
        files = {"certificate": self.server.certificate, "key": self.server.key, "client_ca": self.server.ca}
        return ListenerSettings(port=0, **(files | more))  # type: ignore[arg-type]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    now = dt.datetime.now(dt.UTC)
    pki.ca_init(tmp_path / "ca", now=now)
    server = pki.issue_server(tmp_path / "ca", tmp_path / "server", ["127.0.0.1"], now=now)
    return Site(tmp_path, server, written(tmp_path / "users", V7="seven", V8="eight"))


def hello(user: str | None = None, password: bytes | None = None, client: str = "dev") -> bytes:
    return rig.connect(client, user=user, password=password)


async def test_a_device_is_who_its_certificate_says(site: Site, dial: Dial) -> None:
    async with running(site.root / "data", None, listeners=(site.listener(),), acl=OWN) as agent:
        raw = await dial(
            agent.port, hello("V8", b"whatever"), rig.publish("vehicles/V7/x", b"", 1, 1), tls=site.device("V7")
        )
        await raw.expect(ACCEPTED + rig.puback(1))
        await raw.send(rig.publish("vehicles/V8/x", b"", 1, 2))
        assert await raw.expect_end() == b""
        with contextlib.suppress(ssl.SSLError):  # or the end, where it comes first
            assert await (await dial(agent.port, hello(), tls=site.plain())).expect_end() == b""
        assert agent.agent.status().counters["mqtt_connects"] == 1


async def test_required_certificates_and_passwords_are_both_wanted(site: Site, dial: Dial) -> None:
    listeners = (site.listener(passwords=site.users),)
    async with running(site.root / "data", None, listeners=listeners, acl=OWN) as agent:
        fleet = site.device("fleet")
        await (await dial(agent.port, hello(), tls=fleet)).expect(NOT_AUTHORIZED)
        await (await dial(agent.port, hello("V7", b"eight"), tls=fleet)).expect(BAD_CREDENTIALS)
        raw = await dial(agent.port, hello("V7", b"seven"), rig.publish("vehicles/V7/x", b"", 1, 1), tls=fleet)
        await raw.expect(ACCEPTED + rig.puback(1))


async def test_with_optional_certificates_a_password_does_as_well(site: Site, dial: Dial) -> None:
    listeners = (site.listener(passwords=site.users, client_certificates="optional"),)
    async with running(site.root / "data", None, listeners=listeners, acl=OWN) as agent:
        raw = await dial(agent.port, hello(client="a"), rig.publish("vehicles/V9/x", b"", 1, 1), tls=site.device("V9"))
        await raw.expect(ACCEPTED + rig.puback(1))
        raw = await dial(agent.port, hello("V7", b"seven"), rig.publish("vehicles/V7/x", b"", 1, 1), tls=site.plain())
        await raw.expect(ACCEPTED + rig.puback(1))
        await (await dial(agent.port, hello(), tls=site.plain())).expect(NOT_AUTHORIZED)
        await (await dial(agent.port, hello("V7", b"x"), tls=site.plain())).expect(BAD_CREDENTIALS)


async def test_websockets_with_and_without_tls(site: Site) -> None:
    listeners = (
        ListenerSettings(port=0, kind="websocket", passwords=site.users, name="pages"),
        site.listener(kind="websocket"),
    )
    async with running(site.root / "data", None, listeners=listeners, acl=OWN) as agent:
        assert [each.kind for each in agent.agent.status().listeners] == ["ws", "wss"]
        assert agent.said[0] == f"listening on 127.0.0.1:{agent.ports[0]} (ws)"
        for port, how in (
            (agent.ports[0], {"username": "V7", "password": "seven"}),
            (agent.ports[1], {"tls_context": site.device("V7")}),
        ):
            async with aiomqtt.Client("127.0.0.1", port, transport="websockets", **how, timeout=60) as client:
                await client.subscribe("cmd/V7/+/req", qos=1)
                await client.publish("vehicles/V7/x", b"1", qos=1)
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client(
                "127.0.0.1", agent.ports[0], transport="websockets", username="V7", password="x", timeout=60
            ):
                pass
        assert agent.waiting() == 2


async def test_a_device_hears_its_own_commands_alone(site: Site) -> None:
    listeners = (ListenerSettings(port=0, passwords=site.users),)
    async with (
        listening(Cloud()) as cloud,
        running(site.root / "data", url(cloud.address), listeners=listeners, acl=OWN) as agent,
        aiomqtt.Client("127.0.0.1", agent.port, username="V7", password="seven", timeout=60) as seven,
        aiomqtt.Client("127.0.0.1", agent.port, username="V8", password="eight", timeout=60) as eight,
    ):
        for client, pattern, code in (
            (eight, "cmd/V7/+/req", 0x80),
            (eight, "cmd/#", 0x80),
            (eight, "$share/g/cmd/+/+/req", 0x80),
            (seven, "cmd/V7/+/req", 1),
            (eight, "cmd/V8/+/req", 1),
        ):
            (given,) = await client.subscribe(pattern, qos=1)
            assert (given if isinstance(given, int) else given.value) == code
        await until(lambda: cloud.subscribed)
        expires = int(time.time() * 1000) + 60_000
        for command, device in (("c7", "V7"), ("c8", "V8")):
            cloud.command(Envelope(command, "command", device, "lock", b"", expires))
        for client, topic in ((seven, "cmd/V7/c7/req"), (eight, "cmd/V8/c8/req")):
            async with asyncio.timeout(60):
                assert (await anext(client.messages)).topic.value == topic
        assert agent.agent.status().counters["auth_subscribe_denied"] == 3


async def test_limits_are_those_of_the_listener_else_the_common_ones(site: Site, dial: Dial) -> None:
    listeners = (ListenerSettings(port=0, max_packet=2048, max_connections=1), ListenerSettings(port=0))
    limits = LimitSettings(max_packet=4096, max_subscriptions=1)
    async with running(site.root / "data", None, listeners=listeners, limits=limits) as agent:
        for port, size in zip(agent.ports, (2048, 4096), strict=True):
            raw = await dial(port, v5.connect(f"dev{port}"))
            head = await raw.reader.readexactly(2)
            (connack,) = v5.packets(head + await raw.reader.readexactly(head[1]))
            assert connack.number(0x27) == size
            await raw.send(rig.packet(0x82, b"\0\1\0" + rig.text("a") + b"\0" + rig.text("b") + b"\0"))
            await raw.expect(v5.suback(0, 0x97))
        assert await (await dial(agent.ports[0], hello(client="second"))).expect_end() == b""
        await (await dial(agent.ports[1], hello(client="third"))).expect(ACCEPTED)
