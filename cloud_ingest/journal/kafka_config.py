"""How Kafka is reached: the keys of ``[log]`` with ``kind = "kafka"``, under Kafka's own names.

A person who knows Kafka writes what is in every client's properties file::

    [log]
    kind = "kafka"
    "bootstrap.servers" = "kafka-1:9093,kafka-2:9093"
    "security.protocol" = "SASL_SSL"
    "sasl.mechanism" = "SCRAM-SHA-512"
    "sasl.username" = "waybill"
    "sasl.password" = "…"
    "ssl.ca.location" = "ca.pem"

Names are those of the Java client and of librdkafka. Unknown ones are an error that lists the known.
"""

from __future__ import annotations

import difflib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from waybill.errors import ConfigError

_TEXT: Final = {
    "bootstrap.servers": "",
    "client.id": "waybill",
    "compression.type": "zstd",
    "delivery": "exactly-once",
    "sasl.mechanism": "",
    "sasl.password": "",
    "sasl.username": "",
    "security.protocol": "PLAINTEXT",
    "ssl.ca.location": "",
    "ssl.certificate.location": "",
    "ssl.key.location": "",
    "ssl.key.password": "",
    "ssl.truststore.location": "",
}
_NUMBER: Final = {
    "delivery.timeout.ms": 10_000,
    "frames.retention.ms": 7 * 24 * 3_600_000,
    "metadata.max.age.ms": 30_000,
    "request.timeout.ms": 10_000,
    "session.timeout.ms": 10_000,
    "transaction.timeout.ms": 60_000,
}

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
DELIVERIES: Final = ("exactly-once", "at-least-once")
COMPRESSIONS: Final = ("none", "gzip", "snappy", "lz4", "zstd")


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """Checked settings. Times in seconds.

    ``connection``: keyword arguments common to every aiokafka client.
    ``exactly_once``: a step is one transaction; else its records may be written again.
    ``delivery``: until an append gives up.
    ``request``: until one answer. ``session``: until the group counts a silent member as gone. ``transaction``: until
    the broker aborts by itself. ``frames_retention_ms``: of the journal where it is created here. ``where``: origin, of
    errors.
    """

    bootstrap: tuple[str, ...]
    connection: dict[str, Any] = field(repr=False)
    compression: str | None
    exactly_once: bool
    delivery: float
    request: float
    session: float
    transaction: float
    frames_retention_ms: int
    where: str

    @property
    def commit(self) -> float:
        """Half of the transaction's time: its end is known here before the broker decides."""
        return self.transaction / 2


def parse(settings: Mapping[str, object], base: Path, where: str) -> KafkaConfig:
    """Check ``settings``; relative paths are relative to ``base``. Raises ConfigError naming key and mend."""
    where = f"{where}: [log]"
    known = {**_TEXT, **_NUMBER}
    for key, value in settings.items():
        _known(key, value, known, where)
    values: dict[str, Any] = {**known, **settings}
    bootstrap = tuple(item.strip() for item in values["bootstrap.servers"].split(",") if item.strip())
    if not bootstrap:
        raise ConfigError(f'{where} "bootstrap.servers" is missing: name the brokers, as in "kafka-1:9092"')
    for server in bootstrap:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigError(f'{where} "bootstrap.servers": {server!r} is not HOST:PORT')
    for key in _NUMBER:
        if values[key] < 1:
            raise ConfigError(f'{where} "{key}" = {values[key]}: give milliseconds, 1 or more')
    compression = _one_of("compression.type", values, COMPRESSIONS, where)
    return KafkaConfig(
        bootstrap=bootstrap,
        connection={
            "bootstrap_servers": list(bootstrap),
            "client_id": values["client.id"],
            "request_timeout_ms": values["request.timeout.ms"],
            "metadata_max_age_ms": values["metadata.max.age.ms"],
            **_security(values, base, where),
        },
        compression=None if compression == "none" else compression,
        exactly_once=_one_of("delivery", values, DELIVERIES, where) == "exactly-once",
        delivery=values["delivery.timeout.ms"] / 1000,
        request=values["request.timeout.ms"] / 1000,
        session=values["session.timeout.ms"] / 1000,
        transaction=values["transaction.timeout.ms"] / 1000,
        frames_retention_ms=values["frames.retention.ms"],
        where=where,
    )


def _known(key: str, value: object, known: Mapping[str, object], where: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{where} unknown key {key!r}; {hint}known are: {', '.join(sorted(known))}")
    if type(value) is not type(known[key]):
        kind = {str: "a string", int: "a whole number"}[type(known[key])]
        raise ConfigError(f'{where} "{key}" must be {kind}, not {value!r}')


def _one_of(key: str, values: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> str:
    value: str = values[key]
    if value not in allowed:
        raise ConfigError(f'{where} "{key}" = {value!r}: use one of {", ".join(allowed)}')
    return value


def _security(values: Mapping[str, Any], base: Path, where: str) -> dict[str, Any]:
    protocol = _one_of("security.protocol", values, PROTOCOLS, where)
    security: dict[str, Any] = {"security_protocol": protocol}
    given = [key for key in _TEXT if key.startswith("ssl.") and values[key]]
    if protocol.endswith("SSL"):
        security["ssl_context"] = _ssl_context(values, base, where)
    elif given:
        raise ConfigError(
            f'{where} "{given[0]}" has no effect with "security.protocol" = "{protocol}"; use SSL or SASL_SSL'
        )
    given = [key for key in _TEXT if key.startswith("sasl.") and values[key]]
    if not protocol.startswith("SASL"):
        if given:
            raise ConfigError(
                f'{where} "{given[0]}" has no effect with "security.protocol" = "{protocol}"; use SASL_SSL'
            )
        return security
    for key in ("sasl.mechanism", "sasl.username", "sasl.password"):
        if not values[key]:
            raise ConfigError(f'{where} "{key}" is missing: "security.protocol" = "{protocol}" needs it')
    security["sasl_mechanism"] = _one_of("sasl.mechanism", values, MECHANISMS, where)
    security["sasl_plain_username"] = values["sasl.username"]
    security["sasl_plain_password"] = values["sasl.password"]
    return security


def _ssl_context(values: Mapping[str, Any], base: Path, where: str) -> ssl.SSLContext:
    def file(key: str) -> str | None:
        if not values[key]:
            return None
        path = base / values[key]
        if not path.is_file():
            raise ConfigError(f'{where} "{key}": {path}: no such file')
        return str(path)

    if values["ssl.ca.location"] and values["ssl.truststore.location"]:
        raise ConfigError(f'{where} "ssl.ca.location" and "ssl.truststore.location" are the same thing: give one')
    authority = file("ssl.ca.location") or file("ssl.truststore.location")
    certificate, key = file("ssl.certificate.location"), file("ssl.key.location")
    if key and not certificate:
        raise ConfigError(f'{where} "ssl.certificate.location" is missing: "ssl.key.location" needs it')
    try:
        context = ssl.create_default_context(cafile=authority)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{where} {authority}: not a PEM file of certificates: {error}") from error
    if certificate:
        try:
            context.load_cert_chain(certificate, key, values["ssl.key.password"] or None)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"{where} {certificate} and its key cannot be used: {error}") from error
    return context
