"""Laws of fake-quantize modules, which combine an observer and fake-quantize (F4 and F9 to F11)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pytest_qat.properties.examples import ModuleExample
from pytest_qat.properties.law import Law, LawBroken, law
from pytest_qat.properties.ops import FakeQuantizeConfig, FakeQuantizeModules
from pytest_qat.properties.strategies import fake_quantize_configs, observer_streams
from pytest_qat.workflows.observers import qparams_of

__all__ = ["LAWS"]


def _examples(ops: FakeQuantizeModules) -> SearchStrategy[ModuleExample]:
    return st.builds(
        lambda config, stream: ModuleExample(batches=stream.batches, config=config),
        fake_quantize_configs(), observer_streams(max_value=1e6))


def _sweep(ops: FakeQuantizeModules) -> Iterator[ModuleExample]:
    batches = ((1.0, -1.0, 0.5), (3.0, 0.25), (-2.0,))
    yield ModuleExample(batches=batches)
    yield ModuleExample(batches=batches, config=FakeQuantizeConfig(quant_min=-128, quant_max=127, symmetric=True,
                                                                   averaging_constant=0.5))


def _module_law(when: Callable[[Any], bool] = lambda _: True) -> Callable[[Callable[..., None]], Law]:
    return law(kind=FakeQuantizeModules, example=ModuleExample, examples=_examples, sweep=_sweep, share=0.5, when=when)


@_module_law()
def F4_disabled(ops: FakeQuantizeModules, example: ModuleExample) -> None:
    """With fake-quantize disabled, a module returns exactly its input, whether its observer is enabled or not."""
    for observe in (True, False):
        module = ops.make(example.config)
        module.disable_fake_quant()
        if not observe:
            module.disable_observer()
        for batch in example.tensors():
            result = module(batch.clone())
            if not torch.equal(result, batch):
                raise LawBroken(f"{example}, fake-quantize off", expected=batch.tolist(), actual=result.tolist())


@_module_law(when=lambda ops: ops.observer is not None)
def F9_fused(ops: FakeQuantizeModules, example: ModuleExample) -> None:
    """A fused module gives the same as its observer followed by fake-quantize, for every batch.

    The tolerance is 2^-20 for scales, and one step for outputs, because the last bit of a scale can change how a tie is
    rounded. With the observer disabled, the qparams of the module do not change.
    """
    module, observer = ops.make(example.config), ops.observer(example.config)  # type: ignore[misc]
    for batch in example.tensors():
        result = module(batch.clone())
        observer(batch)
        scale, zero_point = (float(part) for part in observer.calculate_qparams())
        found, code = float(module.scale), int(module.zero_point)
        if abs(found - scale) > scale * 2.0**-20 or code != int(zero_point):
            raise LawBroken(f"qparams, {example}", expected=(scale, int(zero_point)), actual=(found, code))
        expected = torch.fake_quantize_per_tensor_affine(batch, scale, int(zero_point), example.config.quant_min,
                                                         example.config.quant_max)
        if bool(((result - expected).abs() > scale * 1.001).any()):
            raise LawBroken(f"output, {example}", expected=expected.tolist(), actual=result.tolist())
    module.disable_observer()
    before = qparams_of(module)
    module(torch.tensor([1e3, -1e3]))
    if qparams_of(module) != before:
        raise LawBroken(f"qparams with the observer off, {example}", expected=before, actual=qparams_of(module))


@_module_law()
def F10_frozen(ops: FakeQuantizeModules, example: ModuleExample) -> None:
    """`disable_observer` freezes scale and zero point for all further data, and `enable_observer` unfreezes them."""
    module = ops.make(example.config)
    for batch in example.tensors():
        module(batch)
    before = qparams_of(module)
    module.disable_observer()
    large = torch.tensor([2.0, -2.0]) * 1e7
    module(large)
    if qparams_of(module) != before:
        raise LawBroken(f"qparams with the observer off, {example}", expected=before, actual=qparams_of(module))
    module.enable_observer()
    module(large)
    if qparams_of(module) == before:
        raise LawBroken(f"qparams after larger data with the observer on, {example}", expected="other qparams",
                        actual=before)


@_module_law()
def F11_state(ops: FakeQuantizeModules, example: ModuleExample) -> None:
    """Loading a state_dict into a new module gives it the same outputs, qparams and enabled or disabled observer."""
    module, fresh = ops.make(example.config), ops.make(example.config)
    for batch in example.tensors():
        module(batch)
    module.disable_observer()
    fresh.load_state_dict(module.state_dict())
    for batch in example.tensors():
        one, other = module(batch), fresh(batch)
        if not torch.equal(one, other) or qparams_of(module) != qparams_of(fresh):
            raise LawBroken(f"after loading the state, {example}", expected=(one.tolist(), qparams_of(module)),
                            actual=(other.tolist(), qparams_of(fresh)))


LAWS: tuple[Law, ...] = (F4_disabled, F9_fused, F10_frozen, F11_state)
