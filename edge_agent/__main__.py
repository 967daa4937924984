"""The agent's own process: ``waybill edge run`` replaces itself with ``python -m edge_agent``.

A command line costs a third of the memory that a gateway has for its agent, and is of no use once it was read. So this
knows two forms of arguments only, ``FILE`` and ``HOST:PORT DIR``, both checked before.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

from edge_agent import config
from edge_agent.app import run
from waybill import logs
from waybill.errors import ConfigError, WaybillError
from waybill.lifecycle import spare_garbage_collection


def main(arguments: list[str]) -> int:
    """Run the agent and return its exit code, as :mod:`waybill.console.main` has them."""
    spare_garbage_collection()
    logs.set_up()
    try:
        if len(arguments) == 1:
            settings = config.load(Path(arguments[0]))
        else:
            listen, data = arguments
            settings = config.first_look(listen, Path(data))
        logs.set_up(settings.logging, gateway=settings.gateway)
        return run(settings)
    except WaybillError as error:
        print(f"waybill edge: {error}", file=sys.stderr)  # noqa: T201 - the one line a person needs
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if threading.active_count() > 1:
        # A connection attempt or a name look-up hangs in a thread, which Python would wait for.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
