"""What a simulated vehicle costs: µs of one core a message, driving and encoding, and bytes a message.

A thousand vehicles take turns, second by second, as they do in a run; so what is measured does not sit in a cache.
"""

from __future__ import annotations

import time

import pytest

from fleet_simulator.vehicles import PROFILES, TELEMETRY, Profile, Vehicle

pytestmark = pytest.mark.bench

NOW = 1_700_000_000_000
VEHICLES, SECONDS = 1000, 60


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda one: one.name)
def test_messages(profile: Profile) -> None:
    fleet = [Vehicle(f"V{number}", profile, period=1.0) for number in range(VEHICLES)]
    messages = size = 0
    began = time.process_time()
    for second in range(1, SECONDS + 1):
        for vehicle in fleet:
            for said in vehicle.step(NOW + 1000 * second, 1.0):
                if said.stream == TELEMETRY:
                    messages += 1
                    size += len(said.payload)
    took = time.process_time() - began
    assert messages == VEHICLES * SECONDS
    print(f"\n{profile.name:8} {1e6 * took / messages:5.1f} µs, {size / messages:4.0f} bytes a message")
