"""Why an artifact is large, and what a speedup depends on."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_qat.diagnosis.costs import causes_of_size, causes_of_speed
from pytest_qat.findings import Finding
from pytest_qat.measure.coverage import Coverage
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


def stored(name: str, size_bytes: int, *, dtype: str = "float32", shape: tuple[int, ...] | None = None,
           qparams: bool = False, digest: str = "") -> StoredTensor:
    return StoredTensor(name=name, dtype=dtype, shape=shape or (10, size_bytes // 10), size_bytes=size_bytes,
                        qparams=qparams, digest=digest)


def artifact(*tensors: StoredTensor, total_bytes: int) -> SizeCensus:
    return census_of(tensors, total_bytes=total_bytes)


def test_float_weights_in_an_artifact_that_is_small_enough_are_a_note() -> None:
    int8 = artifact(weight("emb.weight"), weight("head.weight", size_bytes=200), total_bytes=1000)
    [finding] = causes_of_size(int8, allowed_bytes=1000)
    assert (finding.code, finding.severity, finding.evidence) == ("float-weights-left", "note", {"bytes": 600})
    for part in ("60.0%", "emb.weight (float32, 400 bytes)", "head.weight (float32, 200 bytes)"):
        assert part in finding.message


def test_of_many_float_weights_the_first_five_are_named_and_the_others_counted() -> None:
    int8 = artifact(*(weight(f"w{index}") for index in range(8)), total_bytes=4000)
    for finding in (*causes_of_size(int8, allowed_bytes=4000), *causes_of_size(int8, allowed_bytes=900)):
        assert finding.code == "float-weights-left"
        assert "w4 (float32, 400 bytes) and 3 more" in finding.message
        assert "w5" not in finding.message
        assert finding.evidence["bytes"] == 3200


@pytest.mark.parametrize("int8", [
    artifact(total_bytes=1000), artifact(weight("small", size_bytes=40), total_bytes=1000),
    artifact(stored("w", 900, dtype="qint8"), total_bytes=1000)])
def test_an_artifact_that_is_small_enough_without_large_float_weights_gives_no_findings(int8: SizeCensus) -> None:
    assert causes_of_size(int8, allowed_bytes=1000) == ()


@pytest.mark.parametrize(("tensors", "total", "allowed", "code", "share"), [
    ([stored("w", 300, dtype="int8"), stored("b", 100, shape=(25,))], 2000, 1000, "size-structure", 0.8),
    ([stored("w", 300, dtype="int8"), stored("w.scale", 600, qparams=True)], 1000, 500, "size-qparams", 0.6),
    ([stored("w", 300, dtype="int8"), stored("head.weight", 600)], 1000, 500, "float-weights-left", 0.6),
    ([stored("w", 300, dtype="int8"), stored("old.weight", 600)], 1000, 500, "size-dead-weights", 0.6),
    ([stored("w", 450, dtype="int8", digest="a"), stored("v", 450, dtype="int8", digest="a")], 1000, 600,
     "size-duplicates", 0.45),
    ([stored("w", 900, dtype="int8")], 1000, 500, "size-int8-weights", 0.9),
    ([stored("data 0c", 700, dtype="bytes", shape=(700,))], 1000, 500, "size-unnamed-data", 0.7),
])
def test_an_artifact_that_is_too_large_names_the_kind_of_bytes_to_blame(
        tensors: list[StoredTensor], total: int, allowed: int, code: str, share: float) -> None:
    [finding] = causes_of_size(artifact(*tensors, total_bytes=total), allowed_bytes=allowed, dead=["old."])
    assert (finding.code, finding.severity) == (code, "error")
    assert finding.evidence["share"] == pytest.approx(share)
    assert sum(finding.evidence["by_kind"].values()) == total
    assert bool(finding.remedy) is (code in ("size-dead-weights", "size-int8-weights"))


KINDS = st.sampled_from(["int8", "float32", "bytes"])
STORED = st.builds(lambda size, dtype, qparams, digest: stored("x.weight", size, dtype=dtype, qparams=qparams,
                                                               digest=digest),
                   st.integers(1, 10**9), KINDS, st.booleans(), st.sampled_from(["", "a", "b"]))


@STABLE
@given(st.lists(STORED, max_size=6), st.integers(1, 10**9), st.floats(0, 10**9), st.sampled_from([(), ("x.",)]))
def test_the_shares_of_an_artifact_add_up_to_all_of_it(tensors: list[StoredTensor], total: int, allowed: float,
                                                      dead: tuple[str, ...]) -> None:
    for finding in causes_of_size(artifact(*tensors, total_bytes=total), allowed_bytes=allowed, dead=dead):
        json.dumps(finding.as_dict(), allow_nan=False)
        if finding.severity == "error":
            shares = [float(text) for text in re.findall(r"(?<![<\d.])(\d+\.\d)%", finding.message)]
            assert sum(shares) == pytest.approx(100)
            assert 0 <= finding.evidence["share"] <= 1


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
    assert not finding.remedy, "another batch size would only make it worse"


def test_a_failure_that_another_batch_would_pass_is_told_too() -> None:
    sweep = [at(1, 0.8, 0.9), at(8, 1.2, 1.4)]
    [finding] = causes_of_speed(speed(speedup(0.8, 0.9), *sweep, samples=1), 1.0)
    assert finding.code == "verdict-depends-on-batch"
    assert "example_inputs" in finding.remedy


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


# -- why int8 is slow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("macs", "int8_macs", "low", "high", "expected"), [
    (10_000, 10_000, 0.8, 0.9, ["few-multiplications"]), (10**8, 10**7, 0.8, 0.9, ["mostly-float"]),
    (10**8, 9 * 10**7, 0.8, 0.9, ["no-speed-cause"]), (10**8, None, 0.8, 0.9, ["no-speed-cause"]),
    (10_000, 0, 1.2, 1.4, []), (10_000, 0, 0.8, 1.2, []),
])
def test_a_slow_model_s_cause_is_named_only_where_the_figures_separate_it(
        macs: int, int8_macs: int | None, low: float, high: float, expected: list[str]) -> None:
    covered = Coverage(weights=1, int8_weights=1, macs=macs, int8_macs=int8_macs, int8_modules=1, leftovers=())
    assert codes(causes_of_speed(speed(speedup(low, high), samples=1), 1.0, covered)) == expected
