"""Who may publish and subscribe to what."""

from __future__ import annotations

import pytest

from waybill.acl import Acl, AclRule, fault, fill

FLEET = Acl(
    (
        AclRule(user="*", publish=("vehicles/%u/#", "cmd/%u/+/res"), subscribe=("cmd/%u/+/req",)),
        AclRule(user="dispatcher", subscribe=("vehicles/#",)),
        AclRule(client="truck-*", subscribe=("news/%c",)),
        AclRule(listener="inside", publish=("log/#",)),
    )
)


def test_without_a_rule_everything_is_allowed() -> None:
    assert Acl(()).may_publish("c", "", "", "any/thing")
    assert Acl(()).may_subscribe("c", "", "", "#")


@pytest.mark.parametrize(
    ("user", "topic", "allowed"),
    [
        ("V7", "vehicles/V7/speed", True),
        ("V7", "vehicles/V7", True),
        ("V7", "vehicles/V8/speed", False),
        ("V7", "cmd/V7/1/res", True),
        ("V7", "cmd/V8/1/res", False),
        ("V7", "log/x", False),
        ("", "vehicles//speed", False),
        ("", "vehicles/%u/speed", False),
        ("+", "vehicles/V8/speed", False),
        ("#", "vehicles/V8/speed", False),
        ("V8/speed", "vehicles/V8/speed/x", False),
        ("dispatcher", "vehicles/V8/speed", False),
    ],
)
def test_what_a_user_may_publish(user: str, topic: str, allowed: bool) -> None:  # noqa: FBT001
    assert FLEET.may_publish("c", user, "outside", topic) is allowed


@pytest.mark.parametrize(
    ("user", "client", "pattern", "allowed"),
    [
        ("V7", "c", "cmd/V7/+/req", True),
        ("V7", "c", "cmd/V7/12/req", True),
        ("V7", "c", "cmd/+/+/req", False),
        ("V7", "c", "cmd/V8/+/req", False),
        ("V7", "c", "cmd/V7/#", False),
        ("V7", "c", "#", False),
        ("V7", "c", "vehicles/#", False),
        ("dispatcher", "c", "vehicles/+/speed", True),
        ("dispatcher", "c", "vehicles", True),
        ("dispatcher", "c", "#", False),
        ("", "truck-7", "news/truck-7", True),
        ("", "truck-", "news/truck-", True),
        ("", "truck-+", "news/truck-+", False),
        ("", "truck-+", "news/+", False),
        ("", "car-7", "news/car-7", False),
        ("", "dispatcher", "vehicles/#", False),
    ],
)
def test_what_a_user_or_client_may_subscribe_to(user: str, client: str, pattern: str, allowed: bool) -> None:  # noqa: FBT001
    assert FLEET.may_subscribe(client, user, "outside", pattern) is allowed


def test_any_user_is_somebody() -> None:
    known = Acl((AclRule(user="*", publish=("t",)),))
    assert known.may_publish("c", "u", "", "t")
    assert not known.may_publish("c", "", "", "t")


def test_a_rule_for_a_listener_holds_there_alone() -> None:
    assert FLEET.may_publish("c", "", "inside", "log/x")
    assert not FLEET.may_publish("c", "", "", "log/x")


def test_all_that_a_rule_names_must_fit() -> None:
    both = Acl((AclRule(user="u", client="c", publish=("#",)),))
    assert both.may_publish("c", "u", "", "t")
    assert not both.may_publish("c", "v", "", "t")
    assert not both.may_publish("d", "u", "", "t")


@pytest.mark.parametrize("value", ["", "+", "#", "a/b", "a+", "a\0b", "/"])
def test_a_value_with_structure_never_fills_a_filter(value: str) -> None:
    assert fill("a/%c/b", value, "u") is None
    assert fill("a/%u/b", "c", value) is None
    assert fill("a/b", value, value) == "a/b"
    assert fill("a/%u/b", value, "u") == "a/u/b", "what is not used does no harm"


def test_values_are_filled_in_once_and_never_make_a_filter_of_dollar_topics() -> None:
    assert fill("%c/%u", "%u", "%c") == "%u/%c"
    assert fill("x%c", "$SYS", "u") == "x$SYS"
    assert fill("%c/#", "$SYS", "u") is None
    assert fill("$app/%c", "$SYS", "u") == "$app/$SYS"
    assert fill("100%/%d", "c", "u") == "100%/%d"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (AclRule(user="", publish=("a",)), "user: ''"),
        (AclRule(client="a*b*", publish=("a",)), "client: 'a*b*'"),
        (AclRule(publish=("a/#/b",)), "publish: 'a/#/b' is no MQTT topic filter"),
        (AclRule(subscribe=("a+",)), "subscribe: 'a+' is no MQTT topic filter"),
        (AclRule(subscribe=("$share/g/a",)), "write the filter behind the share name"),
        (AclRule(user="u"), "the rule allows nothing"),
        (AclRule(user="u*", client="*", publish=("%u/#",)), ""),
    ],
)
def test_what_is_wrong_with_a_rule(rule: AclRule, said: str) -> None:
    assert said in fault(rule, 64)
    assert bool(said) == bool(fault(rule, 64))
