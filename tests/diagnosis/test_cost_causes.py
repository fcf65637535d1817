"""Why an artifact is large, and what a speedup depends on."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.diagnosis.costs import causes_of_size, causes_of_speed
from pytest_qat.findings import Finding
from pytest_qat.measure.latency import Latency, Speedup
from pytest_qat.measure.size import SizeCensus, census_of
from pytest_qat.measure.speed import BatchSpeed, Speed
from pytest_qat.runtimes.base import StoredTensor
from tests.verdict_laws import FRACTION, STABLE


def codes(found: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in found]


# -- size -----------------------------------------------------------------------------------------------------------


def weight(name: str, *, size_bytes: int = 400) -> StoredTensor:
    return StoredTensor(name=name, dtype="float32", shape=(10, size_bytes // 40), size_bytes=size_bytes)


def artifact(*tensors: StoredTensor, total_bytes: int) -> SizeCensus:
    return census_of(tensors, total_bytes=total_bytes)


@pytest.mark.parametrize(("enough", "severity"), [(True, "note"), (False, "error")])
def test_float_weights_left_in_the_artifact_are_the_error_only_where_it_is_too_large(enough: bool,
                                                                                     severity: str) -> None:
    int8 = artifact(weight("emb.weight"), weight("head.weight", size_bytes=200), total_bytes=1000)
    [finding] = causes_of_size(int8, enough=enough)
    assert (finding.code, finding.severity, finding.evidence) == ("float-weights-left", severity, {"bytes": 600})
    for part in ("60%", "emb.weight (float32, 400 bytes)", "head.weight (float32, 200 bytes)"):
        assert part in finding.message
    assert finding.remedy


def test_of_many_float_weights_the_first_five_are_named_and_the_others_counted() -> None:
    [finding] = causes_of_size(artifact(*(weight(f"w{index}") for index in range(8)), total_bytes=4000), enough=True)
    assert "w4 (float32, 400 bytes) and 3 more." in finding.message
    assert "w5" not in finding.message
    assert finding.evidence == {"bytes": 3200}


def test_five_float_weights_leave_nothing_to_count() -> None:
    [finding] = causes_of_size(artifact(*(weight(f"w{index}") for index in range(5)), total_bytes=4000), enough=True)
    assert finding.message.endswith("w4 (float32, 400 bytes).")


@pytest.mark.parametrize("int8", [
    artifact(total_bytes=1000), artifact(weight("small", size_bytes=40), total_bytes=1000),
    artifact(StoredTensor(name="w", dtype="qint8", shape=(10, 90), size_bytes=900), total_bytes=1000)])
def test_an_artifact_without_large_float_weights_gives_no_findings(int8: SizeCensus) -> None:
    assert causes_of_size(int8, enough=False) == ()


# -- speed by batch size --------------------------------------------------------------------------------------------


def speedup(low: float, high: float) -> Speedup:
    side = Latency(p50=0.001, p90=0.001, p99=0.001)
    return Speedup(estimate=(low + min(high, 10)) / 2, ci=(low, high), pairs=20, confidence=0.95, baseline=side,
                   candidate=side, elapsed_s=3)


def at(batch: int, low: float, high: float, *, overhead: float | None = None) -> BatchSpeed:
    return BatchSpeed(batch=batch, speedup=speedup(low, high), overhead=overhead)


def speed(main: Speedup, *batches: BatchSpeed, samples: int) -> Speed:
    return Speed(like_for_like=main, over_eager=None, noise=None, layouts={}, samples=samples, batches=batches,
                 energy=None, energy_note=None)


@pytest.mark.parametrize(("sweep", "expected"), [
    ([], []),
    ([at(1, 1.2, 1.4), at(8, 1.5, 1.6)], []),
    ([at(1, 0.8, 0.9), at(8, 1.2, 1.4)], ["verdict-depends-on-batch"]),
    ([at(1, 0.8, 1.1), at(8, 1.2, 1.4)], []),
    ([at(1, 1.2, 1.4, overhead=0.5), at(8, 1.2, 1.4, overhead=0.1)], []),
    ([at(1, 1.2, 1.4, overhead=0.51), at(8, 1.2, 1.4, overhead=0.1)], ["overhead-bound"]),
    ([at(1, 0.8, 0.9, overhead=0.9), at(8, 1.2, 1.4)], ["overhead-bound", "verdict-depends-on-batch"]),
    ([BatchSpeed(batch=1, speedup=None, problem="RuntimeError: no"), at(8, 1.2, 1.4)], []),
])
def test_batches_give_findings_only_where_there_is_something_to_see(sweep: list[BatchSpeed],
                                                                    expected: list[str]) -> None:
    assert codes(causes_of_speed(speed(speedup(1.2, 1.4), *sweep, samples=8), 1.0)) == expected


def test_a_verdict_that_depends_on_the_batch_is_told_with_the_other_batches() -> None:
    sweep = [at(1, 0.8, 0.9), at(2, 0.9, 1.1), at(4, 0.9, 0.95), at(8, 1.2, 1.4), at(16, 1.4, 1.6)]
    [finding] = causes_of_speed(speed(speedup(1.2, 1.4), *sweep, samples=8), 1.0)
    assert finding.severity == "warning"
    for part in ("batch 8", "1.30x", "0.85x at batch 1, 0.93x at batch 4."):
        assert part in finding.message
    assert "batch 2" not in finding.message
    assert "example_inputs" in finding.remedy


def test_a_failure_that_another_batch_would_pass_is_told_too() -> None:
    sweep = [at(1, 0.8, 0.9), at(8, 1.2, 1.4)]
    assert codes(causes_of_speed(speed(speedup(0.8, 0.9), *sweep, samples=1), 1.0)) == ["verdict-depends-on-batch"]


def test_an_unclear_speed_depends_on_nothing_yet() -> None:
    sweep = [at(1, 0.8, 0.9), at(8, 0.9, 1.4)]
    assert causes_of_speed(speed(speedup(0.9, 1.4), *sweep, samples=8), 1.0) == ()


def test_the_floor_decides_whether_a_batch_is_fast_enough() -> None:
    sweep = [at(1, 1.2, 1.4), at(8, 2.0, 2.2)]
    found = [codes(causes_of_speed(speed(speedup(2.0, 2.2), *sweep, samples=8), floor)) for floor in (1.0, 1.5)]
    assert found == [[], ["verdict-depends-on-batch"]]


def test_calls_bound_by_overhead_are_told_by_batch() -> None:
    sweep = [at(1, 1.2, 1.4, overhead=0.93), at(2, 1.2, 1.4, overhead=0.86), at(64, 1.2, 1.4, overhead=0.2)]
    [finding] = causes_of_speed(speed(speedup(1.2, 1.4), *sweep, samples=1), 1.0)
    assert (finding.code, finding.severity) == ("overhead-bound", "note")
    assert "(93% at batch 1, 86% at batch 2)" in finding.message
    assert finding.evidence == {"1": 0.93, "2": 0.86}


RATIOS = st.tuples(st.floats(0, 1000), st.floats(0, 1000) | st.just(math.inf)).map(lambda ends: speedup(*sorted(ends)))
SWEEPS = st.lists(st.builds(BatchSpeed, batch=st.integers(1, 64), speedup=st.none() | RATIOS,
                            overhead=st.none() | FRACTION), max_size=4, unique_by=lambda entry: entry.batch)


@STABLE
@given(RATIOS, SWEEPS, st.floats(0, 10), st.integers(1, 64))
def test_every_cause_is_a_sentence_and_plain_json(main: Speedup, batches: list[BatchSpeed], floor: float,
                                                  samples: int) -> None:
    found = causes_of_speed(speed(main, *batches, samples=samples), floor)
    assert all(finding.message.endswith(".") for finding in found)
    json.dumps([finding.as_dict() for finding in found], allow_nan=False)
