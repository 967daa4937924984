"""Routes: filter → topic, key templates, and the errors of both."""

import pytest

from cloud_ingest.config import DEFAULT_ROUTES, Route
from cloud_ingest.router.routes import Routes
from waybill.errors import ConfigError


def target(route: Route, topic: str = "vehicles/V7/telemetry", client: str = "c-1") -> tuple[str | None, bytes]:
    found = Routes([route]).target("gw", topic, client)
    return found.topic, found.key


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("{device}", b"V7"),
        ("{client}", b"c-1"),
        ("{gateway}", b"gw"),
        ("{topic}", b"vehicles/V7/telemetry"),
        ("{level:1}.{level:3}", b"vehicles.telemetry"),
        ("{level:9}", b""),
        ("all", b"all"),
        ("", b""),
        ("{gateway}/{device}", b"gw/V7"),
    ],
)
def test_key_templates(key: str, expected: bytes) -> None:
    assert target(Route(topic="t", key=key)) == ("t", expected)


def test_the_device_of_a_topic_with_one_level_is_the_client() -> None:
    assert target(Route(topic="t"), topic="telemetry") == ("t", b"c-1")


def test_the_first_route_that_matches_wins_and_none_is_none() -> None:
    routes = Routes(
        [Route(topic="one", filter="a/+"), Route(topic="two", filter="a/#"), Route(topic="three", filter="+/b")]
    )
    found = {topic: routes.target("gw", topic, "c").topic for topic in ("a/b", "a/b/c", "a", "x/b", "x", "$SYS/b")}
    assert found == {"a/b": "one", "a/b/c": "two", "a": "two", "x/b": "three", "x": None, "$SYS/b": None}
    assert routes.topics == {"one", "two", "three"}


def test_the_default_is_everything_to_fleet_telemetry_by_device() -> None:
    found = Routes(DEFAULT_ROUTES).target("gw 1", "a/ü b/c", "c")
    assert (found.topic, found.key) == ("fleet.telemetry", "ü b".encode())
    assert found.ce_source == ("ce_source", b"/gateways/gw%201/devices/%C3%BC%20b")
    assert found.mqtt_topic == ("mqtt_topic", "a/ü b/c".encode())


@pytest.mark.parametrize(
    ("route", "text"),
    [
        (Route(topic="t", key="{devise}"), "unknown placeholder {devise}; known are {device}"),
        (Route(topic="t", key="{level:0}"), "unknown placeholder {level:0}"),
        (Route(topic="t", key="{}"), "unknown placeholder {}"),
        (Route(topic="t", key="{device"), "a brace without its partner"),
        (Route(topic="t", filter="a/#/b"), "filter 'a/#/b' is no MQTT filter"),
        (Route(topic="t", filter=""), "filter '' is no MQTT filter"),
    ],
)
def test_a_wrong_route_is_named_with_its_mend(route: Route, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        Routes([Route(topic="fine"), route], "cloud.toml")
    assert str(error.value).startswith("cloud.toml: [[route]] 2: ")
    assert text in str(error.value)
