"""What a simulated device reads at a moment: a pure function of the device, the seed and the time.

Load swings around a mean as in a training job; power follows load, temperature follows power some seconds
later, and energy is the exact integral of power, so that it fits power and never goes back.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from simulation.machine import SimulatedDevice

IDLE_WATTS = 72.0
LOAD_SHARE = 0.92
"""Share of the room between idle and the limit that a device at full load uses."""
MEAN_LOAD = 0.78
WAVES = ((0.13, 47.0), (0.06, 11.0))
"""(amplitude, period in seconds) of the load's swing: it stays between 0.59 and 0.97."""
THERMAL_LAG_SECONDS = 6.0
AMBIENT_CELSIUS = 26.0
CELSIUS_PER_WATT = 0.065
MEMORY_CELSIUS_ABOVE_GPU = 9.0
MAX_SM_CLOCK_HERTZ = 1_980e6


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """The readings that evolve."""

    utilization_ratio: float
    memory_utilization_ratio: float
    memory_used_bytes: int
    temperature_celsius: float
    memory_temperature_celsius: float
    power_watts: float
    energy_joules: float
    sm_clock_hertz: float


def readings_at(device: SimulatedDevice, *, seed: int, since: float, now: float) -> Readings:
    """The device at `now`; `since` is when its `energy_joules` was settled, both in seconds of one clock."""
    load = _load(device, seed, now)
    temperature = _pinned(
        device.temperature_celsius,
        AMBIENT_CELSIUS + CELSIUS_PER_WATT * _power(device, seed, now - THERMAL_LAG_SECONDS),
    )
    usable = device.memory_total_bytes - device.memory_reserved_bytes
    return Readings(
        utilization_ratio=load,
        memory_utilization_ratio=_pinned(device.memory_utilization_ratio, 0.6 * load),
        memory_used_bytes=int(_pinned(device.memory_used_bytes, 0.9 * usable if load > 0 else 0)),
        temperature_celsius=temperature,
        memory_temperature_celsius=_pinned(
            device.memory_temperature_celsius, temperature + MEMORY_CELSIUS_ABOVE_GPU
        ),
        power_watts=_power(device, seed, now),
        energy_joules=energy_at(device, seed=seed, since=since, now=now),
        sm_clock_hertz=_pinned(device.sm_clock_hertz, MAX_SM_CLOCK_HERTZ - 15e6 * round(12 * load)),
    )


def energy_at(device: SimulatedDevice, *, seed: int, since: float, now: float) -> float:
    """Joules consumed by `now`. A clock that went back (another boot) adds nothing."""
    elapsed = max(0.0, now - since)
    if device.power_watts is not None:
        return device.energy_joules + device.power_watts * elapsed
    if device.utilization_ratio is not None:
        load_seconds = device.utilization_ratio * elapsed
    else:
        load_seconds = MEAN_LOAD * elapsed + sum(
            amplitude / frequency * (math.cos(frequency * since + phase) - math.cos(frequency * now + phase))
            for amplitude, frequency, phase in _waves(device, seed)
            if elapsed
        )
    return device.energy_joules + IDLE_WATTS * elapsed + _watts_of_load(device) * load_seconds


def _load(device: SimulatedDevice, seed: int, now: float) -> float:
    if device.utilization_ratio is not None:
        return device.utilization_ratio
    return MEAN_LOAD + sum(
        amplitude * math.sin(frequency * now + phase) for amplitude, frequency, phase in _waves(device, seed)
    )


def _power(device: SimulatedDevice, seed: int, now: float) -> float:
    return _pinned(device.power_watts, IDLE_WATTS + _watts_of_load(device) * _load(device, seed, now))


def _watts_of_load(device: SimulatedDevice) -> float:
    return LOAD_SHARE * max(0.0, device.power_limit_watts - IDLE_WATTS)


def _waves(device: SimulatedDevice, seed: int) -> list[tuple[float, float, float]]:
    """(amplitude, radians per second, phase); each device has phases of its own."""
    phase = zlib.crc32(f"{seed}/{device.uuid}".encode()) / 2**32 * math.tau
    return [
        (amplitude, math.tau / period, phase * number) for number, (amplitude, period) in enumerate(WAVES, 1)
    ]


def _pinned(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
