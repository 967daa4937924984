"""The agent's configuration: what a file may say, and what is said of a wrong one."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from edge_agent import config
from edge_agent.buffer.settings import BufferSettings
from edge_agent.config import EdgeConfig, ForwardSettings
from edge_agent.lanes import Lane
from edge_agent.listener_config import LimitSettings, ListenerSettings
from edge_agent.plan.plan import PlanSettings, Shed
from edge_agent.source.config import SourceSettings
from edge_agent.uplink.config import UplinkSettings
from waybill.acl import AclRule
from waybill.errors import ConfigError
from waybill.mqtt.limits import Limits
from waybill.mqtt.settings import Settings

WHOLE = """
gateway = "plant-7"
data = "buffer"
[limits]
max_packet = 65536
queue_messages = 10

[[listener]]
host = "0.0.0.0"
port = 1883
passwords = "users"
max_connections = 50
[[listener]]
kind = "unix"
path = "mqtt.sock"
name = "inside"
[[acl]]
listener = "inside"
publish = ["#"]
[[acl]]
user = "V*"
subscribe = ["cmd/%u/+/req"]
[[listener]]
host = "::"
port = 8883
certificate = "tls/listener.pem"
key = "/etc/listener.key"
client_ca = "tls/devices.pem"

[[uplink]]
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
body = "columns"

