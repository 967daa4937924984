"""The work around ``dictionaries``: the thread that trains, the file over restarts, the message."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from edge_agent.buffer.port import Buffer, Commit, Own
from edge_agent.clock import Clock
from edge_agent.forward.dictionaries import Dictionaries, train
from waybill.errors import Corrupt
from waybill.frames import Dictionary
from waybill.wire import DICTIONARY_TOPIC

log = logging.getLogger(__name__)

FILE: Final = "dictionary"
"""Name of the file in the data directory."""

LOOK: Final = 5.0
"""Seconds between two looks at whether there is something to do; nobody waits for it."""

NICE: Final = 10

_MMAP_THRESHOLD: Final = -3  # mallopt(3)
_LARGE: Final = 128 << 10


class Training:
    """Trains dictionaries for one agent and hands them on. ``path``: where the newest is kept for the next start."""

    def __init__(self, dictionaries: Dictionaries, buffer: Buffer, path: Path, clock: Clock) -> None:
        self._dictionaries = dictionaries
        self._buffer = buffer
        self._path = path
        self._clock = clock
        dictionaries.current = _read(path)

    async def run(self) -> None:
        """Do what there is to do. A task of its own, for the life of the agent."""
        found = self._dictionaries
        kept = found.current
        thread = ThreadPoolExecutor(1, "dictionaries", _be_modest)
        try:
            while True:
                await asyncio.sleep(LOOK)
                if (known := found.again(self._clock.mono())) is not None:
                    await self._send(known)
                if found.current is not None and (kept is None or kept.id != found.current.id):
                    kept = found.current
                    self._keep(kept)
                if found.due(now := self._clock.mono()):
                    sample = found.sample(now)
                    made = await asyncio.get_running_loop().run_in_executor(thread, train, sample)
                    if made is not None:
                        found.announced(now)
                        await self._send(made)
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    async def _send(self, dictionary: Dictionary) -> None:
        log.info("dictionary %d of %d bytes is sent to the cloud", dictionary.id, len(dictionary.content))
        await self._buffer.commit(Commit(own=[Own(DICTIONARY_TOPIC, dictionary.content)]))

    def _keep(self, dictionary: Dictionary) -> None:
        """Write the file. Without it the next start trains anew."""
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_bytes(dictionary.content)
            new.replace(self._path)
        except OSError as error:
            log.warning("%s: cannot be written, the next start trains anew: %s", self._path, error)


def _read(path: Path) -> Dictionary | None:
    """Return what the last start left, None where that is nothing, or nothing of use."""
    try:
        return Dictionary(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, Corrupt) as error:
        log.warning("%s: cannot be used, another will be trained: %s", path, error)
        return None


def _be_modest() -> None:
    """Let this thread give way to others, and the memory of its work go back to the system.

    glibc keeps what a large piece took, once one was freed, unless it is told the size from which on it must not: of
    the 10 MB of a training 7 would stay.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
