"""The ingest's configuration: defaults, and each mistake with its place and its mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_ingest import config
from cloud_ingest.device_config import Devices
from cloud_ingest.fleet.api_config import Api
from waybill.config import is_loopback
from waybill.errors import ConfigError

PLAIN = '[listener]\naddress = "[::1]:1"\n'
DEVICES = 'data = "d"\nlistener = {address = "[::1]:1"}\n[devices]\naddress = "[::1]:2"\n'
EXTERNAL = 'data = "d"\n[listener]\nmode = "external"\n'
TLS = 'certificate = "s.pem"\nkey = "s.key"\nca = "ca.pem"\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(text)
    return path


def error_of(tmp_path: Path, text: str) -> str:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_small_file_has_every_default(tmp_path: Path) -> None:
    settings = config.read(written(tmp_path, f'data = "var"\n[listener]\n{TLS}'))
    assert settings.data == tmp_path / "var"
    assert settings.socket == tmp_path / "var" / "cloud.sock"
    assert settings.log == config.Embedded(tmp_path / "var" / "log.db", 4 << 30)
    assert settings.config.listener.address == "0.0.0.0:8883"
    assert settings.config.listener.certificate == str(tmp_path / "s.pem")
    assert settings.config.route == (config.Route("fleet.telemetry", "#", "{device}"),)
    topics = settings.config.topics
    assert (topics.frames, topics.ledger, topics.partitions) == ("waybill.frames", "waybill.ledger", 4)


def test_kafka_settings_are_handed_on_under_kafkas_own_names(tmp_path: Path) -> None:
    log = '[log]\nkind = "kafka"\n"bootstrap.servers" = "k:9092"\n'
    text = f'data = "/d"\n[listener]\n{TLS}[topics]\nprefix = "x."\n{log}'
    settings = config.read(written(tmp_path, text))
    assert settings.log == config.Kafka({"bootstrap.servers": "k:9092"}, tmp_path)
    assert settings.config.topics.commands == "x.waybill.commands"
    assert settings.config.topics.command_status == "x.waybill.command-status"
    assert settings.config.topics.dead_letters == "x.waybill.dlq"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("'data' is missing",)),
        ('data = "d"\nlistner = 1\n', ("did you mean 'listener'",)),
        ('data = "d"\n', ("plain TCP is for loopback only", "ca init")),
        ('data = "d"\n[listener]\naddress = "8883"\n', ("[listener] address", "HOST:PORT")),
        ('data = "d"\n[listener]\ncertificate = "c"\n', ("ca, key is missing",)),
        ('data = "d"\n[listener]\naddress = "127.0.0.1:1"\nmemory = 5\n', ("memory must hold two frames",)),
        ('data = "d"\n[listener]\naddress = "127.0.0.1:1"\ncredit = 0\n', ("credit must be at least 1",)),
        ('data = "d"\n[listener]\naddress = "127.0.0.1:1"\nconnect_timeout = 0.0\n', ("connect_timeout",)),
        (
            'data = "d"\n[listener]\naddress = "[::1]:1"\n[websocket]\naddress = "0.0.0.0:443"\n',
            ("[websocket] address '0.0.0.0:443' without certificates", "loopback only"),
        ),
        (
            f'data = "d"\n[listener]\n{TLS}[websocket]\naddress = "0.0.0.0:443"\nkey = "k"\n',
            ("[websocket] certificate and key go together",),
        ),
        (
            f'data = "d"\n{PLAIN}[websocket]\naddress = "[::1]:2"\ncertificate = "c"\nkey = "k"\n',
            ("[listener] certificate, key and ca are missing",),
        ),
        (f'data = "d"\n[listener]\n{TLS}[websocket]\nport = 443\n', ("[websocket]", "port")),
        ('data = "d"\ndeployment = "a b"\n', ("deployment 'a b'",)),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[topics]\npartitions = 0\n', ("partitions 0", "1 to 1000")),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[topics]\nprefix = "a/"\n', ("prefix 'a/'",)),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[topics]\nreplication_factor = 0\n', ("replication_factor",)),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[log]\nkind = "redis"\n', ("kind 'redis'", '"kafka"')),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[log]\npaht = "x"\n', ("[log]", "did you mean 'path'")),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[log]\npath = 5\n', ("[log]", "path")),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[log]\nmax_bytes = 5\n', ("max_bytes 5", "at least")),
        ('data = "d"\nroute = []\n[listener]\naddress = "[::1]:1"\n', ("no [[route]]",)),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[[route]]\ntopic = "a b"\n', ("[[route]] 1", "topic 'a b'")),
        ('data = "d"\n[[route]]\nfilter = "a"\n', ("'topic' is missing",)),
        (f'data = "d"\n{PLAIN}[[route]]\ntopic = "a"\nbatch_bytes = 5\n', ("[[route]] 1", "batch_bytes 5", "1024")),
        (f'data = "d"\n{PLAIN}[[route]]\ntopic = "a"\nlinger_ms = -1\n', ("[[route]] 1", "linger_ms -1")),
        (f'data = "d"\n{PLAIN}[[route]]\ntopic = "a"\ncompression = "brotli"\n', ("brotli",)),
        (
            f'data = "d"\n{PLAIN}[[route]]\ntopic = "a"\nfilter = "x"\n[[route]]\ntopic = "a"\nsend = "sync"\n',
            ("[[route]] 2", "topic 'a' has another route", "alike in both"),
        ),
        (
            f'data = "d"\n{PLAIN}proxies = ["10.0.0.1/8"]\n',
            ("[listener] proxies", "10.0.0.1/8", "10.0.0.0/8"),
        ),
        (f'{DEVICES}passwords = "p"\nproxies = ["lb"]\n', ("[devices] proxies", "'lb'")),
        (EXTERNAL, ("needs [listener.broker]",)),
        (f'{EXTERNAL}[listener.broker]\nurl = "http://x"\n', ("[listener.broker] url", "mqtts://HOST:PORT")),
        (f'{EXTERNAL}[listener.broker]\nurl = "mqtt://x:99999"\n', ("[listener.broker] url",)),
        (f'{EXTERNAL}[listener.broker]\nurl = "mqtt://x"\nshare = "a/b"\n', ("share 'a/b'",)),
        (f'{EXTERNAL}[listener.broker]\nurl = "mqtt://x"\nca = "c"\n', ("ca and certificate are for mqtts://",)),
        (f'{EXTERNAL}[listener.broker]\nurl = "mqtts://x"\nkey = "c"\n', ("certificate and key go together",)),
        (
            f'{EXTERNAL}[listener.broker]\nurl = "mqtt://x"\npassword_file = "p"\n',
            ("[listener.broker] password_file", "p: no"),
        ),
        (f'data = "d"\n{PLAIN}[metrics]\nlisten = "9464"\n', ("[metrics] listen '9464'", "HOST:PORT")),
        (f'{EXTERNAL}plain = ["#"]\n[listener.broker]\nurl = "mqtt://x"\n', ("plain '#'", "first level")),
        (f'{EXTERNAL}plain = ["a/#"]\n[listener.broker]\nurl = "mqtt://x"\n', ("plain needs client_id",)),
        (f'data = "d"\n{PLAIN}plain = ["a"]\n', ('broker and plain are for mode = "external"',)),
        (DEVICES, ("[devices]: nobody could connect", "passwords", "client_ca")),
        (f'{DEVICES}passwords = "p"\n', ("no [[acl]]", "cmd/%u/+/req")),
        (DEVICES.replace("[::1]:2", "0.0.0.0:1") + 'passwords = "p"\n', ("[devices] address", "without certificate")),
        (f'{DEVICES}client_ca = "p"\n', ("client_ca needs certificate",)),
        (f'{DEVICES}key = "p"\n', ("certificate and key go together",)),
        (f'{DEVICES}passwords = "p"\nmemory = 5\n', ("memory must hold two packets",)),
        (f'{DEVICES}passwords = "p"\nmax_packet = 5\n', ("max_packet", ">= 1024")),
        (f'{DEVICES}passwords = "p"\n[[acl]]\npublish = ["a+"]\n', ("[[acl]] 1: publish", "'a+'")),
        (f'{DEVICES}passwords = "p"\n[[acl]]\nlistener = "x"\npublish = ["a"]\n', ("[[acl]] 1: listener",)),
        ('data = "d"\n[listener]\naddress = "[::1]:1"\n[[acl]]\npublish = ["a"]\n', ("[[acl]] is for devices",)),
        *(
            (
                f'data = "d"\n[listener]\n{TLS}[topics]\nprefix = "x."\n[[route]]\ntopic = "x.waybill.{name}"\n',
                ("[[route]] 1", f"topic 'x.waybill.{name}'", "internal", "choose another"),
            )
            for name in ("frames", "ledger", "commands", "command-status", "dlq")
        ),
        (
            f'data = "d"\n[listener]\naddress = "[::1]:1"\n[[route]]\ntopic = "{"a" * 246}"\n',
            ("[[route]] 1", "1 to 245"),
        ),
    ],
)
def test_each_mistake_names_its_place_and_its_mend(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    said = error_of(tmp_path, text)
    for part in parts:
        assert part in said


def test_a_first_look_is_plain_on_loopback_alone(tmp_path: Path) -> None:
    settings = config.first_look("127.0.0.1:0", tmp_path)
    assert not settings.config.listener.tls
    assert settings.log == config.Embedded(tmp_path / "log.db", 4 << 30)
    with pytest.raises(ConfigError, match="loopback only"):
        config.first_look("0.0.0.0:1883", tmp_path)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("ingest", False),
    ],
)
def test_loopback(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_documentation_shows_the_defaults(tmp_path: Path) -> None:
    """The example in docs/configuration.md is a whole file whose values are the program's defaults."""
    document = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    example = document.partition("## The cloud ingest")[2].partition("```toml\n")[2].partition("```")[0]
    shown = config.read(written(tmp_path, example))
    plain = config.read(written(tmp_path, f'data = "/var/lib/waybill-cloud"\n[listener]\n{TLS}'))
    assert shown.config.topics == plain.config.topics
    assert shown.config.route == plain.config.route
    assert shown.config.deployment == plain.config.deployment
    assert shown.log == config.Embedded(tmp_path / "log.db", 4 << 30)
    assert shown.config.api == Api()
    ours, theirs = shown.config.listener, plain.config.listener
    for field in config.Listener.__struct_fields__:
        if field not in {"certificate", "key", "ca"}:
            assert getattr(ours, field) == getattr(theirs, field), field
    assert shown.config.devices == Devices(
        certificate=tmp_path / "server.pem", key=tmp_path / "server.key", passwords=tmp_path / "users"
    )
