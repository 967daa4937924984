"""What every use of aiokafka here needs: its errors in our terms, deadlines of our own, and an end that ends.

Known of aiokafka 0.14 and answered here:

- With idempotence nothing expires: futures hang while the brokers are away. Every wait has a deadline of its own.
- ``stop()`` hangs too then (its issue 1101) and leaves tasks that never end: :func:`discard` ends them all.
- After a record that failed for good the sequence is not rewound (its issue 1017): a producer that saw an error is
  discarded and made anew, never used on.
- It does not know error code 87 (INVALID_RECORD) and would call it UnknownError: taught here.
"""

# ruff: noqa: SLF001 - what has no public way to end

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
import traceback
from collections.abc import Awaitable, Iterator
from typing import Any, Final, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection, CloseReason

from cloud_ingest.journal.kafka_config import KafkaConfig
from waybill.errors import ConfigError, Fenced, TopicRefused, Unavailable

log = logging.getLogger(__name__)

Client: TypeAlias = AIOKafkaProducer | AIOKafkaConsumer | AIOKafkaAdminClient


class InvalidRecordError(errors.BrokerResponseError):  # type: ignore[misc]
    """INVALID_RECORD: the broker's own checks failed, as with no key in a compacted topic (KIP-467)."""

    errno = 87
    message = "INVALID_RECORD"
    description = "This record has failed the validation on the broker and hence be rejected."


errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)

REFUSED_RECORD: Final[tuple[type[Exception], ...]] = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidTimestampError,
    errors.UnsupportedForMessageFormatError,
    errors.PolicyViolationError,
    InvalidRecordError,
)
"""R5, the fixed list: what the broker will never take as it is. A time-out is not on it, nor anything unknown."""

REFUSED_TOPIC: Final[tuple[type[Exception], ...]] = (errors.TopicAuthorizationFailedError, errors.InvalidTopicError)
"""R5: the topic itself is refused."""

FENCED: Final[tuple[type[Exception], ...]] = (errors.ProducerFenced, errors.InvalidProducerEpoch)
"""R1: another producer started under this transactional id, or the broker timed the transaction out."""

FAILURES: Final[tuple[type[Exception], ...]] = (
    errors.KafkaError,
    errors.IllegalOperation,
    errors.ConsumerStoppedError,
    OSError,
    TimeoutError,
    AssertionError,  # aiokafka asserts what races may break: transaction states, partitions of a topic
)
"""All that aiokafka raises when something is wrong at the other end."""

_BAD_LOGIN: Final = (
    errors.AuthenticationFailedError,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.SaslAuthenticationFailed,
)

TOPIC_PATIENCE: Final = 5.0
"""Seconds for which a topic may be unknown (it may just have been made) before it counts as refused."""


def reason(error: BaseException, needs: str, topic: str = "") -> str:
    """Return what ``error`` says; where an ACL is missing, which; where the clock is wrong, that.

    ``needs``: the operation that was to be allowed on topics; ``topic``: the one it was where the error does not say.
    """
    cause: BaseException | None = error
    while cause is not None:  # what ends a producer's sender is wrapped
        named = cause.args[0] if cause.args else ""
        name = ", ".join(sorted(named)) if isinstance(named, set | frozenset) else str(named)
        if isinstance(cause, errors.TopicAuthorizationFailedError):
            return f"not allowed: its ACLs must allow {needs} on topic {name or topic}"
        if isinstance(cause, errors.GroupAuthorizationFailedError):
            return f"not allowed: its ACLs must allow Read on group {name}"
        if isinstance(cause, errors.TransactionalIdAuthorizationFailed):
            return f"not allowed: its ACLs must allow Write on transactional id {name}"
        if isinstance(cause, errors.InvalidTimestampError):
            return f"{cause}: set this node's clock; the broker's is another (message.timestamp.after.max.ms)"
        cause = cause.__cause__
    return str(error) or type(error).__name__


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn aiokafka's errors into Fenced and Unavailable; ``doing``, which only reads topics, begins their text."""
    try:
        yield
    except FENCED as error:
        raise Fenced(f"{doing}: another one owns this by now") from error
    except TimeoutError as error:
        raise Unavailable(f"{doing}: Kafka did not answer in time") from error
    except FAILURES as error:
        raise Unavailable(f"{doing}: {reason(error, 'Read')}") from error


def quiet() -> None:
    """Keep aiokafka's own log for emergencies: what it logs, with tracebacks, reaches callers as errors of ours.

    A level that somebody set is left as it is.
    """
    theirs = logging.getLogger("aiokafka")
    if theirs.level == logging.NOTSET:
        theirs.setLevel(logging.CRITICAL)


async def probe(config: KafkaConfig) -> None:
    """Connect to one of the brokers, to tell *why* it cannot be done, which aiokafka's bootstrap does not.

    Raises ConfigError (a password, a certificate, a protocol: a person must act), Unavailable (none is there).
    """
    whole = {"bootstrap_servers", "metadata_max_age_ms"}  # of a client, not of a connection
    options = {k: v for k, v in config.connection.items() if k not in whole}
    reasons = []
    for server in config.bootstrap:
        host, _, port = server.rpartition(":")
        conn = AIOKafkaConnection(host.strip("[]"), int(port), **options)
        try:
            async with asyncio.timeout(config.request):
                await conn.connect()
        except FAILURES as error:
            if mend := _mend(error, server, options.get("sasl_plain_username")):
                raise ConfigError(f"{config.where} {mend}") from error
            protocol = config.connection.get("security_protocol", "PLAINTEXT")
            reasons.append(f"{server}: {str(error) or f'no answer; does it speak {protocol}?'}")
        else:
            return
        finally:
            if closed := conn.close(reason=CloseReason.SHUTDOWN):
                await asyncio.wait({closed}, timeout=1.0)
    raise Unavailable(f"no broker can be reached ({'; '.join(reasons)})")


