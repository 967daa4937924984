"""``[[source]]``: what is taken, and what is refused with the mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent import config
from edge_agent.source.config import overlap
from waybill.errors import ConfigError


def load(directory: Path, *sources: str, listener: str = "listener = []") -> config.EdgeConfig:
    tables = "".join(f"[[source]]\n{source}\n" for source in sources)
    path = directory / "agent.toml"
    path.write_text(f'gateway = "gw"\ndata = "data"\n{listener}\n{tables}')
    return config.load(path)


PLANT = 'url = "mqtt://127.0.0.1"\ntopics = ["plant/#"]'


def test_a_source_is_enough_and_what_it_does_not_say_is_filled_in(tmp_path: Path) -> None:
    settings = load(tmp_path, PLANT)
    (source,) = settings.sources
    assert settings.listeners == ()
    assert (source.name, source.client_id, source.host, source.port) == ("127.0.0.1", "waybill-gw", "127.0.0.1", 1883)
    assert source.filters == ("plant/#", "cmd/+/+/res")
    assert not source.tls
    assert config.memory_ceiling(settings) > 0


def test_answers_to_commands_are_subscribed_to_where_they_are_wanted(tmp_path: Path) -> None:
    url = 'url = "mqtt://127.0.0.1"\n'
    assert load(tmp_path, url + 'topics = ["#"]').sources[0].filters == ("#",)
    assert load(tmp_path, PLANT + "\ncommands = false").sources[0].filters == ("plant/#",)


def test_tls_has_its_own_port_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    for name in ("ca.pem", "secret"):
        (tmp_path / name).write_text("x")
    more = 'topics = ["a"]\nca = "ca.pem"\nusername = "u"\npassword_file = "secret"'
    (source,) = load(tmp_path, f'url = "mqtts://broker.example"\n{more}').sources
    assert (source.tls, source.port, source.ca) == (True, 8883, tmp_path / "ca.pem")
    assert source.password_file == tmp_path / "secret"


def test_without_listener_and_source_nobody_could_bring_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"listener: without a \[\[source\]\] there has to be one"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (['url = "http://x"\ntopics = ["a"]'], "[[source]] 1: url: 'http://x': write mqtt://HOST:PORT"),
        (['url = "mqtt://u:p@x"\ntopics = ["a"]'], "[[source]] 1: url: a password does not belong there"),
        (['url = "mqtt://x:70000"\ntopics = ["a"]'], "[[source]] 1: url: 'mqtt://x:70000': write"),
        (['url = "mqtt://x"\ntopics = []'], "[[source]] 1: topics: give 1 to 64"),
        (['url = "mqtt://x"\ntopics = ["a/#/b"]'], "topics: 'a/#/b' is no MQTT topic filter"),
        (['url = "mqtt://x"\ntopics = ["$SYS/#"]'], "topics: '$SYS/#': topics that begin with $ never go up"),
        (['url = "mqtt://x"\ntopics = ["a/+", "+/b"]'], "topics: 'a/+' and '+/b' overlap"),
        (['url = "mqtt://x"\ntopics = ["a"]\nname = "a b"'], "name: 'a b': use 1 to 64 letters"),
        ([PLANT, PLANT], "[[source]] 2: name: '127.0.0.1' is another one's, too"),
        ([PLANT, PLANT + '\nname = "b"'], "[[source]] 2: client_id: 'waybill-gw' is another one's at the same broker"),
        ([PLANT + '\nca = "ca.pem"'], "[[source]] 1: ca is for TLS"),
        (['url = "mqtts://x"\ntopics = ["a"]\nca = "ca.pem"'], "[[source]] 1 ca: "),
        ([PLANT + '\npassword_file = "agent.toml"'], "password_file needs username"),
        ([f'{PLANT}\nname = "s{n}"\nclient_id = "s{n}"' for n in range(17)], "17 of them; at most 16"),
    ],
)
def test_what_is_wrong_is_said_with_the_mend(tmp_path: Path, sources: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, *sources)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'agent.toml'}: ")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a/b", "a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/+", "a", False),
        ("a/+", "+/b", True),
        ("a/+/c", "a/b/d", False),
        ("a/+/#", "a/b", True),
        ("a/b/#", "a/+", True),
        ("#", "x/y", True),
        ("+", "a/b", False),
    ],
)
def test_filters_overlap_where_a_topic_matches_both(one: str, other: str, expected: bool) -> None:  # noqa: FBT001
    assert overlap(one, other) == overlap(other, one) == expected
