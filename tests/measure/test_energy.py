"""Energy counters: the real reader, zeus, on a made-up powercap tree, and a scripted clock."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_qat.measure import energy
from pytest_qat.measure.energy import NO_COUNTER, NO_PERMISSION, NO_READER, EnergyMeter, find_meter, measure_energy

RANGE = 262_143_328_850


class Tree:
    """A powercap tree as sysfs shows it, which zeus takes for this machine's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wraps: dict[str, int] = {}
        root.mkdir()

    def add(self, folder: str, name: str, *, energy_uj: int = 1000) -> Path:
        """Add a zone and return the file of its counter."""
        zone = self.root / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
        return zone / "energy_uj"

    def meter(self) -> EnergyMeter:
        """Return the meter that is found on this machine."""
        found, reason = find_meter((self.root,))
        assert found is not None, reason
        assert reason == ""
        return found


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    pytest.importorskip("zeus", reason="needs the extra energy")
    from zeus.device import cpu
    from zeus.device.cpu import rapl

    made = Tree(tmp_path / "intel-rapl")

    class Tracker:
        """Counts wrap-arounds, as zeus' own does in a process that would outlive the test."""

        def __init__(self, path: str, max_energy_uj: float) -> None:
            assert max_energy_uj == RANGE
            self.path = path

        def get_num_wraparounds(self) -> int:
            return made.wraps.get(self.path, 0)

    monkeypatch.setattr(rapl, "RAPL_DIR", str(made.root))
    monkeypatch.setattr(rapl, "CONTAINER_RAPL_DIR", str(tmp_path / "absent"))
    monkeypatch.setattr(rapl, "RaplWraparoundTracker", Tracker)
    monkeypatch.setattr(cpu, "_cpus", None)
    for name in ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT"):
        monkeypatch.delenv(name, raising=False)
    rapl.rapl_is_available.cache_clear()
    yield made
    rapl.rapl_is_available.cache_clear()


def drawing(**microjoules: tuple[Path, int]) -> Callable[[], None]:
    """A call that moves counters on."""
    def call() -> None:
        for path, amount in microjoules.values():
            path.write_text(str(int(path.read_text()) + amount))
    return call


def ticking(step: float) -> Callable[[], float]:
    """A clock that moves on by `step` seconds whenever it is read."""
    now = -step

    def clock() -> float:
        nonlocal now
        now += step
        return now
    return clock


def monitor_of(**domains: dict[int, float] | None) -> Any:
    """A monitor in which every window uses the same energy."""
    used = {"cpu_energy": None, "dram_energy": None, "gpu_energy": {}, **domains}
    return SimpleNamespace(begin_window=lambda *args, **kwargs: None,
                           end_window=lambda *args, **kwargs: SimpleNamespace(**used))


# -- what is counted ------------------------------------------------------------------------------------------------


def test_the_energy_of_a_sample_is_the_counter_s_advance_over_calls_and_samples(tree: Tree) -> None:
    package = tree.add("intel-rapl:0", "package-0")
    found = measure_energy(tree.meter(), {"fp32": drawing(package=(package, 2_500_000)),
                                          "int8": drawing(package=(package, 1_000_000))},
                           samples=4, seconds=10, clock=ticking(1))
    assert found is not None
    assert found.joules == pytest.approx({"fp32": 2.5 / 4, "int8": 1.0 / 4}, rel=1e-9)
    assert found.domains == {side: {"package": found.joules[side]} for side in ("fp32", "int8")}


def test_memory_inside_a_package_s_zone_is_counted_on_its_own_and_added(tree: Tree) -> None:
    package = tree.add("intel-rapl:0", "package-0")
    memory = tree.add("intel-rapl:0/intel-rapl:0:0", "dram")
    calls = {"fp32": drawing(package=(package, 4_000_000), memory=(memory, 600_000)),
             "int8": drawing(package=(package, 3_000_000), memory=(memory, 200_000))}
    found = measure_energy(tree.meter(), calls, samples=2, seconds=5, clock=ticking(1))
    assert found is not None
    assert found.joules == pytest.approx({"fp32": 2.3, "int8": 1.6}, rel=1e-9)
    assert found.domains["fp32"] == pytest.approx({"package": 2.0, "dram": 0.3}, rel=1e-9)
    assert found.domains["int8"] == pytest.approx({"package": 1.5, "dram": 0.1}, rel=1e-9)


