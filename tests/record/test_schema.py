"""The record of a run has the keys of its types, and is plain JSON."""

from __future__ import annotations

import json
import typing

import torch
from torch import nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import ModelChecks
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe
from pytest_qat.record import schema
from pytest_qat.record.environment import describe_environment
from pytest_qat.record.metrics import no_metrics
from pytest_qat.record.store import RecordStore


def keys(kind: type) -> set[str]:
    return set(typing.get_type_hints(kind))


def test_a_run_has_every_key_and_no_other_from_the_start() -> None:
    case = QATCase(model=nn.Linear(4, 2).eval(), example_inputs=(torch.randn(8, 4),))
    run = ModelRun(case, get_recipe("fx-x86"), RunSettings(tolerances=Tolerances()), lock=MachineLock())
    record = ModelChecks(run, reference="models:net").record()
    assert set(record) == keys(schema.RunRecord)
    assert set(record["metrics"]) == keys(schema.Metrics)


def test_measured_metrics_have_every_key_and_no_other() -> None:
    case = QATCase(model=nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval(),
                   example_inputs=(torch.randn(16, 64),))
    settings = RunSettings(tolerances=Tolerances(), max_time_s=0.5)
    run = ModelRun(case, get_recipe("fx-x86"), settings, lock=MachineLock())
    checks = ModelChecks(run, reference="models:net")
    for check in schema.CHECKS:
        checks.check(check)
    run.close()
    metrics = checks.record()["metrics"]
    for name, kind in (("accuracy", schema.AccuracyMetrics), ("latency_s", schema.LatencyMetrics),
                       ("throughput_per_s", schema.ThroughputMetrics), ("speedup", schema.SpeedupMetrics),
                       ("size_bytes", schema.SizeMetrics), ("coverage", schema.CoverageMetrics),
                       ("parity", schema.ParityMetrics), ("latency_percentiles_s", schema.PercentileMetrics)):
        assert set(typing.cast("dict[str, dict[str, object]]", metrics)[name]) == keys(kind), name
    json.dumps(checks.record(), allow_nan=False)


def test_what_nobody_measures_yet_is_null() -> None:
    assert set(no_metrics().values()) == {None}
    assert no_metrics()["operations"] is None


def test_the_environment_and_the_document_have_their_keys() -> None:
    assert set(describe_environment(seed=0)) == keys(schema.Environment)
    optional = {"probes", "devices", "baselines", "migrations"}
    assert set(RecordStore().document()) == keys(schema.Document) - optional
