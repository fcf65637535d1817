"""Laws of whole workflows on small random networks: prepare, calibrate, train, convert (M1 to M11)."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.nn.intrinsic.qat as nniqat
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.text import percent
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine, threads
from pytest_qat.core.tracebacks import headline
from pytest_qat.exported.model import ExportedModel
from pytest_qat.finetune import calibrate
from pytest_qat.measure.coverage import measure_coverage
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.properties.examples import NetExample
from pytest_qat.properties.law import Law, LawBroken, law
from pytest_qat.properties.laws.nets import Net, batches_of, net_of
from pytest_qat.properties.ops import FlowOps
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import load_workflow
from pytest_qat.workflows.base import PreparedModel
from pytest_qat.workflows.observers import fake_quantizers, qparams_of, switch_fake_quantize, switch_observers

__all__ = ["LAWS"]

_SAME_DB = 80.0
"""SQNR that two float computations of the same function reach if only the order of operations differs."""
_HEALTHY_DB = 20.0
"""SQNR of converted against prepared with random weights, where rounding adds up; a wrong scale gives under 10 dB."""
_MOST_LAYERS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Built:
    """The float, the prepared and calibrated, and the converted form of a network."""

    net: Net
    inputs: tuple[Tensor, ...]
    prepared: PreparedModel
    converted: nn.Module


def _examples(ops: FlowOps) -> SearchStrategy[NetExample]:
    return st.builds(lambda layers, seed: NetExample(layers=tuple(layers), seed=seed),
                     st.lists(st.sampled_from(ops.layers), max_size=_MOST_LAYERS), st.integers(0, 3))


def _sweep(ops: FlowOps) -> Iterator[NetExample]:
    """Yield a network with one layer of each kind; PT2E takes seconds per network, so it gets every other kind."""
    yield NetExample(layers=ops.layers[::2] if _in_graph(ops) else ops.layers)


def _flow_law(*, when: Callable[[FlowOps], bool] = lambda _: True) -> Callable[[Callable[..., None]], Law]:
    return law(kind=FlowOps, example=NetExample, examples=_examples, sweep=_sweep, when=when,
               share=lambda ops: 0.0 if _in_graph(ops) else 0.1)


def _in_graph(ops: FlowOps) -> bool:
    return ops.recipe.startswith("pt2e")


def _case(example: NetExample, net: Net) -> QATCase:
    return QATCase(model=net, example_inputs=(batches_of(example)[0],), calibration_data=batches_of(example))


def _prepare(ops: FlowOps, example: NetExample, net: Net) -> PreparedModel:
    recipe = get_recipe(ops.recipe)
    with preserved_torch_state(seed=example.seed), quantized_engine(recipe.engine), threads(1):
        try:
            return load_workflow(recipe.workflow).prepare(_case(example, net), recipe)
        except Exception as error:
            raise LawBroken(f"preparing raised {type(error).__name__}: {headline(error)}, {example}",
                            expected="a prepared network", actual=type(error).__name__) from error


def _convert(ops: FlowOps, prepared: PreparedModel) -> nn.Module:
    recipe = get_recipe(ops.recipe)
    with preserved_torch_state(), quantized_engine(recipe.engine), threads(1):
        try:
            return load_workflow(recipe.workflow).convert(prepared, recipe).module
        except Exception as error:
            raise LawBroken(f"converting raised {type(error).__name__}: {headline(error)}",
                            expected="a converted network", actual=type(error).__name__) from error


@functools.lru_cache(maxsize=32)
def _built(ops: FlowOps, example: NetExample) -> _Built:
    """Prepare, calibrate and convert a network. Laws share the result and must only change copies of it."""
    net = net_of(example)
    prepared = _prepare(ops, example, net)
    with preserved_torch_state():
        calibrate(prepared.module, batches_of(example))
        switch_observers(prepared.module, on=False)
    return _Built(net=net, inputs=(batches_of(example)[0],), prepared=prepared, converted=_convert(ops, prepared))


def _run(ops: FlowOps, module: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    with quantized_engine(get_recipe(ops.recipe).engine), threads(1), torch.no_grad():
        return [module(batch) for batch in batches]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in before.items()
            if name not in after or tensor.shape != after[name].shape or not torch.equal(tensor, after[name])]


def _qparams(module: nn.Module) -> dict[str, tuple[list[float], list[int]]]:
    return {name: qparams_of(fake) for name, fake in fake_quantizers(module)}


def _expect_equal(what: str, one: Sequence[Tensor], other: Sequence[Tensor], example: NetExample) -> None:
    for expected, actual in zip(one, other, strict=True):
        if not torch.equal(expected, actual):
            raise LawBroken(f"{what}, {example}", expected=expected.flatten()[:5].tolist(),
                            actual=actual.flatten()[:5].tolist())


@_flow_law()
def M1_prepared_is_float(ops: FlowOps, example: NetExample) -> None:
    """A prepared network with fake-quantize off computes the same as the float network.

    In eval mode the outputs agree to 80 dB, since folding BatchNorm changes the order of float32 operations.
    """
    built, batches = _built(ops, example), batches_of(example)
    plain = copy.deepcopy(built.prepared.module).eval()
    switch_fake_quantize(plain, on=False)
    for expected, actual in zip(_run(ops, built.net, batches), _run(ops, plain, batches), strict=True):
        if sqnr_db(expected, actual) < _SAME_DB:
            raise LawBroken(f"the prepared network with fake-quantize off, {example}",
                            expected=f"at least {_SAME_DB:.0f} dB", actual=f"{sqnr_db(expected, actual):.1f} dB")


@_flow_law()
def M2_nothing_left_over(ops: FlowOps, example: NetExample) -> None:
    """A converted network contains no observers and no fake-quantize modules."""
    left = [name for name, module in _built(ops, example).converted.named_modules()
            if hasattr(module, "fake_quant_enabled") or type(module).__name__.endswith("Observer")]
    if left:
        raise LawBroken(f"the converted network, {example}", expected="no observers and no fake-quantize", actual=left)


@_flow_law()
def M3_all_quantized(ops: FlowOps, example: NetExample) -> None:
    """Every convolution and linear layer of these networks is quantized.

    In eager and FX, all multiply-accumulates are in int8. In PT2E, no convolution or linear op reads a float weight.
    """
    built = _built(ops, example)
    if _in_graph(ops):
        graph_module: Any = built.converted.graph_module
        plain = [node.name for node in graph_module.graph.nodes
                 if any(word in str(node.target) for word in (".conv", ".linear"))
                 and "dequantize" not in str(getattr(node.args[1], "target", ""))]
        if plain:
            raise LawBroken(f"the converted network, {example}", expected="a dequantize op after every weight",
                            actual=f"none for {plain}")
        return
    with quantized_engine(get_recipe(ops.recipe).engine):
        coverage = measure_coverage(built.net, built.converted, built.inputs, reasons={})
    if coverage.mac_share != 1.0:
        raise LawBroken(f"the converted network, {example}", expected="all multiply-accumulates in int8",
                        actual=f"{percent(coverage.mac_share or 0, digits=0)}; in float "
                               f"{[left.title for left in coverage.leftovers]}")


@_flow_law()
def M4_converted_is_prepared(ops: FlowOps, example: NetExample) -> None:
    """The converted network computes what the prepared network simulates.

    The outputs agree to 20 dB, or to 6 dB less than quantization itself leaves if that is lower.
    """
    built, batches = _built(ops, example), batches_of(example)
    plain = torch.cat(_run(ops, built.net, batches))
    fake = torch.cat(_run(ops, copy.deepcopy(built.prepared.module).eval(), batches))
    real = torch.cat(_run(ops, built.converted, batches))
    limit = min(_HEALTHY_DB, sqnr_db(plain, fake) - 6)
    if not bool(torch.isfinite(real).all()) or sqnr_db(fake, real) < limit:
        raise LawBroken(f"the converted network against the prepared one, {example}",
                        expected=f"at least {limit:.1f} dB", actual=f"{sqnr_db(fake, real):.1f} dB")


@_flow_law()
def M5_repeatable(ops: FlowOps, example: NetExample) -> None:
    """Preparing and converting do not change their arguments, and converting again gives identical outputs."""
    built, batches = _built(ops, example), batches_of(example)
    net = net_of(example)
    before = _tensors(net)
    _prepare(ops, example, net)
    changed = _changed(before, _tensors(net))
    if changed or any(module.training for module in net.modules()):
        raise LawBroken(f"the network after preparing, {example}", expected="no change",
                        actual=f"changed {changed or 'to train mode'}")
    before = _tensors(built.prepared.module)
    again = _convert(ops, built.prepared)
    if _changed(before, _tensors(built.prepared.module)):
        raise LawBroken(f"the prepared network after converting, {example}", expected="no change",
                        actual=f"changed {_changed(before, _tensors(built.prepared.module))}")
    _expect_equal("converted a second time", _run(ops, built.converted, batches), _run(ops, again, batches), example)


@_flow_law()
def M6_state_dict(ops: FlowOps, example: NetExample) -> None:
    """Loading the state_dict of a prepared network into a newly prepared one gives identical outputs."""
    built, batches = _built(ops, example), batches_of(example)
    fresh = _prepare(ops, example, net_of(example)).module.eval()
    fresh.load_state_dict(built.prepared.module.state_dict())
    prepared = copy.deepcopy(built.prepared.module).eval()
    _expect_equal("with the loaded state_dict", _run(ops, prepared, batches), _run(ops, fresh, batches), example)


@_flow_law(when=lambda ops: not _in_graph(ops))
def M6_torchscript(ops: FlowOps, example: NetExample) -> None:
    """A converted network that is traced into TorchScript gives identical outputs."""
    built, batches = _built(ops, example), batches_of(example)
    with quantized_engine(get_recipe(ops.recipe).engine), threads(1), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(built.converted, built.inputs, check_trace=False)
    _expect_equal("traced into TorchScript", _run(ops, built.converted, batches), _run(ops, traced, batches), example)


@_flow_law()
def M7_training_step(ops: FlowOps, example: NetExample) -> None:
    """A training step gives finite gradients, and changes weights and observed ranges."""
    module = copy.deepcopy(_built(ops, example).prepared.module).train()
    switch_observers(module, on=True)
    before, ranges = _tensors(module), _qparams(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    with preserved_torch_state(), threads(1), torch.enable_grad():
        loss = (module(batches_of(example)[0] * 4) ** 2).mean()
        loss.backward()
        optimizer.step()
    not_finite = [name for name, parameter in module.named_parameters()
                  if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())]
    if not_finite:
        raise LawBroken(f"gradients after a step, {example}", expected="finite numbers",
                        actual=f"NaN or infinity in {not_finite}")
    moved = set(_changed(before, _tensors(module)))
    if not moved & {name for name, _ in module.named_parameters()} or _qparams(module) == ranges:
        raise LawBroken(f"after a step on larger inputs, {example}", expected="changed weights and ranges",
                        actual=f"changes only in {sorted(moved)[:5]}")


@_flow_law()
def M8_calibration_order(ops: FlowOps, example: NetExample) -> None:
    """Calibration does not depend on the order of its batches.

    The tolerance is 2^-16 for scales, and one code for zero points.
    """
    modules = [copy.deepcopy(_built(ops, example).prepared.module) for _ in range(2)]
    for module, batches in zip(modules, (batches_of(example, 3), batches_of(example, 3)[::-1]), strict=True):
        with preserved_torch_state(), threads(1):
            calibrate(module, batches)
    one, other = map(_qparams, modules)
    for name, (scales, codes) in one.items():
        others, other_codes = other[name]
        apart = any(abs(a - b) > 2.0**-16 * a for a, b in zip(scales, others, strict=True))
        if apart or any(abs(a - b) > 1 for a, b in zip(codes, other_codes, strict=True)):
            raise LawBroken(f"{name} after the same batches in reverse order, {example}", expected=one[name],
                            actual=other[name])


@_flow_law()
def M9_inference_changes_nothing(ops: FlowOps, example: NetExample) -> None:
    """Running a converted network does not change its tensors, and running it again gives identical outputs."""
    built, batches = _built(ops, example), batches_of(example)
    before, once = _tensors(built.converted), _run(ops, built.converted, batches)
    twice = _run(ops, built.converted, batches)
    if _changed(before, _tensors(built.converted)):
        raise LawBroken(f"tensors after inference, {example}", expected="no change",
                        actual=_changed(before, _tensors(built.converted)))
    _expect_equal("run a second time", once, twice, example)


@_flow_law()
def M10_smaller_weights(ops: FlowOps, example: NetExample) -> None:
    """Weights take a quarter of their float bytes, because quantized layers store them as int8 codes.

    Only the weights are counted, because qparams and the structure of the file take more space in such small networks.
    """
    built = _built(ops, example)
    weights = sum(parameter.numel() for parameter in built.net.parameters() if parameter.ndim > 1)
    stored = _stored_weights(built.converted)
    stored_bytes = sum(tensor.numel() * tensor.element_size() for tensor in stored)
    if stored_bytes != weights:
        raise LawBroken(f"bytes of {weights} weights, {example}", expected=weights, actual=stored_bytes)


def _stored_weights(converted: nn.Module) -> list[Tensor]:
    if isinstance(converted, ExportedModel):
        return [tensor for tensor in converted.state_dict().values()
                if isinstance(tensor, Tensor) and tensor.ndim > 1 and tensor.numel()]
    holders = [getattr(module, "weight", None) for module in converted.modules()]
    return [holder() for holder in holders if callable(holder) and not isinstance(holder, Tensor)]


@_flow_law()
def M11_frozen_before_converting(ops: FlowOps, example: NetExample) -> None:
    """With observers off and BatchNorm frozen, running in train mode does not change parameters or buffers."""
    module = copy.deepcopy(_built(ops, example).prepared.module).train()
    switch_observers(module, on=False)
    module.apply(nniqat.freeze_bn_stats)
    if isinstance(module, ExportedModel):
        module.freeze_batchnorm()
    _run(ops, module, batches_of(example))  # the fused kernel recomputes its scales when it first runs
    before = _tensors(module)
    with preserved_torch_state(), threads(1), torch.no_grad():
        for batch in batches_of(example):
            module(batch * 3)
    changed = [name for name in _changed(before, _tensors(module)) if "num_batches_tracked" not in name]
    if changed:
        raise LawBroken(f"the frozen network after running in train mode, {example}", expected="no change",
                        actual=f"changed {changed}")


LAWS: tuple[Law, ...] = (
    M1_prepared_is_float, M2_nothing_left_over, M3_all_quantized, M4_converted_is_prepared, M5_repeatable,
    M6_state_dict, M6_torchscript, M7_training_step, M8_calibration_order, M9_inference_changes_nothing,
    M10_smaller_weights, M11_frozen_before_converting)