def test_the_platform_s_zone_is_not_added_to_the_packages_it_contains(tree: Tree) -> None:
    package, platform = tree.add("intel-rapl:0", "package-0"), tree.add("intel-rapl:1", "psys")
    call = drawing(a=(package, 1_000_000), b=(platform, 3_000_000))
    found = measure_energy(tree.meter(), {"fp32": call, "int8": call}, samples=1, seconds=3, clock=ticking(1))
    assert found is not None
    assert found.joules == pytest.approx({"fp32": 1.0, "int8": 1.0}, rel=1e-9)


def test_all_packages_of_a_machine_add_up(tree: Tree) -> None:
    packages = [tree.add(f"intel-rapl:{index}", f"package-{index}") for index in range(2)]
    memory = [tree.add(f"intel-rapl:{index}/intel-rapl:{index}:0", "dram") for index in range(2)]
    call = drawing(a=(packages[0], 1_000_000), b=(packages[1], 500_000), c=(memory[0], 100_000), d=(memory[1], 50_000))
    found = measure_energy(tree.meter(), {"fp32": call, "int8": call}, samples=1, seconds=3, clock=ticking(1))
    assert found is not None
    assert found.domains["fp32"] == pytest.approx({"package": 1.5, "dram": 0.15}, rel=1e-9)
    assert found.joules == pytest.approx({"fp32": 1.65, "int8": 1.65}, rel=1e-9)


@pytest.mark.parametrize("name", ["core", "uncore"])
def test_what_is_part_of_a_package_is_not_counted_again(tree: Tree, name: str) -> None:
    package = tree.add("intel-rapl:0", "package-0")
    part = tree.add("intel-rapl:0/intel-rapl:0:0", name)
    call = drawing(package=(package, 1_000_000), part=(part, 900_000))
    found = measure_energy(tree.meter(), {"fp32": call, "int8": call}, samples=1, seconds=3, clock=ticking(1))
    assert found is not None
    assert found.domains == {side: {"package": pytest.approx(1.0)} for side in ("fp32", "int8")}


def test_what_the_machine_used_before_is_no_part_of_a_window(tree: Tree) -> None:
    package = tree.add("intel-rapl:0", "package-0", energy_uj=10**9)
    meter = tree.meter()
    for joules in (2.0, 3.0):
        package.write_text(str(int(package.read_text()) + 77_000_000))
        assert meter.joules(drawing(package=(package, int(joules * 1e6)))) == {"package": pytest.approx(joules)}


def test_a_counter_that_wraps_around_goes_on_from_zero(tree: Tree) -> None:
    package = tree.add("intel-rapl:0", "package-0", energy_uj=RANGE - 1_000_000)

    def wrap() -> None:
        package.write_text("1500000")
        tree.wraps[str(package)] = 1

    assert tree.meter().joules(wrap) == {"package": pytest.approx(2.5)}


def test_a_graphics_card_is_told_and_is_no_part_of_the_sum() -> None:
    meter = EnergyMeter(monitor_of(cpu_energy={0: 3.0, 1: 1.0}, dram_energy={0: 0.5}, gpu_energy={0: 50.0}))
    found = measure_energy(meter, {"fp32": int, "int8": int}, samples=2, seconds=0, clock=ticking(1))
    assert found is not None
    assert found.joules == {"fp32": 2.25, "int8": 2.25}
    assert found.domains["fp32"] == {"package": 2.0, "dram": 0.25, "gpu": 25.0}


# -- how it is counted ----------------------------------------------------------------------------------------------


def test_both_sides_take_turns_in_abba_order_with_two_windows_each() -> None:
    log: list[str] = []
    monitor = SimpleNamespace(
        begin_window=lambda *args, **kwargs: log.append("["),
        end_window=lambda *args, **kwargs: (
            log.append("]"), SimpleNamespace(cpu_energy={0: 1.0}, dram_energy=None, gpu_energy={}))[1])
    calls = {side: lambda side=side: log.append(side) for side in ("fp32", "int8")}
    measure_energy(EnergyMeter(monitor), calls, samples=1, seconds=0, clock=ticking(1))
    assert log == ["[", "fp32", "]", "[", "int8", "]", "[", "int8", "]", "[", "fp32", "]"]


@pytest.mark.parametrize(("seconds", "step", "calls"), [(10, 1, 10), (10, 4, 3), (1, 100, 1), (0, 1, 1)])
def test_calls_are_made_for_the_time_asked_and_at_least_once(seconds: float, step: float, calls: int) -> None:
    made: list[None] = []
    measure_energy(EnergyMeter(monitor_of(cpu_energy={0: 1.0})), {"fp32": lambda: made.append(None), "int8": int},
                   samples=1, seconds=seconds, clock=ticking(step))
    assert len(made) == 2 * calls


