"""Energy of a call, from the machine's own counters (Linux powercap, RAPL), or the reason why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NO_COUNTER", "EnergyCounter", "find_counters", "joules_per_call"]

NO_COUNTER = "no counter on this machine"
_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyCounter:
    """One counter of microjoules that wraps around at `range_uj`."""

    path: Path
    range_uj: int

    def read_uj(self) -> int:
        """Return the counter's present value in microjoules."""
        return int(self.path.read_text())


def find_counters(root: Path = _POWERCAP) -> tuple[EnergyCounter, ...]:
    """Return the readable counters of whole CPU packages and of DRAM under a powercap tree."""
    counters = []
    for folder in sorted(root.glob("intel-rapl:*")) if root.is_dir() else ():
        try:
            name = (folder / "name").read_text().strip()
            counter = EnergyCounter(path=folder / "energy_uj",
                                    range_uj=int((folder / "max_energy_range_uj").read_text()))
            counter.read_uj()
        except (OSError, ValueError):
            continue  # absent, or readable by root only
        if counter.range_uj > 0 and (name.startswith("package") or name == "dram"):
            counters.append(counter)
    return tuple(counters)


def joules_per_call(call: Callable[[], object], counters: Sequence[EnergyCounter], *, seconds: float,
                    clock: Callable[[], float] = time.perf_counter) -> float:
    """Run `call` for about `seconds` and return the energy of one call in joules, everything on the package counted."""
    before = [counter.read_uj() for counter in counters]
    calls, end = 0, clock() + seconds
    while calls == 0 or clock() < end:
        call()
        calls += 1
    used = sum((counter.read_uj() - start) % counter.range_uj for counter, start in zip(counters, before, strict=True))
    return used / 1e6 / calls
