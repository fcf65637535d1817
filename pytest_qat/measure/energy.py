"""Energy of a call from the machine's own counters, or the reason why it cannot be measured; never an estimate.

The counters (RAPL for CPU packages and DRAM, NVML for GPUs) are read through zeus, which handles wrap-around and
containers and offers a daemon for unprivileged users. codecarbon is not used because it guesses the power where there
is no counter, nor is pynvml because it only sees GPUs. zeus loads slowly, so it is imported only on machines that have
counters.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["NO_COUNTER", "Energy", "EnergyMeter", "find_meter", "measure_energy"]

NO_COUNTER = "no counter on this machine"
NO_READER = "the package that reads the energy counters is missing: pip install 'pytest-qat[energy]'"
NO_PERMISSION = "only root may read the energy counters of this machine (or zeusd, see https://ml.energy/zeus)"
NOT_MOVING = "the energy counters did not advance, or wrapped around, during the measurement"

_PLACES = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))
_DAEMON = ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT")
_MOST_WATTS = 2e4
_WINDOWS = ("fp32", "int8", "int8", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Energy of one sample.

    Attributes:
        joules: Package and DRAM together, which is where every model here runs, in joules per sample, by side. It
            includes whatever else the machine did at the same time, on both sides.
        domains: The parts by side: `package`, `dram`, and `gpu` (which `joules` does not include).
    """

    joules: dict[str, float]
    domains: dict[str, dict[str, float]]


class EnergyMeter:
    """Measures the energy that the machine uses during a piece of work.

    Args:
        monitor: A `zeus.monitor.ZeusMonitor`.
    """

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def joules(self, work: Callable[[], object]) -> dict[str, float]:
        """Do the work and return the energy that each domain used during it, in joules."""
        self._monitor.begin_window("qat", sync_execution=False, restart=True)
        work()
        used = self._monitor.end_window("qat", sync_execution=False)
        parts = {"package": used.cpu_energy, "dram": used.dram_energy, "gpu": used.gpu_energy}
        return {name: float(sum(energies.values())) for name, energies in parts.items() if energies}


def find_meter(places: tuple[Path, ...] = _PLACES) -> tuple[EnergyMeter | None, str]:
    """Return a meter of this machine's counters, or None and the reason."""
    packages = [int(zone.name.split(":")[1]) for place in places for zone in sorted(place.glob("intel-rapl:[0-9]*"))
                if _name(zone).startswith("package")]  # psys would count packages twice
    daemon = any(name in os.environ for name in _DAEMON)
    if not packages and not daemon:
        return None, NO_COUNTER
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None, NO_READER
    try:
        monitor = ZeusMonitor()
    except Exception as error:  # drivers and daemons can raise anything, and the report must survive that
        return None, f"reading the energy counters failed: {error}"
    if not daemon:
        monitor.cpu_indices = [index for index in monitor.cpu_indices if index in packages]
    return (EnergyMeter(monitor), "") if monitor.cpu_indices else (None, NO_PERMISSION)


def measure_energy(meter: EnergyMeter, calls: Mapping[str, Callable[[], object]], *, samples: int, seconds: float,
                   settle_s: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> Energy | None:
    """Measure both sides in ABBA order.

    Args:
        meter: The counters.
        calls: One call of `fp32` and of `int8`.
        samples: Number of samples in a call.
        seconds: Length of each of the four windows.
        settle_s: Length of a first window that does not count, because the reader starts its own processes when it
            reads for the first time.
        clock: Returns seconds.

    Returns:
        The energy of a sample; None if a counter did not advance, or advanced by more than any machine can draw,
        which happens when it wraps around.
    """
    if settle_s > 0:
        meter.joules(_Repeated(calls["fp32"], settle_s, clock))
    used: dict[str, dict[str, float]] = {"fp32": {}, "int8": {}}
    count = {"fp32": 0, "int8": 0}
    for side in _WINDOWS:
        made = _Repeated(calls[side], seconds, clock)
        began = clock()
        window = meter.joules(made)
        if max(window.values(), default=0.0) > _MOST_WATTS * max(clock() - began, 1.0):
            return None
        for name, joules in window.items():
            used[side][name] = used[side].get(name, 0.0) + joules
        count[side] += made.calls
    domains = {side: {name: joules / count[side] / samples for name, joules in parts.items()}
               for side, parts in used.items()}
    if any(parts.get("package", 0) <= 0 or parts.get("dram", 1) < 0 for parts in domains.values()):
        return None
    return Energy(domains=domains, joules={
        side: parts["package"] + parts.get("dram", 0.0) for side, parts in domains.items()})


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


class _Repeated:
    """Repeats a call for a given time and counts the calls."""

    def __init__(self, call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> None:
        self._call, self._seconds, self._clock = call, seconds, clock
        self.calls = 0

    def __call__(self) -> None:
        end = self._clock() + self._seconds
        while self.calls == 0 or self._clock() < end:
            self._call()
            self.calls += 1
