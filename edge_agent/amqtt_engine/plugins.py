"""The plug-ins of ``[amqtt.plugins]``, looked at before the agent starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amqtt.plugins.base import BaseAuthPlugin, BasePlugin
from amqtt.plugins.manager import import_string
from dacite import Config, DaciteError, from_dict

from waybill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


def check(plugins: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Import each plug-in, and compare its table with what it takes. Raises ConfigError; ``where`` names the file."""
    for path, options in plugins.items():
        table = f'{where}: [amqtt.plugins."{path}"]'
        plugin = _class(path, table)
        try:
            from_dict(plugin.Config, dict(options), config=Config(strict=True))
        except (DaciteError, TypeError) as error:
            raise ConfigError(f"{table}: {error}; compare with the documentation of the plug-in") from error


def authenticates(plugins: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say whether one of them decides who may connect. Raises ConfigError."""
    return any(issubclass(_class(path, f'[amqtt.plugins."{path}"]'), BaseAuthPlugin) for path in plugins)


def _class(path: str, table: str) -> type[Any]:
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigError(f"{table}: {error}; write MODULE.CLASS of a plug-in that is installed") from error
    if not (isinstance(found, type) and issubclass(found, BasePlugin)):
        raise ConfigError(f"{table}: this is no plug-in of amqtt: its class must derive from amqtt's BasePlugin")
    return found