@pytest.mark.parametrize("advance", [0, -500_000])
def test_a_counter_that_stands_still_or_falls_back_gives_no_figure(tree: Tree, advance: int) -> None:
    package = tree.add("intel-rapl:0", "package-0", energy_uj=10**9)
    moving, still = drawing(package=(package, 1_000_000)), drawing(package=(package, advance))
    for calls in ({"fp32": still, "int8": moving}, {"fp32": moving, "int8": still}):
        assert measure_energy(tree.meter(), calls, samples=1, seconds=3, clock=ticking(1)) is None


@pytest.mark.parametrize(("advance", "counted"), [(-10, False), (0, True)])
def test_memory_may_rest_but_not_run_backwards(tree: Tree, advance: int, counted: bool) -> None:
    package = tree.add("intel-rapl:0", "package-0")
    memory = tree.add("intel-rapl:0/intel-rapl:0:0", "dram", energy_uj=10**9)
    call = drawing(package=(package, 1_000_000), memory=(memory, advance))
    found = measure_energy(tree.meter(), {"fp32": call, "int8": call}, samples=1, seconds=3, clock=ticking(1))
    assert (found is not None) is counted


# -- where there is nothing to count --------------------------------------------------------------------------------


def test_a_machine_without_counters_says_so_and_never_loads_the_reader(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from pytest_qat.measure.energy import find_meter
        found = find_meter((Path(sys.argv[1]),))
        print(found, sorted({name.split(".")[0] for name in sys.modules} & {"zeus", "torch"}))
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZEUSD")}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "absent")], env=environment,
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{(None, NO_COUNTER)} []"


def add_package(root: Path) -> None:
    (root / "intel-rapl:0").mkdir()
    (root / "intel-rapl:0" / "name").write_text("package-0\n")


def test_a_tree_without_zones_is_no_counter(tmp_path: Path) -> None:
    assert find_meter((tmp_path,)) == (None, NO_COUNTER)


def test_counters_without_their_reader_ask_for_it_to_be_installed(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    add_package(tmp_path)
    assert find_meter((tmp_path,)) == (None, NO_READER)
    assert "pip install 'pytest-qat[energy]'" in NO_READER


@pytest.mark.parametrize("name", ["ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT"])
def test_a_daemon_is_a_counter_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    monkeypatch.setenv(name, "somewhere")
    assert find_meter((tmp_path / "absent",)) == (None, NO_READER)


def test_any_of_the_usual_places_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    add_package(tmp_path)
    assert find_meter((tmp_path / "absent", tmp_path)) == (None, NO_READER)
    monkeypatch.setattr(energy, "_DAEMON", ())
    assert find_meter((tmp_path / "absent", tmp_path / "missing")) == (None, NO_COUNTER)


def test_counters_that_only_root_may_read_say_so(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeus.device.cpu import rapl

    tree.add("intel-rapl:0", "package-0")

    def refuse(path: Any, *arguments: Any) -> Any:
        if str(path).endswith("energy_uj"):
            raise PermissionError(path)
        return Path(path).open(*arguments)

    monkeypatch.setattr(rapl, "open", refuse, raising=False)
    assert find_meter((tree.root,)) == (None, NO_PERMISSION)
    assert "root" in NO_PERMISSION


def test_a_reader_that_fails_in_its_own_way_gives_its_reason(tree: Tree) -> None:
    tree.add("intel-rapl:0", "package-0").unlink()
    meter, reason = find_meter((tree.root,))
    assert meter is None
    assert "Error reading package energy" in reason


def test_what_the_reader_draws_while_it_starts_is_not_counted() -> None:
    monitor = monitor_of(cpu_energy={0: 2.0})
    made: list[str] = []
    found = measure_energy(EnergyMeter(monitor), {"fp32": lambda: made.append("fp32"), "int8": lambda: None},
                           samples=1, seconds=0, settle_s=3, clock=ticking(1))
    assert found is not None
    assert found.joules["fp32"] == 2.0
    assert len(made) > 2, "two windows count, and one before them does not"


def test_a_wrap_around_that_the_reader_takes_for_energy_gives_no_figure() -> None:
    meter = EnergyMeter(monitor_of(cpu_energy={0: 65_000.0}))
    assert measure_energy(meter, {"fp32": int, "int8": int}, samples=1, seconds=0, clock=ticking(1)) is None
