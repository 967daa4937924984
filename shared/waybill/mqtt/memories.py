"""The resend memories of all clients (O3). No I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from waybill.mqtt.resend import MEMORY_ENTRIES_ALL, ClientMemory, Shared
from waybill.mqtt.state import DUP_WINDOW, ResendEntry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from waybill.mqtt.resend import Commit

MEMORY_CLIENTS: Final = 10_000
MEMORY_ENTRIES: Final = 500_000
"""How many clients without a connection are remembered, and how many messages of theirs in all.

The oldest are forgotten.
"""


class Memories:
    """The memories of all clients; those without a connection are bounded, the longest gone is forgotten first."""

    def __init__(
        self,
        window: int = DUP_WINDOW,
        clients: int = MEMORY_CLIENTS,
        entries: int = MEMORY_ENTRIES,
        saved: Mapping[str, Sequence[ResendEntry]] | None = None,
        entries_all: int = MEMORY_ENTRIES_ALL,
    ) -> None:
        self.window = window
        self.shared = Shared(entries_all)
        self._max_clients = clients
        self._max_entries = entries
        self._away: OrderedDict[str, ClientMemory] = OrderedDict()
        self._away_entries = 0
        for client, remembered in (saved or {}).items():
            self.leave(client, ClientMemory(window, remembered, self.shared))

    def __len__(self) -> int:
        return len(self._away)

    def enter(self, client: str) -> ClientMemory:
        """Return the memory of a client that has connected; it is the connection's until ``leave``."""
        memory = self._away.pop(client, None)
        if memory is None:
            return ClientMemory(self.window, shared=self.shared)
        self._away_entries -= len(memory)
        return memory

    def leave(self, client: str, memory: ClientMemory) -> list[str]:
        """Keep a frozen memory while its client is away; returns the clients forgotten for it."""
        forgotten: list[str] = []
        if len(memory):
            self._away[client] = memory
            self._away_entries += len(memory)
        while len(self._away) > self._max_clients or self._away_entries > self._max_entries:
            oldest, dropped = self._away.popitem(last=False)
            self._away_entries -= len(dropped)
            dropped.forget()
            forgotten.append(oldest)
        return forgotten

    def get(self, client: str) -> ClientMemory | None:
        """Return the memory of a client that is away."""
        return self._away.get(client)

    def failed(self, client: str, commit: Commit) -> None:
        """Take the messages of a failed commit out of the memory of a client that is away (O2)."""
        memory = self._away.get(client)
        if memory is not None:
            self._away_entries -= len(memory)
            memory.failed(commit)
            self._away_entries += len(memory)
