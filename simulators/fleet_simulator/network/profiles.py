"""What a network is like, and ready ones. Pure.

Rates, and the round trip that the two delays make, are of these sources; how loss comes in bursts differs from cell to
cell and hour to hour, so ``good_s``, ``bad_s`` and the losses are round figures of ours.

- ``ethernet``: nothing in the way
- ``lte``: 12 Mbit/s either way, 70 ms round trip: WebPageTest's profile "LTE"
- ``3g``: 1.6 Mbit/s down, 0.75 up, 150 ms round trip: "Slow 4G" of Lighthouse, a quarter of all 4G links is slower
- ``2g``: 280 kbit/s down, 256 up, 800 ms round trip: WebPageTest's profile "2G"
- ``nb-iot``: 25 kbit/s down, 60 up, 1.6 s round trip: what release 13 (category NB1, multi-tone) sustains
- ``satellite``: geostationary: 279 ms each way (RFC 2488, section 2) and 30 ms of ground; 1 Mbit/s up
"""

from __future__ import annotations

from typing import Final

import msgspec

from waybill.errors import ConfigError


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network, as the Gilbert-Elliott model has it: phases of good and of bad reception follow each other by chance.

    ``delay_ms``, ``jitter_ms``: each way; the jitter is spread evenly and comes on top. ``up_kbit``, ``down_kbit``:
    rates, 0 for none to notice. ``good_s``, ``bad_s``: how long a phase lasts on average; ``bad_s = 0``: there is no
    bad one. ``loss_good``, ``loss_bad``: the share of packets that is lost in it, 0 to 1.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    up_kbit: float = 0.0
    down_kbit: float = 0.0
    good_s: float = 60.0
    bad_s: float = 0.0
    loss_good: float = 0.0
    loss_bad: float = 0.0

    def check(self, where: str) -> None:
        """Raise ConfigError where a figure cannot be; ``where`` names the table."""
        for field in ("delay_ms", "jitter_ms", "up_kbit", "down_kbit", "bad_s"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise ConfigError(f"{where} {field}: {getattr(self, field):g}: 0 or more")
        if self.good_s <= 0:
            raise ConfigError(f"{where} good_s: {self.good_s:g}: more than 0")
        for field in ("loss_good", "loss_bad"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{where} {field}: {getattr(self, field):g}: a share, from 0 to 1")

    @property
    def loss(self) -> float:
        """The share of packets that is lost in the long run."""
        return (self.good_s * self.loss_good + self.bad_s * self.loss_bad) / (self.good_s + self.bad_s)


PROFILES: Final[dict[str, Model]] = {
    "ethernet": Model(),
    "lte": Model(35, 10, 12_000, 12_000, good_s=30, bad_s=1, loss_good=0.001, loss_bad=0.2),
    "3g": Model(75, 30, 750, 1_600, good_s=20, bad_s=2, loss_good=0.005, loss_bad=0.3),
    "2g": Model(400, 100, 256, 280, good_s=15, bad_s=3, loss_good=0.01, loss_bad=0.4),
    "nb-iot": Model(800, 400, 60, 25, good_s=30, bad_s=3, loss_good=0.01, loss_bad=0.3),
    "satellite": Model(309, 20, 1_000, 10_000, good_s=120, bad_s=2, loss_good=0.002, loss_bad=0.5),
}
"""The built-in networks, by name."""