def _mend(error: Exception, server: str, user: str | None) -> str | None:
    """Say what a person must do about ``error``; None where waiting may help."""
    if isinstance(error, _BAD_LOGIN):
        keys = "sasl.username, sasl.password, sasl.mechanism, security.protocol"
        return f"{server} refused the login of {user!r}: check {keys} ({error})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f'the certificate of {server} is not accepted: {error.verify_message}; check "ssl.ca.location" '
            'and the name in "bootstrap.servers"'
        )
    if isinstance(error, ssl.SSLError):
        return f'no TLS with {server}: {error.reason or error}; check "security.protocol" and the port'
    return None


async def started(client: Client, seconds: float, doing: str) -> None:
    """Start ``client`` within ``seconds``; one that does not start is discarded. Raises Fenced, Unavailable."""
    try:
        with translated(doing):
            async with asyncio.timeout(seconds):
                await client.start()
    except BaseException as error:
        _close_half_open(error)
        await discard(client)
        raise


def _close_half_open(error: BaseException | None) -> None:
    """Close the connection that aiokafka's bootstrap forgets when it is cancelled: only its frame still knows it."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            conn = frame.f_locals.get("bootstrap_conn")
            if isinstance(conn, AIOKafkaConnection):
                conn.close(reason=CloseReason.SHUTDOWN)
        error = error.__cause__ or error.__context__


async def partitions_of(client: AIOKafkaClient, topic: str) -> int:
    """Return how many partitions ``topic`` has. Raises TopicRefused (unknown, unauthorized), Unavailable."""
    if known := client.cluster.partitions_for_topic(topic):
        return len(known)
    client.add_topic(topic)
    until = asyncio.get_running_loop().time() + TOPIC_PATIENCE
    while True:
        if not await client.force_metadata_update():
            raise Unavailable(f"{topic}: no broker answers")
        if known := client.cluster.partitions_for_topic(topic):
            return len(known)
        if topic in client.cluster.unauthorized_topics:
            raise TopicRefused(topic, "not allowed: its ACLs must allow Describe and Write")
        if asyncio.get_running_loop().time() > until:
            raise TopicRefused(topic, "no such topic")
        await asyncio.sleep(0.1)


def seen(future: asyncio.Future[Any]) -> None:
    """Take note of an exception that another one stood for: asyncio logs those that nobody saw."""
    if not future.cancelled():
        future.exception()


def forsake(producer: AIOKafkaProducer) -> None:
    """See to it that no error of what ``producer`` has under way is logged by asyncio, with a traceback, as unseen.

    Whoever waits gets the error from another future; these are behind a shield, or of aiokafka's own.
    """
    futures = []
    if manager := producer._txn_manager:
        futures = [manager._transaction_waiter, *(future for _, _, future in manager._pending_txn_offsets)]
    waiting = producer._message_accumulator
    for batch in itertools.chain(*waiting._batches.values(), waiting._pending_batches):
        futures += [batch.future, batch._drain_waiter]
    for future in futures:
        if future is not None:
            future.add_done_callback(seen)


async def discard(client: Client, patience: float = 3.0) -> None:
    """End ``client`` within about ``patience`` seconds, whatever state it and the brokers are in. Flushes nothing."""
    parts: tuple[Any, ...]
    if isinstance(client, AIOKafkaProducer):
        # Not stop(): it waits for batches that may never be taken.
        client._closed = True
        client._message_accumulator._closed = True
        forsake(client)
        inner, parts = client.client, (client, client._sender, client._message_accumulator)
    elif isinstance(client, AIOKafkaConsumer):
        await _within(patience, client.stop())
        client._closed = True
        inner, parts = client._client, (client, client._fetcher, client._coordinator)
    else:
        client._closed = True
        inner, parts = client._client, (client,)
    await _end_tasks((*parts, inner), patience)
    await _within(patience, inner.close())


async def _within(patience: float, ending: Awaitable[object]) -> None:
    """Wait for the end of a client, ``patience`` seconds at most, and leave its failures to itself."""
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(patience):
            try:
                await ending
            except asyncio.CancelledError:
                # It lets escape as if it were ours that something of its own was cancelled: a task that never ran, or,
                # by a first attempt that took too long, what tells that a connection is closed.
                if (task := asyncio.current_task()) and task.cancelling():
                    raise


async def _end_tasks(owners: tuple[Any, ...], patience: float) -> None:
    """Cancel the tasks that run methods of ``owners``: aiokafka holds them in local variables, so look for them."""
    tasks: set[asyncio.Task[Any]] = set()
    for _ in range(5):  # a cancelled task may leave others behind
        tasks = {
            task for task in asyncio.all_tasks() if any(_owner(task) is owner for owner in owners if owner is not None)
        }
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks, timeout=patience / 5)
        for task in done:
            if not task.cancelled():
                task.exception()  # seen: it failed because it was ended
    log.warning("tasks of a Kafka client did not end: %s", tasks)


def _owner(task: asyncio.Task[Any]) -> object:
    if task is asyncio.current_task():
        return None
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame else None
