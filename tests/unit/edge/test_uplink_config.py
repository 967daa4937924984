"""The ways to the cloud as they are configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import config
from edge_agent.uplink.config import Proxy, UplinkSettings, labels, with_certificates
from waybill.errors import ConfigError

FIRST = 'gateway = "g"\ndata = "data"\n'


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "websocket"),
    [
        ("mqtts://h", "h", 8883, True, False),
        ("mqtts://[::1]:99/", "::1", 99, True, False),
        ("mqtt://h", "h", 1883, False, False),
        ("wss://h/mqtt?x=1", "h", 443, True, True),
        ("ws://h:8080", "h", 8080, False, True),
    ],
)
def test_a_url_says_where_and_how(url: str, host: str, port: int, tls: bool, websocket: bool) -> None:  # noqa: FBT001
    uplink = UplinkSettings(url)
    assert (uplink.host, uplink.port, uplink.tls, uplink.websocket) == (host, port, tls, websocket)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('[uplink]\nurl = "mqtts://h"', "uplink: expected `array`, got `object`; write [[uplink]], once for each"),
        ('[[uplink]]\nurl = "ingest:8883"', "[[uplink]] 1 url: 'ingest:8883': write mqtts://HOST[:PORT] or wss://"),
        ('[[uplink]]\nurl = "https://h"', "write mqtts://HOST[:PORT] or wss://"),
        ('[[uplink]]\nurl = "mqtts://h:99999"', "write mqtts://HOST[:PORT]"),
        ('[[uplink]]\nurl = "mqtts://h:0"', "write mqtts://HOST[:PORT]"),
        ('[[uplink]]\nurl = "mqtts://u:p@h"', "[[uplink]] 1 url: 'mqtts://…@h': write mqtts://HOST[:PORT]"),
        ('[[uplink]]\nurl = "u:p@h"', "[[uplink]] 1 url: '…@h': write mqtts://HOST[:PORT]"),
        ('[[uplink]]\nurl = "mqtts://a..b"', "write mqtts://HOST[:PORT]"),
        ('[[uplink]]\nurl = "mqtts://h/path"', "a path is for wss:// and ws://; leave it out"),
        (
            '[[uplink]]\nurl = "mqtt://h"\nca = "x"',
            "[[uplink]] 1 ca is for TLS, and url has none; write mqtts:// or wss",
        ),
        ('[[uplink]]\nurl = "mqtts://h"\nca = "none.pem"', "none.pem: no such file"),
        ('[[uplink]]\nurl = "mqtts://h"\nkey = "edge.toml"', "[[uplink]] 1 certificate and key go together"),
        ('[[uplink]]\nurl = "mqtts://h"\nkeepalive = 1', "uplink[0].keepalive"),
        ('[[uplink]]\nurl = "mqtts://h"\nreturn_s = 0', "uplink[0].return_s"),
        ('[[uplink]]\nurl = "mqtts://h"\nname = "a b"', "[[uplink]] 1 name: 'a b': use 1 to 64 letters"),
        ('[[uplink]]\nurl = "mqtts://h"\ninterface = "a/b"', "[[uplink]] 1 interface: 'a/b': write its name"),
        ('[[uplink]]\nurl = "mqtts://h"\ninterface = "abcdefghijklmnop"', "(ip link shows them)"),
        (
            '[[uplink]]\nurl = "mqtts://h"\nname = "a"\n[[uplink]]\nurl = "mqtts://i"\nname = "a"',
            "[[uplink]] name: two have the same; give each one of its own",
        ),
        (
            '[[uplink]]\nurl = "mqtts://h"\nname = "lte"\n[[lane]]\nname = "x"\nfilters = ["x"]\nonly_on = ["wifi"]',
            "[[lane]] 1 only_on: no [[uplink]] has name = 'wifi'; names are: 'lte'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_mend(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(FIRST + lines)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('proxy = "proxy:3128"', "write http://[USER:PASSWORD@]HOST:PORT or socks5://"),
        ('proxy = "https://u:hidden@proxy:3128"', "TLS to the proxy itself is not spoken"),
        ('proxy = "socks5h://u:hidden@proxy:1080"', "it looks names up"),
        ('proxy = "http://u:hidden@proxy"', "write http://[USER:PASSWORD@]HOST:PORT"),
        ('proxy = "http://u:hidden@proxy:3128/x"', "write http://[USER:PASSWORD@]HOST:PORT"),
        ('proxy = "http://u:hid/den@proxy:3128"', "%3A, %2F and %40 stand for : / and @ in a password"),
        ('proxy = "http://:hidden@proxy:3128"', "there is a password and no user"),
        (f'proxy = "http://u:{"hidden" * 50}@proxy:3128"', "at most 255 bytes"),
        ('proxy = "http://a%3Ab:hidden@proxy:3128"', "no colon in the user"),
        ('proxy_password_file = "edge.toml"', "there is no proxy; add it, or leave this out"),
        ('proxy = "http://u:hidden@proxy:3128"\nproxy_password_file = "edge.toml"', "without a password there"),
        ('proxy = "http://proxy:3128"\nproxy_password_file = "edge.toml"', "write USER@ before the proxy's host"),
        ('proxy = "http://u@proxy:3128"\nproxy_password_file = "none"', "none: no such file"),
    ],
)
def test_what_is_wrong_with_a_proxy_is_said_without_its_password(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(FIRST + '[[uplink]]\nurl = "mqtts://h"\n' + lines)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert said in str(caught.value)
    assert "hid" not in str(caught.value)


def test_a_proxys_user_and_password_may_have_any_characters() -> None:
    uplink = UplinkSettings("wss://h", proxy="http://d%20e:p%3As%40%2F%25@[::1]:3128", interface="wlan0")
    assert uplink.through() == Proxy("http", "::1", 3128, "d e", "p:s@/%")
    assert uplink.way == "wss://h by wlan0 through http://[::1]:3128"


def test_one_that_has_no_certificates_has_the_first_ones() -> None:
    one = UplinkSettings("mqtts://a", ca=Path("ca"), certificate=Path("c"), key=Path("k"))
    two, three, four = (
        UplinkSettings("wss://b", name="lte"),
        UplinkSettings("mqtt://c"),
        UplinkSettings("wss://d", ca=Path("x")),
    )
    made = with_certificates([one, two, three, four])
    assert made[0] == one
    assert (made[1].ca, made[1].certificate, made[1].key) == (Path("ca"), Path("c"), Path("k"))
    assert made[2:] == [three, four]
    assert with_certificates([]) == []
    assert labels(made) == ["[[uplink]] 1", "lte", "[[uplink]] 3", "[[uplink]] 4"]
