"""Whom to ask: found by what a person gives, or by where an installation keeps its files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from waybill.errors import ConfigError
from waybill.monitor.client import Client, token_of
from waybill.monitor.sending import Sender
from waybill.monitor.sources import CloudSource, SocketSource, Source

AGENT: Final = "agent.sock"
INGEST: Final = "cloud.sock"
INSTALLED: Final = (Path("/etc/waybill/agent.toml"), Path("/etc/waybill-cloud/cloud.toml"))
"""Where an installation has the agent's file, and the ingest's."""


def cloud(url: str, token_file: Path | None, ca: Path | None) -> Source:
    """Return the API at ``url``. Raises ConfigError."""
    if token_file is None:
        return CloudSource(Client(url, ca=ca))
    token_of(token_file)
    return CloudSource(Client(url, lambda: token_of(token_file), ca))


def local(config: Path | None, data: Path | None) -> tuple[Source, Sender | None]:
    """Return the process on this machine whose data directory this is, or whose file; an ingest takes commands, too.

    Raises ConfigError.
    """
    if data is None:
        data = _data(config)
    try:
        names = {path.name for path in data.iterdir()}
    except PermissionError as error:
        raise ConfigError(f"{data}: not for this user; look as who runs the agent or ingest, or as root") from error
    except OSError as error:
        raise ConfigError(f"{data}: no such directory; give the data directory of a running agent or ingest") from error
    if INGEST in names:
        return SocketSource(data / INGEST, fleet=True), Sender(data / INGEST)
    return SocketSource(data / AGENT, fleet=False), None


def _data(config: Path | None) -> Path:
    """Return the data directory that a configuration file names; without one, that of an installation."""
    if config is None:
        config = next((path for path in INSTALLED if path.is_file()), None)
    if config is None:
        raise ConfigError(
            "whom to watch? an agent or ingest on this machine: --data DIR or --config FILE; the fleet from elsewhere: "
            "--cloud http://HOST:PORT"
        )
    try:
        data = tomllib.loads(config.read_text(encoding="utf-8")).get("data")
    except PermissionError:
        raise  # told like any other file that is not for this user
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {config}: cannot be read: {error}") from error
    if not isinstance(data, str):
        raise ConfigError(f'--config {config}: has no data = "DIR"; give the file of an agent or an ingest')
    return config.parent / Path(data).expanduser()
