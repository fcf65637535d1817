"""The record of a session as types: what `--qat-json` writes, and what HTML, markdown and terminal show.

Every value is plain JSON, so that a record crosses unchanged from an xdist worker to its controller. A number that
JSON cannot express (infinity, NaN) is null, and so is everything that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypedDict

from pytest_qat.findings import FindingRecord

__all__ = [
    "CHECKS", "CHECK_OF_TOLERANCE", "SCHEMA_VERSION", "AccuracyMetrics", "BatchMetrics", "CensusMetrics", "CheckRecord",
    "CoverageMetrics", "DiagnosisRecord", "Document", "Environment", "FineTuningRecord", "FlipRecord", "LatencyMetrics",
    "Metrics", "ModelError", "OperationMetrics", "OutcomeName", "ParityMetrics", "PeakMemoryMetrics",
    "PercentileMetrics", "Percentiles", "ProbeRecord", "Probes",
    "Ranking", "RankingEntry", "RatioMetrics", "RemedyRecord", "RunRecord", "Sides", "SizeMetrics", "SpeedupMetrics",
    "TensorRecord", "ThroughputMetrics",
]

SCHEMA_VERSION: Final = 2
CHECKS = ("prepare", "convert", "coverage", "parity", "accuracy", "size", "speedup", "roundtrip")
"""The names of the checks, in their order."""
CHECK_OF_TOLERANCE = {"accuracy_drop": "accuracy", "min_accuracy": "accuracy", "min_speedup": "speedup",
                      "min_size_reduction": "size", "min_coverage": "coverage"}
"""Which check each tolerance belongs to."""

OutcomeName = Literal["passed", "failed", "inconclusive", "blocked"]


# -- metrics --------------------------------------------------------------------------------------------------------


class Sides(TypedDict):
    """One number for each side."""

    fp32: float
    int8: float


class FlipRecord(TypedDict):
    """A sample that int8 scores differently from float."""

    index: int
    target: float | None
    before: float
    after: float


class AccuracyMetrics(TypedDict):
    """Scores and their drop.

    `kind` is `metric`, `set_metric` or `agreement`; `metric` is what the score is called, null for agreement;
    `is_fraction` says whether scores are shares. `resamples` and `undefined_resamples` are the drawn sets that the
    interval of a `set_metric` rests on, and those on which it is not defined; null for other scores.
    """

    fp32: float
    int8: float
    ptq: float | None
    fine_tuned: float | None
    drop: float
    drop_ci: list[float | None]
    relative_drop: float | None
    p_value: float
    ptq_p_value: float | None
    fine_tuned_p_value: float | None
    samples: int
    provable_drop: float | None
    kind: str
    metric: str | None
    higher_is_better: bool
    is_fraction: bool
    resamples: int | None
    undefined_resamples: int | None
    sqnr_db: float | None
    flipped: int
    flips: list[FlipRecord]


class LatencyMetrics(TypedDict):
    """Median seconds of one call."""

    fp32: float
    int8: float
    ptq: float | None
    fp32_eager: float | None


class ThroughputMetrics(TypedDict):
    """Samples per second."""

    fp32: float
    int8: float
    fp32_eager: float | None


class Percentiles(TypedDict):
    """Percentiles of one call's seconds."""

    p50: float
    p90: float
    p99: float


class PercentileMetrics(TypedDict):
    """Percentiles by side."""

    fp32: Percentiles
    int8: Percentiles
    fp32_eager: Percentiles | None


class RatioMetrics(TypedDict):
    """How much faster one side is, with the interval of the estimate."""

    estimate: float
    ci: list[float | None]
    pairs: int
    confidence: float
    elapsed_s: float


class SpeedupMetrics(RatioMetrics):
    """The like-for-like ratio; `noise` is float against itself."""

    noise_floor: float | None
    layouts: dict[str, str]
    noise: RatioMetrics | None


class BatchMetrics(TypedDict):
    """The like-for-like comparison at one batch size; `problem` says why there is none."""

    batch: int
    problem: str | None
    overhead: float | None
    latency_s: Sides | None
    speedup: RatioMetrics | None


class SizeMetrics(TypedDict):
    """Bytes of each artifact."""

    fp32: int
    int8: int
    ptq: int | None


class TensorRecord(TypedDict):
    """A tensor in an artifact."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int


class CensusMetrics(TypedDict):
    """What an artifact's bytes are; `container` is what is not tensors."""

    by_dtype: dict[str, int]
    container: int
    tensors: list[TensorRecord]


class CoverageMetrics(TypedDict):
    """How much runs in int8; null where the artifact does not tell."""

    macs: int
    int8_macs: int | None
    mac_share: float | None
    weights: int
    int8_weights: int | None
    weight_share: float | None
    int8_modules: int


