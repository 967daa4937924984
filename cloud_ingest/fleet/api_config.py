"""``[api]`` of the cloud's configuration: the read-only HTTP API (docs/api.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from waybill.config import address, is_loopback
from waybill.errors import ConfigError

UNIX: Final = "unix:"
LEAST_TOKEN: Final = 16
"""Characters of a token: fewer can be guessed."""
MOST_TOKEN: Final = 512


class Api(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may ask for the state of the fleet, and where.

    ``listen``: HOST:PORT, or ``unix:PATH``. ``token_file``: holds the bearer token; without one whoever reaches a
    loopback address or the Unix socket may ask. ``certificate``, ``key``: PEM; beyond loopback they are needed.
    ``connections``: how many at once; more are closed.
    """

    listen: str = "127.0.0.1:8686"
    token_file: str = ""
    certificate: str = ""
    key: str = ""
    connections: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 64

    @property
    def path(self) -> Path | None:
        """The Unix socket, None where it listens on TCP."""
        return Path(self.listen.removeprefix(UNIX)) if self.listen.startswith(UNIX) else None

    @property
    def inside(self) -> bool:
        """Whether it can be reached from this machine alone."""
        return self.path is not None or is_loopback(address(self.listen)[0])


def check_api(api: Api, base: Path, where: str) -> Api:
    """Check what types cannot say, and resolve paths against ``base``. Raises ConfigError."""
    if api.path is not None:
        if not api.listen.removeprefix(UNIX):
            raise ConfigError(f"{where}: [api] listen {api.listen!r}: write unix:PATH")
        api = msgspec.structs.replace(api, listen=f"{UNIX}{base / api.path}")
    else:
        address(api.listen, f"{where}: [api] listen")
    if bool(api.certificate) != bool(api.key):
        raise ConfigError(f"{where}: [api] certificate and key go together: give both, or neither")
    if api.path is not None and api.certificate:
        raise ConfigError(f"{where}: [api] certificate: a Unix socket has no TLS; leave certificate and key out")
    if not api.inside and not (api.token_file and api.certificate):
        raise ConfigError(
            f"{where}: [api] listen {api.listen!r}: anybody could ask, or read what is asked; give token_file, "
            "certificate and key, or listen on 127.0.0.1"
        )
    files = {
        name: str(base / getattr(api, name)) for name in ("token_file", "certificate", "key") if getattr(api, name)
    }
    for name, path in files.items():
        if not Path(path).is_file():
            raise ConfigError(f"{where}: [api] {name}: {path}: no such file")
    return msgspec.structs.replace(api, **files)


def read_token(api: Api) -> bytes:
    """Return the token, empty where none is needed. Raises ConfigError."""
    if not api.token_file:
        return b""
    try:
        text = Path(api.token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[api] token_file {api.token_file}: cannot be read: {error}") from error
    if not LEAST_TOKEN <= len(text) <= MOST_TOKEN or not text.isprintable() or " " in text:
        raise ConfigError(
            f"[api] token_file {api.token_file}: {LEAST_TOKEN} to {MOST_TOKEN} printable characters in one word: "
            f"openssl rand -hex 32 > {api.token_file}"
        )
    return text.encode()
