"""``[listener.broker]`` of the cloud's configuration: the MQTT broker in front, where ``mode`` is ``external``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec

from waybill.config import Server, check_files, relative_to
from waybill.errors import ConfigError
from waybill.mqtt.topics import valid_filter

MAX_LEVELS: Final = 64

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Broker(Server, msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A broker of MQTT 5. ``url``: ``mqtts://HOST[:8883]``, or ``mqtt://HOST[:1883]`` without TLS.

    ``share``: the name of the shared subscription; all nodes of a deployment have the same. ``client_id``: this node's
    own at the broker, which then keeps what is under way while the node is away; empty: a random one, nothing is kept.
    ``user``, ``password_file``: as the broker asks. ``ca``: whom to believe (default: the system's CAs);
    ``certificate``, ``key``: who this node is. All PEM. ``keepalive``: seconds.
    """

    url: str
    share: str = "waybill"
    client_id: str = ""
    user: str = ""
    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    keepalive: Annotated[int, msgspec.Meta(ge=2, le=3600)] = 30

    def password(self) -> str:
        """Read the password; empty without a file. Raises ConfigError."""
        if self.password_file is None:
            return ""
        try:
            return self.password_file.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"[listener.broker] password_file {self.password_file}: cannot be read: {error}"
            ) from error


def check_broker(broker: Broker | None, plain: tuple[str, ...], base: Path, where: str) -> Broker:
    """Check what types cannot say, and resolve paths against ``base``. Raises ConfigError."""
    here = f"{where}: [listener.broker]"
    if broker is None:
        raise ConfigError(f'{where}: [listener] mode = "external" needs [listener.broker] with url = "mqtts://HOST"')
    if not _is_url(broker.url):
        raise ConfigError(f"{here} url {broker.url!r}: write mqtts://HOST:PORT, or mqtt://HOST:PORT without TLS")
    for key in ("share", "client_id"):
        value = getattr(broker, key)
        if not _NAME.fullmatch(value) and (value or key == "share"):
            raise ConfigError(f"{here} {key} {value!r}: use 1 to 64 letters, digits, '.', '_', '-'")
    if (broker.certificate is None) != (broker.key is None):
        raise ConfigError(f"{here}: certificate and key go together: give both, or neither")
    if not broker.tls and (broker.ca or broker.certificate):
        raise ConfigError(f"{here}: ca and certificate are for mqtts://; write that, or leave them out")
    for text in plain:
        if not valid_filter(text, MAX_LEVELS) or text.startswith(("$", "wb/", "#", "+")):
            raise ConfigError(
                f"{where}: [listener] plain {text!r}: a topic filter whose first level is a name, but not wb or $…"
            )
    if plain and not broker.client_id:
        raise ConfigError(
            f"{here}: plain needs client_id, a name of this node alone: under it the broker keeps what the node "
            "had not acknowledged when it was cut off"
        )
    broker = relative_to(broker, base)
    check_files(broker, here)
    return broker


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        fits = parts.scheme in {"mqtt", "mqtts"} and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        return False
    return fits and parts.path in {"", "/"}
