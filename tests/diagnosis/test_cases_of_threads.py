"""Each case is measurably broken in its broken form, and healthy by the same measure in its mended one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fixtures.cases import CASES, HEALTHY, Case, Healthy, Stages

pytestmark = pytest.mark.slow

LOST_DB, HEALTHY_DB = 18.0, 20.0
"""Signal to noise of outputs without their mean: below the first a model is broken, above the second healthy."""


@cache
def built(case: Case, broken: bool) -> Stages:
    return case.build(broken=broken)


def outputs(model: Any, batches: list[Tensor]) -> Tensor:
    """Of a copy, for observers and batch norm may learn."""
    copied = copy.deepcopy(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cat([copied(batch) for batch in batches])


def scored(model: Any, stages: Stages) -> Tensor:
    assert stages.evaluation
    return outputs(model, [inputs for inputs, _ in stages.evaluation])


def quality_db(given: Tensor, got: Tensor) -> float:
    """Signal to noise of all outputs less the mean output; -1000 where some are no numbers."""
    if not got.isfinite().all():
        return -1000.0
    signal = given - given.mean(0)
    return float(20 * torch.log10(signal.norm() / ((given - got).norm() + 1e-9)))


def int8_db(stages: Stages) -> float:
    return quality_db(scored(stages.float_model, stages), scored(stages.converted, stages))


def lost(stages: Stages) -> bool:
    return int8_db(stages) < LOST_DB


def coarse(stages: Stages) -> bool:
    return int8_db(stages) < 25


def lost_before_int8(stages: Stages) -> bool:
    return quality_db(scored(stages.float_model, stages), scored(stages.prepared, stages)) < LOST_DB


def lost_in_kernels(stages: Stages) -> bool:
    return quality_db(scored(stages.prepared, stages), scored(stages.converted, stages)) < LOST_DB


def lost_in_columns(first: int) -> Callable[[Stages], bool]:
    def measure(stages: Stages) -> bool:
        given, got = scored(stages.float_model, stages)[:, first:], scored(stages.converted, stages)[:, first:]
        return quality_db(given, got) < 10
    return measure


def accuracy(model: Any, stages: Stages) -> float:
    targets = torch.cat([target for _, target in stages.evaluation or ()])
    return float((scored(model, stages).argmax(1) == targets).float().mean())


def unlearned(stages: Stages) -> bool:
    return accuracy(stages.prepared, stages) < accuracy(stages.float_model, stages) - 0.2


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from tensors(each)


def bytes_by_kind(model: nn.Module | None) -> tuple[int, int]:
    """Bytes of integers of eight bits, and of floating-point numbers."""
    assert model is not None
    held = [tensor for value in model.state_dict().values() for tensor in tensors(value)]
    small = [tensor for tensor in held if tensor.is_quantized or tensor.dtype in (torch.int8, torch.uint8)]
    wide = [tensor for tensor in held if not tensor.is_quantized and tensor.is_floating_point()]
    return sum(tensor.numel() for tensor in small), sum(4 * tensor.numel() for tensor in wide)


def no_int8(stages: Stages) -> bool:
    return bytes_by_kind(stages.converted)[0] == 0


def mostly_float(stages: Stages) -> bool:
    small, wide = bytes_by_kind(stages.converted)
    return wide > small


def on_a_grid(stages: Stages) -> bool:
    """Floating-point weights of few values in each row."""
    assert stages.converted is not None
    weights = [weight for name, weight in stages.converted.named_parameters() if name.endswith("weight")]
    return bool(weights) and all(row.unique().numel() <= 255 and not weight.is_quantized
                                 for weight in weights for row in weight.flatten(1))


def modules_of(model: nn.Module | None, kind: Any) -> list[Any]:
    assert model is not None
    return [module for module in model.modules() if isinstance(module, kind)]


def fake_quantizers(stages: Stages) -> list[Any]:
    """By what they have, since torchao has classes of its own."""
    return [module for module in modules_of(stages.prepared, nn.Module) if hasattr(module, "fake_quant_enabled")]


def without_fake_quantizers(stages: Stages) -> bool:
    return not fake_quantizers(stages)


def fake_quantizers_off(stages: Stages) -> bool:
    return any(not module.fake_quant_enabled.all() for module in fake_quantizers(stages))


def ranges(model: nn.Module | None) -> dict[str, Tensor]:
    assert model is not None
    return {name: value.clone() for name, value in model.named_buffers() if name.endswith(("min_val", "max_val"))}


def unobserved(stages: Stages) -> bool:
    return any(value.numel() == 0 or value.isinf().any() for value in ranges(stages.prepared).values())


def not_finite(stages: Stages) -> bool:
    return any(not value.isfinite().all() for value in ranges(stages.prepared).values())


def learns(stages: Stages) -> bool:
    """Ranges move while the model is evaluated."""
    evaluated = copy.deepcopy(stages.prepared)
    with torch.no_grad():
        for inputs, _ in stages.evaluation or ():
            evaluated(inputs)  # type: ignore[misc]
    before, after = ranges(stages.prepared), ranges(evaluated)
    return any(not torch.equal(value, after[name]) for name, value in before.items())


def has_own_norm(stages: Stages) -> bool:
    return any("BatchNorm" in type(module).__name__ for module in modules_of(stages.converted, nn.Module))


def trains_without_norm(stages: Stages) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return bool(modules_of(stages.float_model, kinds)) and not modules_of(stages.prepared, kinds)


def depends_on_the_batch(stages: Stages) -> bool:
    """The first sample's outputs change with the other samples."""
    assert stages.evaluation
    batch = stages.evaluation[0][0]
    others = torch.cat([batch[:1], batch[1:] * 3])
    given, got = outputs(stages.prepared, [batch])[0], outputs(stages.prepared, [others])[0]
    return bool((given - got).norm() > 0.05 * given.norm())


