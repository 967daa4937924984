"""The agent's configuration: what a file may say, and what is said of a wrong one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from edge_agent import config
from edge_agent.buffer.settings import BufferSettings
from edge_agent.config import EdgeConfig, ForwardSettings, ListenerSettings, UplinkSettings
from waybill.errors import ConfigError

WHOLE = """
gateway = "plant-7"
data = "buffer"
max_message_bytes = 65536

[[listener]]
host = "0.0.0.0"
port = 1883
[[listener]]
host = "::"
port = 8883
certificate = "tls/listener.pem"
key = "/etc/listener.key"
client_ca = "tls/devices.pem"

[uplink]
url = "mqtts://ingest.example:8884"
ca = "tls/ca.pem"
certificate = "tls/gateway.pem"
key = "tls/gateway.key"
keepalive = 30

[forward]
filters = ["vehicles/#"]
exclude = ["cmd/#", "+/+/raw"]
frame_messages = 500
linger_ms = 50

[buffer]
max_bytes = 1073741824
"""


def test_a_whole_file_with_paths_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    for name in ("ca.pem", "gateway.pem", "gateway.key", "listener.pem", "listener.key", "devices.pem"):
        (tmp_path / "tls" / name).touch()
    path = tmp_path / "edge.toml"
    path.write_text(WHOLE.replace("/etc/listener.key", __file__))
    read = config.load(path)
    assert read.data == tmp_path / "buffer"
    assert read.listeners[0] == ListenerSettings("0.0.0.0", 1883)
    assert read.listeners[1].certificate == tmp_path / "tls/listener.pem"
    assert read.listeners[1].key == Path(__file__)
    assert read.uplink is not None
    assert (read.uplink.host, read.uplink.port, read.uplink.tls) == ("ingest.example", 8884, True)
    assert read.uplink.ca == tmp_path / "tls/ca.pem"
    assert read.forward == ForwardSettings(("vehicles/#",), ("cmd/#", "+/+/raw"), frame_messages=500, linger_ms=50)
    assert read.buffer.max_bytes == 1 << 30


def test_defaults(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text('gateway = "g"\ndata = "/var/lib/waybill"\n[uplink]\nurl = "mqtts://[::1]"')
    read = config.load(path)
    assert read == EdgeConfig("g", Path("/var/lib/waybill"), uplink=UplinkSettings("mqtts://[::1]"))
    assert read.listeners == (ListenerSettings("127.0.0.1", 1883),)
    assert read.uplink is not None
    assert (read.uplink.host, read.uplink.port) == ("::1", 8883)
    assert (UplinkSettings("mqtt://h").port, UplinkSettings("mqtt://h").tls) == (1883, False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('gateway = "a b"', "gateway: 'a b' cannot name a gateway"),
        ('gateway = "node:1"', "cannot name a gateway"),
        ("gateway = 7", "gateway: expected `str`, got `int`"),
        ("data = 7", "data: expected a path, as text, got 7"),
        ("listener = []", "at least one [[listener]]"),
        ("[[listener]]\nport = 70000", "listener[0].port"),
        ('[[listener]]\ncertificate = "x"', "[[listener]] 1: certificate and key go together"),
        ('[[listener]]\ncertificate = "no.pem"\nkey = "edge.toml"', "[[listener]] 1 certificate: "),
        ('[[listener]]\nclient_ca = "x"', "client_ca needs certificate and key"),
        ('[uplink]\nurl = "ingest:8883"', "write mqtts://HOST:PORT"),
        ('[uplink]\nurl = "mqtts://h:99999"', "write mqtts://HOST:PORT"),
        ('[uplink]\nurl = "mqtts://u:p@h"', "write mqtts://HOST:PORT"),
        ('[uplink]\nurl = "mqtts://h/path"', "write mqtts://HOST:PORT"),
        ('[uplink]\nurl = "mqtt://h"\nca = "x"', "[uplink] ca is for TLS"),
        ('[uplink]\nurl = "mqtts://h"\nca = "none.pem"', "none.pem: no such file"),
        ('[uplink]\nurl = "mqtts://h"\nkey = "edge.toml"', "[uplink] certificate and key go together"),
        ('[uplink]\nurl = "mqtts://h"\nkeepalive = 1', "uplink.keepalive"),
        ('[forward]\nfilters = ["a/#/b"]', "[forward] filters: 'a/#/b' is no MQTT topic filter"),
        ('[forward]\nexclude = [""]', "[forward] exclude: '' is no MQTT topic filter"),
        ("[forward]\nlinger = 5", "unknown key 'linger'; did you mean 'linger_ms'?"),
        ("[forward]\nframe_bytes = 99999999", "forward.frame_bytes"),
        ("[buffer]\nmax_bytes = 1", "buffer.max_bytes"),
        ("max_message_bytes = 1073741824", "max_message_bytes"),
    ],
)
def test_wrong_values_are_named_with_file_and_key(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "edge.toml"
    given = {key for key in ("gateway", "data") if line.startswith(f"{key} ")}
    path.write_text("".join(f'{key} = "g"\n' for key in ("gateway", "data") if key not in given) + line)
    with pytest.raises(ConfigError) as raised:
        config.load(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)


def test_a_first_look_needs_no_file(tmp_path: Path) -> None:
    made = config.first_look("127.0.0.1:0", tmp_path)
    assert made.listeners == (ListenerSettings("127.0.0.1", 0),)
    assert made.uplink is None
    with pytest.raises(ConfigError, match="--listen 'nowhere': write HOST:PORT"):
        config.first_look("nowhere", tmp_path)


def test_the_documentation_shows_every_key_and_its_default(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    section = text[text.index("## The gateway's agent") :]
    example = section.split("```toml\n")[1].split("```")[0].replace("# certificate", "certificate")
    example = example.replace("# key", "key").replace("# client_ca", "client_ca")
    for name in ("ca.pem", "gateway.pem", "gateway.key", "listener.pem", "listener.key", "devices.pem"):
        (tmp_path / name).touch()
    path = tmp_path / "edge.toml"
    path.write_text(example)
    read = config.load(path)
    assert (read.forward, read.buffer) == (ForwardSettings(), BufferSettings())
    assert read.max_message_bytes == EdgeConfig("g", tmp_path).max_message_bytes
    assert read.uplink is not None
    assert read.uplink.keepalive == UplinkSettings("").keepalive
    shown = tomllib.loads(example)
    for kind, table in (
        (EdgeConfig, shown),
        (ListenerSettings, shown["listener"][0]),
        (UplinkSettings, shown["uplink"]),
        (ForwardSettings, shown["forward"]),
        (BufferSettings, shown["buffer"]),
    ):
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == set(table)
