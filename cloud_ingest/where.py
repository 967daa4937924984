"""Options by which tools say which deployment they mean; shared by ``waybill cloud`` and ``waybill command``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from cloud_ingest import config
from waybill.errors import ConfigError

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The ingest's configuration.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Or the data directory of one on the embedded log.")
]
AllowUnsafeOption = Annotated[
    bool,
    typer.Option("--allow-unsafe", help="Go on although settings of topics make the promise untrue."),
]
BootstrapOption = Annotated[
    str | None, typer.Option("--bootstrap", metavar="HOST:PORT", help="Or a Kafka without security.")
]


INSTALLED: Final = Path("/etc/waybill-cloud/cloud.toml")
"""Where an installation has the ingest's configuration."""


def located(config_file: Path | None, data: Path | None, bootstrap: str | None) -> config.Settings:
    """Return the deployment that one of the three options names, without any that of an installation.

    Raises ConfigError.
    """
    if (config_file, data, bootstrap) == (None, None, None) and INSTALLED.is_file():
        config_file = INSTALLED
    if [config_file, data, bootstrap].count(None) != 2:  # noqa: PLR2004 - one of three is given
        raise ConfigError("say which deployment: one of --config FILE, --data DIR, --bootstrap HOST:PORT")
    if config_file:
        return config.read(config_file)
    if data:
        if not data.is_dir():
            raise ConfigError(f"--data {data}: no such directory; name the data directory of a waybill cloud run")
        return config.first_look("127.0.0.1:0", data)
    return config.bootstrap(bootstrap or "")