def leaves_int8(stages: Stages) -> bool:
    """More than once in a call."""
    assert stages.converted is not None
    if isinstance(stages.converted, torch.fx.GraphModule):
        return sum("dequantize" in str(node.target) for node in stages.converted.graph.nodes) > 1
    return sum(type(module).__name__ == "DeQuantize" for module in stages.converted.modules()) > 1


def cannot_be_called(stages: Stages) -> bool:
    try:
        scored(stages.converted, stages)
    except NotImplementedError:
        return True
    return False


def returns_int8(stages: Stages) -> bool:
    assert stages.converted is not None
    with torch.no_grad():
        return bool(stages.converted(*stages.example_inputs).is_quantized)


def trains_others(stages: Stages) -> bool:
    assert stages.prepared is not None
    assert stages.optimizer is not None
    own = {id(parameter) for parameter in stages.prepared.parameters()}
    return not any(id(parameter) in own for group in stages.optimizer.param_groups for parameter in group["params"])


MEASURES: dict[str, Callable[[Stages], bool]] = {
    "observers_instead_of_fake_quantizers": without_fake_quantizers,
    "dynamic_convolutions": no_int8,
    "no_qconfig": no_int8,
    "simulation_off": fake_quantizers_off,
    "nothing_observed": unobserved,
    "branch_not_observed": unobserved,
    "far_outlier": lost,
    "broken_sample": not_finite,
    "faint_calibration": lost,
    "learning_in_evaluation": learns,
    "weights_loaded_after_calibration": lost,
    "observers_off_too_early": lost,
    "boxes_with_confidences": lost_in_columns(4),
    "targets_of_unlike_units": lost_in_columns(1),
    "one_adder_for_two_places": lost,
    "one_join_for_two_places": lost,
    "put_together": lost,
    "sigmoid_put_in_front": lost,
    "depthwise_per_tensor": lost,
    "dense_per_tensor": lost,
    "few_codes": coarse,
    "nothing_fused": has_own_norm,
    "one_pair_not_fused": has_own_norm,
    "folded_before_training": trains_without_norm,
    "exported_in_training": depends_on_the_batch,
    "tiny_batches": lost_before_int8,
    "calibrated_in_training_mode": lost_before_int8,
    "sorted_calibration_in_training_mode": lost_before_int8,
    "other_weights_in_the_kernel": lost_in_kernels,
    "other_scale_in_the_kernel": lost_in_kernels,
    "rebuilt": lost,
    "exported_without_folding": no_int8,
    "trained_without_folding": no_int8,
    "reference_kept": no_int8,
    "conversion_forgotten": no_int8,
    "export_not_converted": no_int8,
    "large_embedding_in_float": mostly_float,
    "large_layer_in_float": mostly_float,
    "dense_weights_rounded": on_a_grid,
    "filters_rounded": on_a_grid,
    "activation_without_kernel": leaves_int8,
    "stubs_around_each_layer": leaves_int8,
    "high_rate": unlearned,
    "too_few_steps": unlearned,
    "labels_shifted": unlearned,
    "optimizer": trains_others,
    "no_stub_at_the_input": cannot_be_called,
    "no_stub_at_the_output": returns_int8,
    "converted_without_calibration": lost,
}
"""What shows the fault, by how the names of cases begin."""


def measure_of(case: Case) -> Callable[[Stages], bool]:
    return next(measure for start, measure in MEASURES.items() if case.name.startswith(start))


each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_case
def test_the_broken_form_is_broken(case: Case) -> None:
    assert measure_of(case)(built(case, True))


@each_case
def test_the_mended_form_is_healthy(case: Case) -> None:
    stages = built(case, False)
    assert not measure_of(case)(stages)
    check(stages)


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_healthy_models_are_healthy(case: Healthy) -> None:
    check(case.build())


def check(stages: Stages) -> None:
    """The int8 model does what the float model does, and classes are still told."""
    assert not stages.float_model.training
    if stages.converted is None:
        return
    assert int8_db(stages) > HEALTHY_DB
    if not (stages.evaluation or [((), torch.zeros(1))])[0][1].is_floating_point() and stages.metric is None:
        assert accuracy(stages.converted, stages) > accuracy(stages.float_model, stages) - 0.01


def test_names_are_unique() -> None:
    names = [case.name for case in (*CASES, *HEALTHY)]
    assert sorted(names) == sorted(set(names))


def test_modules_to_be_named_are_the_user_s() -> None:
    for case in CASES:
        if case.module is not None:
            assert case.module in dict(built(case, True).float_model.named_modules())


def test_building_leaves_torch_as_it_was() -> None:
    state, engine = torch.random.get_rng_state(), torch.backends.quantized.engine
    CASES[0].build(broken=True, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.backends.quantized.engine == engine


def test_seed_and_width_change_the_model() -> None:
    case = CASES[0]
    weights = [next(case.build(broken=False, seed=seed, width=width).float_model.parameters())
               for seed, width in ((0, 8), (1, 8), (0, 8), (0, 12))]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert weights[0].shape != weights[3].shape
