"""Energy counters, on a made-up powercap tree and a scripted clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_qat.measure.energy import NO_COUNTER, EnergyCounter, find_counters, joules_per_call

RANGE = 262_143_328_850


def add_zone(root: Path, folder: str, name: str | None, *, energy: str = "1000", span: str = str(RANGE)) -> Path:
    """Add a zone to a powercap tree, as sysfs shows it."""
    zone = root / folder
    zone.mkdir(parents=True)
    if name is not None:
        (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{energy}\n")
    (zone / "max_energy_range_uj").write_text(f"{span}\n")
    return zone / "energy_uj"


def drawing(path: Path, microjoules: int, *, span: int = RANGE) -> Callable[[], None]:
    """A call that moves a counter on, around its end if need be."""
    def call() -> None:
        path.write_text(str((int(path.read_text()) + microjoules) % span))
    return call


def ticking(step: float) -> Callable[[], float]:
    """A clock that moves on by `step` seconds whenever it is read."""
    now = -step

    def clock() -> float:
        nonlocal now
        now += step
        return now
    return clock


def test_packages_and_memory_are_counted_in_order(tmp_path: Path) -> None:
    second = add_zone(tmp_path, "intel-rapl:1", "package-1")
    first = add_zone(tmp_path, "intel-rapl:0", "package-0")
    memory = add_zone(tmp_path, "intel-rapl:0:1", "dram")
    counters = [EnergyCounter(path=path, range_uj=RANGE) for path in (first, memory, second)]
    assert list(find_counters(tmp_path)) == counters


@pytest.mark.parametrize(("folder", "name"), [
    ("intel-rapl:0:0", "core"), ("intel-rapl:0:2", "uncore"), ("intel-rapl:1", "psys"),
    ("intel-rapl-mmio:0", "package-0"), ("intel-rapl", "package-0"), ("dtpm", "package-0"),
])
def test_what_is_part_of_a_package_or_counts_it_again_is_left_out(tmp_path: Path, folder: str, name: str) -> None:
    add_zone(tmp_path, folder, name)
    assert find_counters(tmp_path) == ()


@pytest.mark.parametrize("broken", [{"name": None}, {"energy": ""}, {"energy": "n/a"}, {"span": "?"}])
def test_a_counter_that_cannot_be_read_is_passed_over(tmp_path: Path, broken: dict) -> None:
    add_zone(tmp_path, "intel-rapl:0", **{"name": "package-0", **broken})
    good = add_zone(tmp_path, "intel-rapl:1", "package-1")
    assert [counter.path for counter in find_counters(tmp_path)] == [good]


def test_a_counter_that_only_root_may_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = add_zone(tmp_path, "intel-rapl:0", "package-0")
    read = Path.read_text

    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        if self == path:
            raise PermissionError
        return read(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert find_counters(tmp_path) == ()


def test_a_counter_without_a_range_is_passed_over(tmp_path: Path) -> None:
    add_zone(tmp_path, "intel-rapl:0", "package-0", span="0")
    assert find_counters(tmp_path) == ()


def test_a_machine_without_powercap_has_no_counter(tmp_path: Path) -> None:
    assert find_counters(tmp_path / "absent") == ()
    assert NO_COUNTER == "no counter on this machine"


def test_the_energy_of_a_call_is_the_counter_s_advance_over_the_calls(tmp_path: Path) -> None:
    path = add_zone(tmp_path, "intel-rapl:0", "package-0")
    joules = joules_per_call(drawing(path, 2_500_000), find_counters(tmp_path), seconds=10, clock=ticking(1))
    assert joules == pytest.approx(2.5)


def test_the_counters_of_a_machine_add_up(tmp_path: Path) -> None:
    paths = [add_zone(tmp_path, f"intel-rapl:{index}", f"package-{index}") for index in range(2)]
    first, second = drawing(paths[0], 1_000_000), drawing(paths[1], 500_000)
    joules = joules_per_call(lambda: (first(), second()), find_counters(tmp_path), seconds=5, clock=ticking(1))
    assert joules == pytest.approx(1.5)


def test_a_counter_that_wraps_around_goes_on_from_zero(tmp_path: Path) -> None:
    path = add_zone(tmp_path, "intel-rapl:0", "package-0", energy=str(RANGE - 1_000_000))
    joules = joules_per_call(drawing(path, 800_000), find_counters(tmp_path), seconds=3, clock=ticking(1))
    assert int(path.read_text()) < RANGE - 1_000_000, "it did wrap"
    assert joules == pytest.approx(0.8)


@pytest.mark.parametrize(("seconds", "step", "calls"), [(10, 1, 9), (10, 4, 2), (1, 100, 1), (0, 1, 1)])
def test_calls_are_made_for_about_the_time_asked_and_at_least_once(tmp_path: Path, seconds: float, step: float,
                                                                   calls: int) -> None:
    made: list[None] = []
    joules_per_call(lambda: made.append(None), (), seconds=seconds, clock=ticking(step))
    assert len(made) == pytest.approx(calls, abs=1)
    assert made
