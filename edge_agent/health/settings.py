"""``[health]`` of the agent's configuration."""

from __future__ import annotations

from typing import Annotated

import msgspec


class HealthSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``interval``: seconds between two health records (:mod:`edge_agent.health.watch`); 0: none is sent."""

    interval: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 300