class ParityMetrics(TypedDict):
    """Prepared against converted."""

    sqnr_db: float | None
    finite: bool
    quantization_sqnr_db: float | None


class PeakMemoryMetrics(TypedDict):
    """Peak resident bytes of a process that runs one side; `idle` with the runtime imported and no model."""

    fp32: int
    int8: int
    idle: int


class OperationMetrics(TypedDict):
    """What one operation takes on each side."""

    op: str
    module: str | None
    fp32_s: float | None
    int8_s: float | None
    dtype: str


class Metrics(TypedDict):
    """What was measured of a run."""

    accuracy: AccuracyMetrics | None
    latency_s: LatencyMetrics | None
    throughput_per_s: ThroughputMetrics | None
    speedup: SpeedupMetrics | None
    speedup_over_eager: RatioMetrics | None
    size_bytes: SizeMetrics | None
    size_reduction: float | None
    coverage: CoverageMetrics | None
    parity: ParityMetrics | None
    energy_j_per_sample: dict[str, float] | None
    throughput_per_w: dict[str, float] | None
    energy_domains_j: dict[str, dict[str, float]] | None
    energy_note: str | None
    peak_memory_bytes: PeakMemoryMetrics | None
    memory_note: str | None
    size_census: dict[str, CensusMetrics] | None
    latency_percentiles_s: PercentileMetrics | None
    batches: list[BatchMetrics] | None
    operations: list[OperationMetrics] | None


# -- runs -----------------------------------------------------------------------------------------------------------


class _CheckRecord(TypedDict):
    outcome: OutcomeName
    reasons: list[str]


class CheckRecord(_CheckRecord, total=False):
    """The verdict of one check; `tolerances` are there where a test demanded others than the run's."""

    tolerances: dict[str, float | None]


class FineTuningRecord(TypedDict):
    """What training did."""

    kind: str
    steps: int | None
    first_loss: float | None
    last_loss: float | None


class RemedyRecord(TypedDict):
    """A change that might help; `why_not` says why it was not tried."""

    change: str
    patch: str | None
    tried: bool
    accuracy: float | None
    speedup: float | None
    size_reduction: float | None
    why_not: str | None


class DiagnosisRecord(TypedDict):
    """What a diagnosis looked at and tried."""

    seconds: float
    stages: list[Mapping[str, object]]
    layers: list[Mapping[str, object]]
    remedies: list[RemedyRecord]


class RunRecord(TypedDict):
    """One model by one recipe: what was measured, judged and found."""

    model: str
    recipe: str
    name: str
    workflow: str
    runtime: str
    engine: str | None
    threads: int
    batch: int | None
    fine_tuning: FineTuningRecord | None
    tolerances: dict[str, float | None]
    metrics: Metrics
    checks: dict[str, CheckRecord]
    findings: list[FindingRecord]
    diagnosis: DiagnosisRecord | None


# -- the session ----------------------------------------------------------------------------------------------------


class RankingEntry(TypedDict):
    """One recipe's place in a ranking; `judged` is false for what was not tried or lost to another engine.

    `is_fraction` says whether the accuracy is a share, as that of the run does.
    """

    recipe: str
    holds: bool
    latency_s: float | None
    speedup: float | None
    accuracy: float | None
    is_fraction: bool | None
    size_bytes: int | None
    note: str
    judged: bool


class Ranking(TypedDict):
    """The recipes of one model, best first."""

    model: str
    entries: list[RankingEntry]


class ProbeRecord(TypedDict):
    """What came of trying one recipe without training; `takes` is null where there was no answer."""

    recipe: str
    takes: bool | None
    seconds: float
    reason: str
    module: str | None
    code: str | None
    mac_share: float | None
    size_reduction: float | None
    skip: Sequence[str]
    agrees: bool | None
    sqnr_db: float | None
    float_db: float | None
    speedup: float | None
    speedup_ci: tuple[float, float] | None


class Probes(TypedDict):
    """Which recipes take a model, best first."""

    model: str
    name: str
    command: str
    probes: list[ProbeRecord]


class ModelError(TypedDict):
    """A model that could not be loaded."""

    model: str
    message: str


class Environment(TypedDict, total=False):
    """What the results depend on; empty in a session that measured nothing."""

    python: str
    platform: str
    cpu: str
    cores: int | None
    cpu_capability: str
    quantized_engines: list[str]
    packages: dict[str, str]
    seed: int


class _Document(TypedDict):
    schema_version: int
    environment: Environment
    runs: list[RunRecord]
    rankings: list[Ranking]
    errors: list[ModelError]


class Document(_Document, total=False):
    """The record of a session; the optional keys are there only in a session that was asked for them."""

    probes: list[Probes]
    devices: list[Mapping[str, object]]
    baselines: list[Mapping[str, object]]
    migrations: list[Mapping[str, object]]
