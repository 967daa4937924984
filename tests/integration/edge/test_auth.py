"""Who may connect to an agent, as whom, and that nobody else touches anything."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from edge_agent.listener_config import ListenerSettings
from tests.integration.edge.agents import Running, running
from tests.integration.edge.conftest import (
    ACCEPTED,
    BAD_CLIENT_ID,
    BAD_CREDENTIALS,
    NOT_AUTHORIZED,
    UNAVAILABLE,
    Dial,
    one,
    written,
)
from tests.integration.edge.peer import until
from tests.unit.mqtt import rig, v5
from waybill import auth, passwords
from waybill.acl import AclRule
from waybill.auth import Auth
from waybill.errors import ConfigError
from waybill.mqtt.server import MqttServer

ATTACKS = (("V7", "wrong"), ("V8", "seven"), ("nobody", "x"), (None, None))


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return written(tmp_path / "users", V7="seven", V8="eight")


def asking(users: Path, **more: object) -> tuple[ListenerSettings, ...]:
    return (ListenerSettings(port=0, passwords=users, **more),)  # type: ignore[arg-type]


def counted(agent: Running, name: str) -> float:
    return agent.agent.status().counters[f"auth_{name}"]


def of(agent: Running) -> Auth:
    return agent.agent._auth


def hello(user: str | None = None, password: str | None = None, client: str = "dev", *, clean: bool = True) -> bytes:
    return rig.connect(client, clean=clean, user=user, password=None if password is None else password.encode())


@pytest.mark.parametrize(
    ("user", "password", "answer"),
    [
        ("V7", "seven", ACCEPTED),
        ("V7", "eight", BAD_CREDENTIALS),
        ("V7", "", BAD_CREDENTIALS),
        ("V7", None, BAD_CREDENTIALS),
        ("V7", "seven" + "\0" * passwords.MAX_PASSWORD, BAD_CREDENTIALS),
        ("v7", "seven", BAD_CREDENTIALS),
        ("", "seven", BAD_CREDENTIALS),
        ("nobody", "seven", BAD_CREDENTIALS),
        (None, None, NOT_AUTHORIZED),
    ],
)
async def test_only_the_right_password_lets_in(
    tmp_path: Path, users: Path, dial: Dial, user: str | None, password: str | None, answer: bytes
) -> None:
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        raw = await dial(agent.port, hello(user, password))
        await raw.expect(answer)
        if answer != ACCEPTED:
            assert await raw.expect_end() == b""
            assert counted(agent, "refused") == 1
        assert counted(agent, "hashed") == (user is not None), "who is unknown costs what others cost"


async def test_mqtt_5_is_told_the_same(tmp_path: Path, users: Path, dial: Dial) -> None:
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        for packet, code in (
            (v5.connect(user_name="V7", password=b"seven"), 0),
            (v5.connect(user_name="V7", password=b"eight"), 0x86),
            (v5.connect(password=b"seven"), 0x87),
        ):
            raw = await dial(agent.port, packet)
            assert (await raw.reader.readexactly(4))[3] == code


async def test_a_wrong_password_touches_nothing_of_a_session(tmp_path: Path, users: Path, dial: Dial) -> None:
    """Not its connection, its subscriptions, what waits for it, nor its will; asked to start anew or not."""
    will = ("wills/V7", b"gone", 1, False)
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        watcher = await dial(agent.port, hello("V8", "eight", "watcher"), rig.subscribe(("wills/#", 1)))
        await watcher.expect(ACCEPTED + rig.suback(1))
        victim = await dial(
            agent.port,
            rig.connect("victim", clean=False, user="V7", password=b"seven", will=will),
            rig.subscribe(("news", 1)),
        )
        await victim.expect(ACCEPTED + rig.suback(1))
        assert isinstance(agent.agent._server, MqttServer)
        sessions = agent.agent._server.broker.sessions
        session, connection = sessions["victim"], sessions["victim"].connection
        attacks = [hello(user, word, "victim", clean=clean) for clean in (True, False) for user, word in ATTACKS]
        attacks.append(v5.connect("victim", user_name="V7", password=b"wrong"))
        for attack in attacks:
            raw = await dial(agent.port, attack)
            assert (await raw.reader.readexactly(4))[3] != 0
        assert sessions["victim"] is session
        assert session.connection is connection
        assert agent.agent.status().counters["mqtt_taken_over"] == 0
        await victim.send(rig.PING)
        await victim.expect(rig.PONG)

        await victim.send(rig.DISCONNECT)
        await victim.expect_end()
        await watcher.send(rig.publish("news", b"1", 1, 7))
        await watcher.expect(rig.puback(7))
        for attack in attacks:
            raw = await dial(agent.port, attack)
            assert (await raw.reader.readexactly(4))[3] != 0
        again = await dial(agent.port, hello("V7", "seven", "victim", clean=False))
        await again.expect(rig.PRESENT + rig.publish("news", b"1", 1, 1))
        await watcher.send(rig.PING)
        await watcher.expect(rig.PONG)  # and no will before it


async def test_a_password_that_was_right_is_not_hashed_again(tmp_path: Path, users: Path, dial: Dial) -> None:
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        for _ in range(3):
            await (await dial(agent.port, hello("V7", "seven"))).expect(ACCEPTED)
        assert (counted(agent, "hashed"), counted(agent, "remembered")) == (1, 2)
        for _ in range(2):
            await (await dial(agent.port, hello("V7", "wrong"))).expect(BAD_CREDENTIALS)
            await (await dial(agent.port, hello("nobody", "seven"))).expect(BAD_CREDENTIALS)
        assert (counted(agent, "hashed"), counted(agent, "remembered")) == (5, 2), "a wrong one is never remembered"


async def test_the_line_before_the_hashing_thread_is_bounded(
    tmp_path: Path, users: Path, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LINE", 3)
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        hasher = of(agent)._hasher
        async with hasher.turn:
            first = [await dial(agent.port, hello("V7", "seven", f"dev{n}")) for n in range(3)]
            await until(lambda: hasher.waiting == 3)
            await (await dial(agent.port, hello("V8", "eight"))).expect(UNAVAILABLE)
            raw = await dial(agent.port, v5.connect(user_name="V8", password=b"eight"))
            assert (await raw.reader.readexactly(4))[3] == 0x88
            assert counted(agent, "busy") == 2
        for raw in first:
            await raw.expect(ACCEPTED)
        assert counted(agent, "hashed") == 1, "the others in the line had the same password"
        assert hasher.waiting == 0
        await (await dial(agent.port, hello("V8", "eight"))).expect(ACCEPTED)


async def test_only_who_needs_a_hash_waits_for_the_thread(tmp_path: Path, users: Path, dial: Dial) -> None:
    busy = threading.Event()
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        hasher = of(agent)._hasher
        first = await dial(agent.port, hello("V7", "seven", "first"))
        await first.expect(ACCEPTED)
        try:
            hasher._thread.submit(busy.wait)
            new = await dial(agent.port, hello("V8", "eight", "new"))
            await until(lambda: hasher.waiting == 1)
            await first.send(rig.PING)
            await first.expect(rig.PONG)
            await (await dial(agent.port, hello("V7", "seven", "again"))).expect(ACCEPTED)
            assert hasher.waiting == 1
        finally:
            busy.set()
        await new.expect(ACCEPTED)


async def test_who_leaves_the_line_gives_its_place_back(tmp_path: Path, users: Path, dial: Dial) -> None:
    async with running(tmp_path / "data", None, listeners=asking(users, connect_timeout=4.0)) as agent:
        hasher = of(agent)._hasher
        async with hasher.turn:
            gone, late = [await dial(agent.port, hello("V7", "seven", f"dev{n}")) for n in range(2)]
            await until(lambda: hasher.waiting == 2)
            gone.reset()
            assert await late.expect_end() == b""  # connect_timeout
            await until(lambda: hasher.waiting == 0)
        await (await dial(agent.port, hello("V7", "seven"))).expect(ACCEPTED)


async def test_a_changed_file_is_read_and_ends_the_connections_of_those_it_changed(
    tmp_path: Path, users: Path, dial: Dial, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK", 0.05)
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        seven, eight = (
            await dial(agent.port, hello("V7", "seven", "a")),
            await dial(agent.port, hello("V8", "eight", "b")),
        )
        await seven.expect(ACCEPTED)
        await eight.expect(ACCEPTED)
        kept = next(line for line in users.read_text().splitlines() if line.startswith("V8"))
        written(users, V7="new", V9="nine")
        with users.open("a") as file:
            file.write(kept + "\n")
        assert await seven.expect_end() == b""
        await (await dial(agent.port, hello("V7", "seven"))).expect(BAD_CREDENTIALS)
        await (await dial(agent.port, hello("V7", "new"))).expect(ACCEPTED)
        await (await dial(agent.port, hello("V9", "nine", "c"))).expect(ACCEPTED)
        await eight.send(rig.PING)
        await eight.expect(rig.PONG)

        users.write_text("V8:secret\n")
        await until(lambda: counted(agent, "unreadable") == 1)
        assert f"{users}: line 1: 'V8': what follows is no argon2id hash" in caplog.text
        users.unlink()
        await until(lambda: counted(agent, "unreadable") == 2)
        await (await dial(agent.port, hello("V8", "eight", "d"))).expect(ACCEPTED)

        users.write_text("# nobody\n")
        assert await eight.expect_end() == b""
        await (await dial(agent.port, hello("V8", "eight"))).expect(BAD_CREDENTIALS)
        await (await dial(agent.port, hello())).expect(NOT_AUTHORIZED)


@pytest.mark.parametrize(
    ("content", "said"), [("", "holds no users"), ("V7:x\n", "line 1: 'V7': what follows"), (None, "no such password")]
)
async def test_an_agent_does_not_start_with_a_file_that_lets_nobody_in(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "users"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as raised:
        async with running(tmp_path / "data", None, listeners=asking(path)):
            pass
    assert str(raised.value).startswith(f"{path}: ")
    assert "waybill edge passwd" in str(raised.value)


async def test_a_user_name_that_nobody_checked_is_no_identity(tmp_path: Path, users: Path, dial: Dial) -> None:
    rules = (AclRule(user="V7", publish=("#",), subscribe=("#",)), AclRule(publish=("open/%u", "open")))
    listeners = (ListenerSettings(port=0), ListenerSettings(port=0, passwords=users, anonymous=True))
    async with running(tmp_path / "data", None, listeners=listeners, acl=rules) as agent:
        for port, word in ((agent.ports[0], "seven"), (agent.ports[0], "x"), (agent.ports[1], None)):
            user = None if word is None else "V7"
            raw = await dial(port, v5.connect(user_name=user, password=None if word is None else word.encode()))
            assert v5.packets(await one(raw))[0].reason == 0
            await raw.send(v5.subscribe(("#", 0)))
            assert (await one(raw))[-1] == 0x87
            for topic, code in (("secret", 0x87), ("open/V7", 0x87), ("open/", 0x87), ("open", 0)):
                await raw.send(v5.publish(topic, b"x", 1, 1))
                answer = await one(raw)
                assert (answer[4] if len(answer) > 4 else 0) == code, topic
        await (await dial(agent.ports[1], hello("V7", "x"))).expect(BAD_CREDENTIALS)
        seven = await dial(agent.ports[1], hello("V7", "seven"), rig.subscribe(("#", 0)))
        await seven.expect(ACCEPTED + rig.suback(0))


async def test_client_ids_bound_to_users_protect_their_sessions(tmp_path: Path, users: Path, dial: Dial) -> None:
    async with running(tmp_path / "data", None, listeners=asking(users, client_ids="user")) as agent:
        for client, answer in (
            ("V7", ACCEPTED),
            ("V7:2", ACCEPTED),
            ("V8", BAD_CLIENT_ID),
            ("V8:1", BAD_CLIENT_ID),
            ("V72", BAD_CLIENT_ID),
            ("", BAD_CLIENT_ID),
        ):
            await (await dial(agent.port, hello("V7", "seven", client))).expect(answer)


async def test_who_takes_over_a_session_hears_nothing_that_he_may_not(tmp_path: Path, users: Path, dial: Dial) -> None:
    rules = (AclRule(user="*", publish=("#",), subscribe=("cmd/%u/+/req", "news")),)
    async with running(tmp_path / "data", None, listeners=asking(users), acl=rules) as agent:
        victim = await dial(
            agent.port,
            hello("V7", "seven", "victim", clean=False),
            rig.subscribe(("cmd/V7/+/req", 1), ("news", 1)),
            rig.DISCONNECT,
        )
        await victim.expect(ACCEPTED + rig.suback(1, 1))
        sender = await dial(agent.port, hello("V7", "seven", "sender"))
        await sender.send(rig.publish("cmd/V7/1/req", b"open", 1, 1), rig.publish("news", b"rain", 1, 2))
        await sender.expect(ACCEPTED + rig.puback(1) + rig.puback(2))
        thief = await dial(agent.port, hello("V8", "eight", "victim", clean=False))
        await thief.expect(rig.PRESENT + rig.publish("news", b"rain", 1, 2))
        await sender.send(rig.publish("cmd/V7/2/req", b"open", 1, 3), rig.publish("news", b"sun", 1, 4))
        await thief.send(rig.puback(2))
        await thief.expect(rig.publish("news", b"sun", 1, 3))


async def test_a_unix_socket_lets_this_machine_in(tmp_path: Path, dial: Dial) -> None:
    listeners = (ListenerSettings(port=0), ListenerSettings(kind="unix", path=tmp_path / "mqtt.sock", name="inside"))
    rules = (AclRule(listener="inside", publish=("#",)),)
    async with running(tmp_path / "data", None, listeners=listeners, acl=rules) as agent:
        raw = await dial(tmp_path / "mqtt.sock", hello(), rig.publish("a", b"x", 1, 1))
        await raw.expect(ACCEPTED + rig.puback(1))
        outside = await dial(agent.port, hello(client="other"), rig.publish("a", b"x", 1, 1))
        await outside.expect(ACCEPTED)
        assert await outside.expect_end() == b""
        shown = [(each.name, each.kind, each.address) for each in agent.agent.status().listeners]
        assert shown == [("", "mqtt", f"127.0.0.1:{agent.port}"), ("inside", "unix", str(tmp_path / "mqtt.sock"))]
    assert not (tmp_path / "mqtt.sock").exists()


async def test_what_is_denied_is_counted_and_logged(
    tmp_path: Path, users: Path, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    rules = (AclRule(user="*", publish=("v/%u/#",), subscribe=("v/%u/#",)),)
    caplog.set_level(logging.WARNING)
    async with running(tmp_path / "data", None, listeners=asking(users), acl=rules) as agent:
        filters = [(f"v/V8/{n}", 1) for n in range(50)]
        raw = await dial(agent.port, hello("V7", "seven"), rig.subscribe(*filters, ("v/V7/+", 1)))
        await raw.expect(ACCEPTED + rig.suback(*[0x80] * 50, 1))
        await raw.send(rig.publish("v/V7/x", b"1", 1, 1))
        await raw.expect(rig.puback(1))
        assert counted(agent, "subscribe_denied") == 50
        for n in range(20):
            will = rig.connect(f"w{n}", user="V7", password=b"seven", will=("v/V8/gone", b"", 0, False))
            await (await dial(agent.port, will)).expect(NOT_AUTHORIZED)
        assert counted(agent, "publish_denied") == 20
    lines = [line for line in caplog.messages if " may not " in line]
    assert lines[0] == "client 'dev' of user 'V7' may not subscribe to 'v/V8/0'"
    assert len(lines) == 70


async def test_an_agent_ends_although_passwords_wait(
    tmp_path: Path, users: Path, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        hasher = of(agent)._hasher
        await hasher.turn.acquire()
        raws = [await dial(agent.port, hello("V7", "seven", f"dev{n}")) for n in range(3)]
        await until(lambda: hasher.waiting == 3)
    for raw in raws:
        assert ACCEPTED not in await raw.expect_end()
    assert hasher.waiting == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_thread_is_gone_with_the_agent(tmp_path: Path, users: Path, dial: Dial) -> None:
    async with running(tmp_path / "data", None, listeners=asking(users)) as agent:
        await (await dial(agent.port, hello("V7", "seven"))).expect(ACCEPTED)
        thread = next(iter(of(agent)._hasher._thread._threads))
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
