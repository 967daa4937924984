"""Who may connect: answers at once, awaited answers, hooks that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from tests.unit.mqtt import rig, v5
from tests.unit.mqtt.rig import Rig, Wire
from waybill.mqtt.codec import ConnackCode
from waybill.mqtt.settings import Answer, Client, ConnectInfo, Hooks, Settings


def later(_: ConnectInfo) -> Awaitable[Answer]:
    return asyncio.get_running_loop().create_future()


def asking(name: str = "dev", *more: bytes, settings: Settings | None = None) -> tuple[Rig, Wire]:
    r = Rig(settings, Hooks(authorize_connect=later))
    wire = Wire(r)
    wire.feed(rig.connect(name) + b"".join(more))
    assert wire.awaited is not None
    return r, wire


async def test_nothing_is_done_before_the_answer() -> None:
    r, wire = asking("dev", rig.publish("a", b"x", 1, 1), rig.PING)
    wire.feed(rig.publish("a", b"y", 1, 2)[:5])  # a transport may have read on before it was told to stop
    r.commit()
    assert not wire.reading
    assert wire.take() == b""
    assert not r.broker.sessions
    wire.answered(None)
    wire.feed(rig.publish("a", b"y", 1, 2)[5:])
    r.commit()
    assert wire.reading
    assert wire.take() == rig.ACCEPTED + rig.PONG + rig.puback(1) + rig.puback(2)
    assert r.stored == [b"x", b"y"]


async def test_reading_does_not_go_on_because_others_are_relieved() -> None:
    r, wire = asking()
    r.broker.relieve()
    assert not wire.reading


async def test_who_is_refused_has_touched_nothing() -> None:
    r, wire = asking("dev", rig.publish("a", b"x", 1, 1))
    wire.answered(ConnackCode.BAD_CREDENTIALS)
    r.commit()
    assert wire.take() == b"\x20\x02\x00\x04"
    assert wire.shut_down
    assert not r.stored
    assert not r.broker.sessions
    assert r.broker.counters.refused == 1


async def test_an_answer_for_a_connection_that_is_gone_is_not_used() -> None:
    r, wire = asking()
    wire.drop()
    wire.answered(None)
    assert wire.take() == b""
    assert not r.broker.sessions
    assert not r.broker.paused


async def test_the_time_for_connect_counts_on() -> None:
    r, wire = asking(settings=Settings(connect_timeout=10))
    r.pass_time(9)
    assert not wire.overdue(r.broker.mono_ns)
    r.pass_time(2)
    assert wire.overdue(r.broker.mono_ns) == "who it is was not known in time"


async def test_two_that_ask_under_one_client_id() -> None:
    r, first = asking()
    second = Wire(r)
    second.feed(rig.connect())
    second.answered(None)
    first.answered(None)
    assert second.shut_down
    assert first.take() == second.take() == rig.ACCEPTED
    assert r.broker.counters.taken_over == 1


def test_the_identity_is_the_answer_else_the_user_name() -> None:
    seen: list[Client] = []
    answers: dict[str, Answer] = {"a": "truck-7", "b": "", "c": None}
    r = Rig(hooks=Hooks(authorize_connect=lambda info: answers[info.client_id], on_connected=seen.append))
    for name in answers:
        wire = Wire(r, listener="yard")
        wire.feed(rig.connect(name, user="guest"))
    assert [(client.user, client.listener) for client in seen] == [
        ("truck-7", "yard"),
        (None, "yard"),
        ("guest", "yard"),
    ]


def broken(*_: object) -> bool:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(("level", "answer"), [(4, b"\x20\x02\x00\x03"), (5, b"\x20\x03\x00\x88\x00")])
def test_a_hook_that_raises_refuses(level: int, answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    def connect(_: ConnectInfo) -> Answer:
        raise RuntimeError("a bug")

    r = Rig(hooks=Hooks(authorize_connect=connect))
    wire = Wire(r)
    assert wire(rig.connect() if level == 4 else v5.connect()) == answer
    assert wire.shut_down
    assert "authorize_connect failed" in caplog.text


def test_hooks_that_raise_deny(caplog: pytest.LogCaptureFixture) -> None:
    r = Rig(hooks=Hooks(authorize_publish=broken, authorize_subscribe=broken))
    wire = r.client()
    wire.feed(rig.subscribe(("a", 1)))
    r.commit()
    assert wire.take() == rig.suback(0x80)
    wire.feed(rig.publish("a", b"x"))
    assert wire.shut_down
    assert not r.stored
    assert "a hook failed" in caplog.text


def test_a_long_user_name_is_refused() -> None:
    r = Rig()
    for size, answer in ((1024, rig.ACCEPTED), (1025, b"\x20\x02\x00\x04")):
        wire = Wire(r)
        assert wire(rig.connect(f"dev{size}", user="u" * size)) == answer
