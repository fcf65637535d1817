"""From what was measured to the metrics of the record. Pure: it reads results and measures nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_qat.findings import json_number
from pytest_qat.record.schema import (
    AccuracyMetrics,
    BatchMetrics,
    CensusMetrics,
    CoverageMetrics,
    Metrics,
    ParityMetrics,
    PeakMemoryMetrics,
    Percentiles,
    RatioMetrics,
    SizeMetrics,
)

if TYPE_CHECKING:
    from pytest_qat.measure.accuracy import Accuracy
    from pytest_qat.measure.coverage import Coverage
    from pytest_qat.measure.latency import Latency, Speedup
    from pytest_qat.measure.memory import Memory
    from pytest_qat.measure.parity import Parity
    from pytest_qat.measure.size import SizeCensus
    from pytest_qat.measure.speed import BatchSpeed, Speed

__all__ = ["accuracy_metrics", "add_size", "add_speed", "coverage_metrics", "memory_metrics", "no_metrics",
           "parity_metrics"]

LARGEST_TENSORS = 20
"""Number of tensors that the record names for each artifact."""


def no_metrics() -> Metrics:
    """Return the metrics of a run in which nothing has been measured yet."""
    return {"accuracy": None, "latency_s": None, "throughput_per_s": None, "speedup": None, "speedup_over_eager": None,
            "size_bytes": None, "size_reduction": None, "coverage": None, "parity": None, "energy_j_per_sample": None,
            "throughput_per_w": None, "energy_domains_j": None, "energy_note": None, "peak_memory_bytes": None,
            "memory_note": None, "size_census": None, "latency_percentiles_s": None, "batches": None,
            "operations": None}


def accuracy_metrics(accuracy: Accuracy) -> AccuracyMetrics:
    """Return scores, drop and the samples that changed."""
    return {"fp32": accuracy.fp32, "int8": accuracy.int8, "ptq": accuracy.ptq, "fine_tuned": accuracy.fine_tuned,
            "drop": accuracy.drop, "drop_ci": [json_number(end) for end in accuracy.drop_ci],
            "relative_drop": json_number(accuracy.relative_drop), "p_value": accuracy.p_value,
            "ptq_p_value": accuracy.ptq_p_value, "fine_tuned_p_value": accuracy.fine_tuned_p_value,
            "samples": accuracy.samples,
            "provable_drop": json_number(accuracy.provable_drop), "kind": accuracy.kind,
            "metric": accuracy.metric, "higher_is_better": accuracy.higher_is_better,
            "resamples": None if accuracy.resampling is None else accuracy.resampling.count,
            "undefined_resamples": None if accuracy.resampling is None else accuracy.resampling.undefined,
            "is_fraction": accuracy.is_fraction, "sqnr_db": json_number(accuracy.sqnr_db), "flipped": accuracy.flipped,
            "flips": [{"index": flip.index, "target": json_number(flip.target), "before": flip.before,
                       "after": flip.after} for flip in accuracy.flips]}


def coverage_metrics(coverage: Coverage) -> CoverageMetrics:
    """Return the shares of multiply-accumulates and weights in int8."""
    return {"macs": coverage.macs, "int8_macs": coverage.int8_macs, "mac_share": coverage.mac_share,
            "weights": coverage.weights, "int8_weights": coverage.int8_weights,
            "weight_share": coverage.weight_share, "int8_modules": coverage.int8_modules}


def parity_metrics(parity: Parity) -> ParityMetrics:
    """Return how far the converted model agrees with the prepared one."""
    return {"sqnr_db": json_number(parity.sqnr_db), "finite": parity.finite,
            "quantization_sqnr_db": json_number(parity.quantization_sqnr_db)}


def memory_metrics(memory: Memory) -> PeakMemoryMetrics:
    """Return the peak of each side."""
    return {"fp32": memory.peak_bytes["fp32"], "int8": memory.peak_bytes["int8"], "idle": memory.idle_bytes}


def add_size(metrics: Metrics, *, fp32: SizeCensus, int8: SizeCensus) -> None:
    """Add the size of both artifacts and what their bytes are; the control has no artifact yet."""
    size: SizeMetrics = {"fp32": fp32.total_bytes, "int8": int8.total_bytes, "ptq": None}
    metrics["size_bytes"] = size
    metrics["size_reduction"] = fp32.total_bytes / int8.total_bytes
    metrics["size_census"] = {"fp32": _census(fp32), "int8": _census(int8)}


def add_speed(metrics: Metrics, speed: Speed) -> None:
    """Add everything that timing found: latencies, ratios, other batch sizes and energy; the control is not timed."""
    main, eager, energy, samples = speed.like_for_like, speed.over_eager, speed.energy, speed.samples
    fp32, int8, written = main.baseline, main.candidate, None if eager is None else eager.baseline
    metrics["latency_s"] = {"fp32": fp32.p50, "int8": int8.p50, "ptq": None,
                            "fp32_eager": None if written is None else written.p50}
    metrics["latency_percentiles_s"] = {"fp32": _percentiles(fp32), "int8": _percentiles(int8),
                                        "fp32_eager": None if written is None else _percentiles(written)}
    metrics["throughput_per_s"] = {"fp32": samples / fp32.p50, "int8": samples / int8.p50,
                                   "fp32_eager": None if written is None else samples / written.p50}
    metrics["speedup"] = {**_ratio(main), "noise_floor": json_number(speed.noise_floor), "layouts": speed.layouts,
                          "noise": None if speed.noise is None else _ratio(speed.noise)}
    metrics["speedup_over_eager"] = None if eager is None else _ratio(eager)
    metrics["batches"] = [_batch(entry) for entry in speed.batches] or None
    metrics["energy_j_per_sample"] = None if energy is None else energy.joules
    metrics["energy_domains_j"] = None if energy is None else energy.domains
    metrics["throughput_per_w"] = None if energy is None else {
        side: 1 / joules for side, joules in energy.joules.items()}
    metrics["energy_note"] = speed.energy_note


def _census(census: SizeCensus) -> CensusMetrics:
    return {"by_dtype": census.by_dtype, "container": census.container_bytes,
            "tensors": [{"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape),
                         "bytes": tensor.size_bytes} for tensor in census.tensors[:LARGEST_TENSORS]]}


def _batch(entry: BatchSpeed) -> BatchMetrics:
    made = entry.speedup
    return {"batch": entry.batch, "problem": entry.problem, "overhead": entry.overhead,
            "latency_s": None if made is None else {"fp32": made.baseline.p50, "int8": made.candidate.p50},
            "speedup": None if made is None else _ratio(made)}


def _ratio(speedup: Speedup) -> RatioMetrics:
    return {"estimate": speedup.estimate, "ci": [json_number(end) for end in speedup.ci], "pairs": speedup.pairs,
            "confidence": speedup.confidence, "elapsed_s": speedup.elapsed_s}


def _percentiles(latency: Latency) -> Percentiles:
    return {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99}
