"""amqtt's broker, changed where it would break a promise.

========================  ==========================================================================================
amqtt 0.12                here
========================  ==========================================================================================
acks, then delivers       a PUBLISH is permitted, committed, delivered, then acknowledged (``Handler.handle_publish``)
touches a session, then   authenticates first, takes over next, and only then looks at a session
authenticates             (``Broker._initialize_client_session``)
keepalive has no effect   1.5 times the keepalive ends the connection, with its will (``Handler.handle_read_timeout``)
wills are delivered only  they are committed like any message (``Broker._handle_disconnect``)
what was in flight is     it waits for the next connection (``Handler.mqtt_publish``)
forgotten
a new connection gets     only those that its own subscriptions match
all retained messages
queues without a limit    limits of :class:`waybill.mqtt.settings.Settings`; beyond them dropped and counted
========================  ==========================================================================================

Names that begin with an underscore are amqtt's own: pyproject.toml holds it to 0.12.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

import amqtt.broker
from amqtt.contexts import Action
from amqtt.errors import AMQTTError, MQTTError

from edge_agent.amqtt_engine.handler import Handler
from waybill.errors import Unavailable
from waybill.mqtt import codec
from waybill.mqtt.codec import RETAIN, SUBACK_FAILURE, ConnackCode
from waybill.mqtt.reasons import Malformed, UnsupportedVersion
from waybill.mqtt.settings import Client, ConnectInfo
from waybill.mqtt.topics import valid_filter

if TYPE_CHECKING:
    from amqtt.session import ApplicationMessage, Session

    from edge_agent.amqtt_engine.engine import AmqttEngine
    from edge_agent.amqtt_engine.packets import Output, Packets
    from waybill.mqtt.codec import Connect

log = logging.getLogger(__name__)

TO_SUBSCRIBERS: Final = 256
"""Messages that wait for being handed to subscribers; beyond it acks wait, too."""

TAKE_OVER: Final = 5.0
"""Seconds that the old connection of a client has to end; else the new one is told that the server is unavailable."""

LISTENER: Final = "default"


class Waiting(asyncio.Queue["ApplicationMessage"]):
    """Messages for a session without a connection, in memory. What comes when it is full is dropped and counted."""

    def __init__(self, engine: AmqttEngine) -> None:
        super().__init__()
        self._engine = engine
        self._bytes = 0

    async def put(self, item: ApplicationMessage) -> None:
        """Keep a message, or drop it."""
        settings, size = self._engine.settings, len(item.topic) + len(item.data)
        if self.qsize() >= settings.queue_messages or self._bytes + size > settings.queue_bytes:
            self._engine.counters.dropped += 1
            return
        self._bytes += size
        self.put_nowait(item)

    def _get(self) -> ApplicationMessage:
        item = super()._get()
        self._bytes -= len(item.topic) + len(item.data)
        return item


class Broker(amqtt.broker.Broker):  # type: ignore[misc] # amqtt ships no types
    """The broker. Its listeners are the engine's own; ``external_connected`` takes what they accept."""

    def __init__(self, engine: AmqttEngine, config: dict[str, Any]) -> None:
        super().__init__(config | {"listeners": {LISTENER: {"type": "external"}}})
        self._engine = engine
        self._broadcast_queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(TO_SUBSCRIBERS)
        self._connected: dict[str, Packets] = {}
        self._handler: type[Handler] = type("Handler", (Handler,), {"engine": engine, "broker": self})

    # -- a connection begins -----------------------------------------------------------------------------------------

    async def _initialize_client_session(self, reader: Packets, writer: Output, *_: object) -> tuple[Handler, Session]:
        """Take a CONNECT: authenticate, take over, then find or make the session. Raises MQTTError."""
        engine = self._engine
        try:
            async with asyncio.timeout(reader.listener.settings.connect_timeout):
                connect = await reader.first()
                handler, session = await self._handler.init_from_connect(reader, writer, self.plugins_manager)
                client = await self._authentic(session, connect, reader.listener.name)
            if len(self._sessions) >= engine.settings.max_sessions and session.client_id not in self._sessions:
                raise _NotAccepted(ConnackCode.UNAVAILABLE, "too many sessions")
            await self._take_over(client, reader)
        except _NotAccepted as refused:
            engine.counters.refused += 1
            answer = codec.connack(codec.MQTT_3_1_1, refused.code, present=False)
            raise await self._turned_away(reader, writer, str(refused), answer) from refused
        except UnsupportedVersion as error:
            engine.counters.refused += 1
            raise await self._turned_away(reader, writer, str(error), error.answer) from error
        except Malformed as error:
            engine.counters.malformed += 1
            raise await self._turned_away(reader, writer, str(error)) from error
        except TimeoutError as error:
            engine.counters.timed_out += 1
            raise await self._turned_away(reader, writer, "no CONNECT in time") from error
        except (EOFError, OSError, AMQTTError, MQTTError) as error:
            raise await self._turned_away(reader, writer, str(error) or "connection lost") from error
        return handler, await self._session(session)

    @staticmethod
    async def _turned_away(reader: Packets, writer: Output, why: str, answer: bytes = b"") -> MQTTError:
        """Answer, and return what ends the connection."""
        with contextlib.suppress(OSError):
            writer.write(answer)
            await writer.drain()
        reader.end(why)
        return MQTTError(why)

    async def _authentic(self, session: Session, connect: Connect, listener: str) -> Client:
        """Ask the program, then the plug-ins that authenticate, where there are such. Raises _NotAccepted."""
        hooks, tls = self._engine.hooks, session.ssl_object
        address = f"{session.remote_address}:{session.remote_port}"
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        user = connect.user
        if hooks.authorize_connect is not None:
            info = ConnectInfo(
                session.client_id,
                user,
                connect.password,
                certificate,
                address,
                connect.version,
                connect.clean,
                listener,
            )
            answer = hooks.authorize_connect(info)
            if isinstance(answer, Awaitable):
                answer = await answer
            if isinstance(answer, str):
                user = answer
            elif answer:
                raise _NotAccepted(answer, f"CONNECT refused with {answer.name}")
        if self._engine.authenticates and not await super()._authenticate(session, None):
            raise _NotAccepted(ConnackCode.NOT_AUTHORIZED, "not authorized")
        return Client(session.client_id, user, connect.version, address, listener)

    async def _authenticate(self, session: Session, _: object) -> bool:  # noqa: ARG002 - amqtt's own
        """It was done before anything of a session was touched."""
        return True

    async def _take_over(self, client: Client, packets: Packets) -> None:
        """End what else is connected under this client id (3.1.4-2), and be what is. Raises _NotAccepted."""
        while (old := self._connected.get(client.client_id)) is not None:
            self._engine.counters.taken_over += 1
            old.end("taken over")
            old.abort()
            try:
                async with asyncio.timeout(TAKE_OVER):
                    await old.ended.wait()
            except TimeoutError as error:
                raise _NotAccepted(ConnackCode.UNAVAILABLE, "its old connection does not end") from error
        packets.client, packets.accepted = client, True
        self._connected[client.client_id] = packets

    async def _session(self, session: Session) -> Session:
        """Return the session to go on with: the one there is (clean session 0), or a new one (3.1.2.4)."""
        old = self._sessions.get(session.client_id, (None, None))[0]
        if session.clean_session or old is None or old.clean_session:
            await self._delete_session(session.client_id)
            session.client_id = session.client_id or f"auto-{secrets.token_hex(8)}"
            session.retained_messages = Waiting(self._engine)
        else:
            for name in (
                "will_flag", "will_topic", "will_message", "will_qos", "will_retain", "keep_alive", "username",
                "password", "remote_address", "remote_port", "ssl_object", "is_anonymous",
            ):  # fmt: skip
                setattr(old, name, getattr(session, name))
            session = old
            session.parent = 1
        session.keep_alive = math.ceil(session.keep_alive * 1.5)
        return session

    @staticmethod
    def held_of(session: Session) -> dict[int, asyncio.Future[None]]:
        """Return the packet ids of QoS 2 that a session's client has not released, with the commit of each."""
        held: dict[int, asyncio.Future[None]] = session.attributes.setdefault("waybill.held", {})
        return held

    # -- what it publishes -------------------------------------------------------------------------------------------

    async def permitted(self, session: Session, client: Client, topic: str) -> bool:
        """Ask the program and the plug-ins that filter topics whether a client may publish."""
        ask = self._engine.hooks.authorize_publish
        if ask is not None and not ask(client, topic):
            return False
        return bool(await self._topic_filtering(session, topic=topic, action=Action.PUBLISH))

    async def deliver(self, session: Session, handler: Handler, message: ApplicationMessage) -> None:
        """Hand a committed message to its subscribers; waits while too many are before it."""
        done: asyncio.Future[ApplicationMessage] = asyncio.get_running_loop().create_future()
        done.set_result(message)
        await self._handle_message_delivery(session, handler, done)

    async def retain_message(
        self, source_session: Session | None, topic_name: str, data: bytes, qos: int | None = None
    ) -> None:
        """Retain a message, as far as the limits allow. Those of plug-ins have no session, and no limit."""
        if source_session is None or self._engine.keep(topic_name.encode(), bytes(data), qos or 0):
            await super().retain_message(source_session, topic_name, data, qos)

    # -- what it gets ------------------------------------------------------------------------------------------------

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe, replacing a subscription to the same filter (3.8.4-3); 0x80 where that may not be."""
        pattern, qos = subscription
        others = (subscribers for name, subscribers in self._subscriptions.items() if name != pattern)
        mine = sum(one is session for subscribers in others for one, _ in subscribers)
        limit = self._engine.settings.max_subscriptions
        if mine >= limit or not valid_filter(pattern, self._engine.settings.max_levels):
            return SUBACK_FAILURE
        hooks, packets = self._engine.hooks, self._connected.get(session.client_id)
        client = packets.client if packets is not None else None  # None: a plug-in subscribes for it
        if client and hooks.authorize_subscribe is not None and not hooks.authorize_subscribe(client, pattern):
            self._engine.counters.denied += 1
            return SUBACK_FAILURE
        self._del_subscription(pattern, session)
        code = int(await super().add_subscription(subscription, session))
        if code == SUBACK_FAILURE:
            self._engine.counters.denied += 1
        elif client and hooks.on_subscribed is not None:
            hooks.on_subscribed(client, pattern, qos)
        return code

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        if any(one is session for one, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _publish_session_retained_messages(self, session: Session) -> None:
        """Send what waited for this connection, a window at a time, in order."""
        waiting, handler = session.retained_messages, self._get_handler(session)
        left = waiting.qsize()
        while left and session.transitions.state == "connected" and not handler.reader.why:
            count = min(left, waiting.qsize(), self._engine.settings.inflight)
            if not count:
                return
            window = [waiting.get_nowait() for _ in range(count)]
            left -= count
            sending = (handler.mqtt_publish(one.topic, one.data, one.qos, retain=False) for one in window)
            await asyncio.gather(*sending, return_exceptions=True)

    # -- a connection ends -------------------------------------------------------------------------------------------

    async def _client_message_loop(self, client_session: Session, handler: Handler) -> None:
        await super()._client_message_loop(client_session, handler)
        if client_session.transitions.state == "connected":  # the loop has other exits than a disconnection
            lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            lost.set_result(None)
            await self._handle_disconnect(client_session, handler, lost)

    async def _handle_disconnect(
        self, client_session: Session, handler: Handler, disconnect_waiter: asyncio.Future[Any]
    ) -> None:
        """Commit the will, if it is to be published, before amqtt delivers it."""
        session = client_session
        if handler.reader.goodbye:
            session.will_flag = False
        if session.will_flag:
            session.will_flag = await self._commit_will(session, handler.reader.client)
        await super()._handle_disconnect(session, handler, disconnect_waiter)
        session.will_flag = False

    async def _commit_will(self, session: Session, client: Client) -> bool:
        """Say whether the will is committed."""
        topic, payload, qos = session.will_topic, bytes(session.will_message), session.will_qos
        flags, pid = qos << 1 | (RETAIN if session.will_retain else 0), 0 if qos else None
        try:
            if not await self.permitted(session, client, topic):
                self._engine.counters.denied += 1
                return False
            await asyncio.shield(self._engine.commit(client, topic, payload, flags, pid, will=True))
        except Unavailable as error:
            log.warning("the will of %r is not published: %s", client.client_id, error)
            return False
        except Exception:
            log.exception("the will of %r is not published", client.client_id)
            return False
        self._engine.counters.wills += 1
        return True

    async def _cleanup_session(self, client_id: str) -> None:
        """Forget a session, unless its client came back while others were forgotten."""
        if client_id not in self._connected:
            await super()._cleanup_session(client_id)

    def create_offline_session(self, client_id: str) -> tuple[Any, Session]:
        """Make a session for a plug-in, with the limits of any other."""
        handler, session = super().create_offline_session(client_id)
        session.retained_messages = Waiting(self._engine)
        return handler, session

    def disconnect(self, client_id: str, reason: str) -> bool:
        """End a client's connection; False where it has none."""
        packets = self._connected.get(client_id)
        if packets is not None:
            packets.end(reason)
        return packets is not None

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that live as long as the broker."""
        return [self._broadcast_task, self._session_monitor_task]

    def forget(self, packets: Packets) -> None:
        """A connection has ended."""
        if packets.accepted and self._connected.get(packets.client.client_id) is packets:
            del self._connected[packets.client.client_id]


class _NotAccepted(Exception):
    """A CONNECT that is answered with ``code``."""

    def __init__(self, code: ConnackCode, why: str) -> None:
        super().__init__(why)
        self.code = code
