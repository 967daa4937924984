"""The keys of [log] under Kafka's own names."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloud_ingest.journal.kafka_config import parse
from waybill.errors import ConfigError
from waybill.pki import ca_init

SASL: dict[str, Any] = {
    "security.protocol": "SASL_SSL",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "app",
    "sasl.password": "secret",
}


def _parse(base: Path = Path(), **settings: Any) -> Any:
    return parse({"bootstrap.servers": "a:9092, b:9093", **settings}, base, "waybill.toml")


def test_defaults() -> None:
    config = _parse()
    assert config.bootstrap == ("a:9092", "b:9093")
    assert config.connection["security_protocol"] == "PLAINTEXT"
    assert config.compression == "zstd"
    assert (config.delivery, config.session, config.transaction, config.commit) == (10.0, 10.0, 60.0, 30.0)


def test_sasl_and_tls_reach_the_client_and_no_password_the_log() -> None:
    config = _parse(**SASL)
    assert config.connection["sasl_mechanism"] == "SCRAM-SHA-512"
    assert config.connection["sasl_plain_username"] == "app"
    assert config.connection["sasl_plain_password"] == "secret"
    assert config.connection["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert "secret" not in repr(config)


@pytest.mark.parametrize("key", ["ssl.ca.location", "ssl.truststore.location"])
def test_a_ca_is_found_beside_the_configuration(tmp_path: Path, key: str) -> None:
    ca_init(tmp_path, now=datetime.now(UTC))
    [pem] = [path for path in tmp_path.rglob("*.pem") if "CERTIFICATE" in path.read_text()]
    config = _parse(pem.parent, **{"security.protocol": "SSL", key: pem.name})
    assert len(config.connection["ssl_context"].get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"bootstrap.server": "a:1"},
            r"unknown key 'bootstrap.server'; did you mean 'bootstrap.servers'\? known",
        ),
        ({"bootstrap.servers": ""}, '"bootstrap.servers" is missing'),
        ({"bootstrap.servers": "kafka"}, "'kafka' is not HOST:PORT"),
        ({"bootstrap.servers": "kafka:99999"}, "is not HOST:PORT"),
        ({"bootstrap.servers": 9092}, '"bootstrap.servers" must be a string, not 9092'),
        ({"session.timeout.ms": "10s"}, '"session.timeout.ms" must be a whole number'),
        ({"session.timeout.ms": 0}, '"session.timeout.ms" = 0: give milliseconds'),
        ({"allow_unsafe": True}, "unknown key 'allow_unsafe'"),
        ({"compression.type": "brotli"}, "use one of none, gzip, snappy, lz4, zstd"),
        ({"security.protocol": "TLS"}, "use one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ({**SASL, "sasl.mechanism": "GSSAPI"}, "use one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ({**SASL, "sasl.password": ""}, '"sasl.password" is missing'),
        ({"sasl.username": "app"}, '"sasl.username" has no effect'),
        ({"ssl.ca.location": "ca.pem"}, '"ssl.ca.location" has no effect'),
        ({**SASL, "ssl.ca.location": "nowhere.pem"}, "nowhere.pem: no such file"),
        ({**SASL, "ssl.ca.location": "a", "ssl.truststore.location": "b"}, "the same thing: give one"),
        ({**SASL, "ssl.key.location": __file__}, '"ssl.certificate.location" is missing'),
        ({**SASL, "ssl.ca.location": __file__}, "not a PEM file"),
        ({**SASL, "ssl.certificate.location": __file__}, "cannot be used"),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as wrong:
        _parse(**settings)
    assert str(wrong.value).startswith("waybill.toml: [log] ")