[buffer]
max_bytes = 1073741824
"""

TLS = 'certificate = "edge.toml"\nkey = "edge.toml"\nclient_ca = "edge.toml"'


def test_a_whole_file_with_paths_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    for name in ("ca.pem", "gateway.pem", "gateway.key", "listener.pem", "listener.key", "devices.pem"):
        (tmp_path / "tls" / name).touch()
    path = tmp_path / "edge.toml"
    path.write_text(WHOLE.replace("/etc/listener.key", __file__))
    read = config.load(path)
    assert read.data == tmp_path / "buffer"
    assert read.listeners[0] == ListenerSettings("0.0.0.0", passwords=tmp_path / "users", max_connections=50)
    assert read.listeners[1] == ListenerSettings(kind="unix", path=tmp_path / "mqtt.sock", name="inside")
    assert read.listeners[2].certificate == tmp_path / "tls/listener.pem"
    assert read.listeners[2].key == Path(__file__)
    assert read.limits == LimitSettings(max_packet=65536, queue_messages=10)
    assert read.listeners[0].limits(read.limits) == Limits(max_packet=65536, max_connections=50)
    assert read.acl == (AclRule(listener="inside", publish=("#",)), AclRule(user="V*", subscribe=("cmd/%u/+/req",)))
    (uplink,) = read.uplinks
    assert (uplink.host, uplink.port, uplink.tls) == ("ingest.example", 8884, True)
    assert uplink.ca == tmp_path / "tls/ca.pem"
    assert read.forward == ForwardSettings(
        ("vehicles/#",), ("cmd/#", "+/+/raw"), frame_messages=500, linger_ms=50, body="columns"
    )
    assert read.buffer.max_bytes == 1 << 30


def test_defaults(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text('gateway = "g"\ndata = "/var/lib/waybill"\n[[uplink]]\nurl = "mqtts://[::1]"')
    read = config.load(path)
    assert read == EdgeConfig("g", Path("/var/lib/waybill"), uplinks=(UplinkSettings("mqtts://[::1]"),))
    assert read.listeners == (ListenerSettings("127.0.0.1", 1883),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('gateway = "a b"', "gateway: 'a b' cannot name a gateway"),
        ('gateway = "node:1"', "cannot name a gateway"),
        ("gateway = 7", "gateway: expected `str`, got `int`"),
        ("data = 7", "data: expected a path, as text, got 7"),
        ("listener = []", "without a [[source]] there has to be one"),
        ("[[listener]]\nport = 70000", "listener[0].port"),
        ('[[listener]]\ncertificate = "x"', "[[listener]] 1: certificate and key go together"),
        ('[[listener]]\ncertificate = "no.pem"\nkey = "edge.toml"', "[[listener]] 1 certificate: "),
        ('[[listener]]\nclient_ca = "x"', "client_ca needs certificate and key"),
        ('[forward]\nfilters = ["a/#/b"]', "[forward] filters: 'a/#/b' is no MQTT topic filter"),
        ('[forward]\nexclude = [""]', "[forward] exclude: '' is no MQTT topic filter"),
        ("[forward]\nlinger = 5", "unknown key 'linger'; did you mean 'linger_ms'?"),
        ("[forward]\nframe_bytes = 99999999", "forward.frame_bytes"),
        ('[forward]\nbody = "rows"', "forward.body"),
        ("[buffer]\nmax_bytes = 1", "buffer.max_bytes"),
        ("[limits]\nmax_packet = 1073741824", "limits.max_packet"),
        ("[limits]\nmax_conections = 5", "did you mean 'max_connections'?"),
        ('[[listener]]\nkind = "carrier pigeon"', "listener[0].kind"),
        ('[[listener]]\nkind = "unix"', 'kind = "unix" needs the path'),
        ('[[listener]]\nkind = "unix"\npath = "s"\nport = 1', "port means nothing on a Unix socket"),
        (f'[[listener]]\nkind = "unix"\npath = "{"x" * 108}"', "is longer than 107 bytes"),
        ('[[listener]]\npath = "s"', 'path is for kind = "unix"'),
        ('[[listener]]\nname = "a b"', "name: 'a b': use 1 to 64"),
        ('[[listener]]\nname = "a"\n[[listener]]\nname = "a"', "two have the same"),
        ('[[listener]]\nhost = "0.0.0.0"', "anybody who reaches 0.0.0.0 could connect; give it passwords"),
        ('[[listener]]\nhost = "plant.example"', "anybody who reaches plant.example could connect"),
        ('[[listener]]\nhost = ""', "anybody who reaches"),
        ('[[listener]]\nkind = "websocket"', "any page in a browser on this machine could connect; give it passwords"),
        ("[[listener]]\nanonymous = false", "nobody could connect without anonymous; give it passwords"),
        ('[[listener]]\nclient_certificates = "required"', "client_certificates needs client_ca"),
        (f"[[listener]]\n{TLS}\nanonymous = true", "anonymous means nothing where a certificate is required"),
        (f'[[listener]]\n{TLS}\nclient_certificates = "optional"', "nobody could connect without a certificate"),
        ('[[listener]]\nclient_ids = "user"', "needs users"),
        ("acl = []", "acl: write [[acl]], once for each rule"),
        ('[[acl]]\npublish = ["a/#/b"]', "[[acl]] 1 publish: 'a/#/b' is no MQTT topic filter"),
        ('[[acl]]\npublish = ["a"]\nlistener = "x"', "[[acl]] 1 listener: no [[listener]] has name = 'x'"),
        ('[[acl]]\npublsh = ["a"]', "did you mean 'publish'?"),
        ('[[lane]]\nname = "control"', "[[lane]] 1 name: 'control' is the agent's own lane"),
        ('[[lane]]\nname = "a b"\nfilters = ["a"]', "[[lane]] 1 name: 'a b' cannot name a lane"),
        ('[[lane]]\nname = "a"\nfilters = ["a"]\n' * 2, "[[lane]] 2 name: another lane has the same"),
        ('[[lane]]\nname = "a"', "[[lane]] 1 filters: which topics is it for?"),
        ('[[lane]]\nname = "a"\nfilters = ["b", "a/#/b"]', "[[lane]] 1 filters: 'a/#/b' is no filter"),
        ('[[lane]]\nname = "a"\nfilters = ["$SYS/#"]', "[[lane]] 1 filters: '$SYS/#' is no filter"),
        ('[[lane]]\nname = "telemetry"\nfilters = ["a"]', "takes what no other lane claims; leave them out"),
        ('[[lane]]\nname = "a"\nfilters = ["a"]\npriority = 0', "[[lane]] 1 priority: 0 is the control lane's"),
        ('[[lane]]\nname = "a"\nfilters = ["a"]\nmax_bytes = 1', "[[lane]] 1 max_bytes: 1 is too little"),
        ('[[lane]]\nname = "a"\nfilters = ["a"]\norder = "lifo"', "lane[0].order"),
        ("".join(f'[[lane]]\nname = "{n}"\nfilters = ["a"]\nshare = 51\n' for n in "ab"), "over 100 per cent"),
        ("".join(f'[[lane]]\nname = "l{n}"\nfilters = ["a"]\n' for n in range(33)), "33 of them; 32 are the most"),
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


@pytest.mark.parametrize(
    ("listener", "anybody"),
    [
        (ListenerSettings(), True),
        (ListenerSettings("::1"), True),
        (ListenerSettings("127.8.9.1"), True),
        (ListenerSettings("localhost"), True),
        (ListenerSettings(kind="unix", path=Path("s")), True),
        (ListenerSettings(passwords=Path("u")), False),
        (ListenerSettings(client_ca=Path("c")), False),
        (ListenerSettings(passwords=Path("u"), anonymous=True), True),
        (ListenerSettings(kind="websocket"), False),
        (ListenerSettings(kind="websocket", anonymous=True), True),
        (ListenerSettings("10.0.0.1"), False),
        (ListenerSettings("10.0.0.1", anonymous=True), True),
        (ListenerSettings("::"), False),
        (ListenerSettings("127.0.0.1.example"), False),
    ],
)
def test_anybody_may_connect_where_nothing_is_asked_for_on_this_machine_alone(
    listener: ListenerSettings,
    anybody: bool,  # noqa: FBT001
) -> None:
    assert listener.lets_anybody is anybody


def test_the_memory_ceiling_counts_what_listeners_allow() -> None:
    def ceiling(*listeners: ListenerSettings, **limits: int) -> int:
        return config.memory_ceiling(EdgeConfig("g", Path(), listeners, limits=LimitSettings(**limits)))

    plain, tls = ListenerSettings(), ListenerSettings(certificate=Path("c"), key=Path("k"), max_connections=10)
    assert ceiling(plain) == ceiling(plain, plain) == Settings(max_packet=256 << 10).ceiling()
    assert ceiling(plain, tls) == Settings(max_packet=256 << 10).ceiling(10)
    assert ceiling(tls, tls, max_connections=15) == Settings(max_packet=256 << 10, max_connections=15).ceiling(15)
    assert ceiling(plain, ListenerSettings(max_packet=512 << 10)) == Settings(max_packet=512 << 10).ceiling()


def test_limits_are_those_of_the_server_and_have_its_defaults() -> None:
    server = {field.name: field.default for field in dataclasses.fields(Settings)}
    ours = {field.name: field.default for field in msgspec.structs.fields(LimitSettings)}
    assert {name: server[name] for name in ours} | {"max_packet": 256 << 10} == ours
    mine = ListenerSettings().limits(LimitSettings())
    assert mine == Limits(max_packet=256 << 10)
    own = dict.fromkeys(Limits.__dataclass_fields__, 7)
    assert ListenerSettings(**own).limits(LimitSettings()) == Limits(**own)  # type: ignore[arg-type]


def test_a_first_look_needs_no_file(tmp_path: Path) -> None:
    made = config.first_look("127.0.0.1:0", tmp_path)
    assert made.listeners == (ListenerSettings("127.0.0.1", 0),)
    assert made.uplinks == ()
    with pytest.raises(ConfigError, match="--listen 'nowhere': write HOST:PORT"):
        config.first_look("nowhere", tmp_path)
    with pytest.raises(ConfigError, match="--listen '0.0.0.0:1883': anybody could connect; use 127.0.0.1"):
        config.first_look("0.0.0.0:1883", tmp_path)


def test_the_documentation_shows_every_key_and_its_default(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    section = text[text.index("## The gateway's agent") :]
    example = re.sub(r"^# (?=\w+ = |\[)", "", section.split("```toml\n")[1].split("```")[0], flags=re.MULTILINE)
    files = "ca.pem gateway.pem gateway.key listener.pem listener.key devices.pem proxy-password"
    for name in f"{files} broker-ca.pem broker.password source.pem source.key source.secret".split():
        (tmp_path / name).touch()
    path = tmp_path / "edge.toml"
    path.write_text(example)
    read = config.load(path)
    assert (read.forward, read.buffer, read.limits) == (ForwardSettings(), BufferSettings(), LimitSettings())
    uplink = read.uplinks[0]
    assert (uplink.keepalive, uplink.metered, uplink.return_s, uplink.broker) == (20, False, 300, "cloud")
    (source,) = read.sources
    default = SourceSettings("", ())
    assert (source.version, source.keepalive, source.commands) == (default.version, default.keepalive, default.commands)
    (lane,) = read.lanes
    assert lane == Lane(lane.name, filters=lane.filters)
    assert read.plan is not None
    assert (read.plan.cycle_day, read.plan.count) == (PlanSettings(1).cycle_day, PlanSettings(1).count)
    assert read.plan.shed == (Shed(0.8, (lane.name,)),)
    first = read.listeners[0]
    assert (first.host, first.port, first.kind, first.client_ids) == ("127.0.0.1", 1883, "mqtt", "any")
    assert first.limits(LimitSettings()) == ListenerSettings().limits(LimitSettings())
    shown = tomllib.loads(example)
    for kind, tables in (
        (EdgeConfig, [shown]),
        (ListenerSettings, shown["listener"]),
        (SourceSettings, shown["source"]),
        (AclRule, shown["acl"]),
        (LimitSettings, [shown["limits"]]),
        (UplinkSettings, shown["uplink"]),
        (ForwardSettings, [shown["forward"]]),
        (Lane, shown["lane"]),
        (BufferSettings, [shown["buffer"]]),
        (PlanSettings, [shown["plan"]]),
        (Shed, shown["plan"]["shed"]),
    ):
        assert {field.encode_name for field in msgspec.structs.fields(kind)} == {key for one in tables for key in one}
