"""Advice about stages that users made themselves: each case as it is broken, and as its advice mends it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from fixtures.cases import CASES
from fixtures.cases.joins import Paths
from pytest_qat import dequantize_model, diagnose
from pytest_qat.workflows.kernels import replace_wrong_kernels
from tests.remedies.walk import Row, World

INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def told(name: str, *, broken: bool, without: tuple[str, ...] = ()) -> Callable[[World], object]:
    """Diagnose a case, with some of its stages withheld."""
    def work(_: World) -> object:
        case = next(case for case in CASES if case.name == name)
        arguments = case.build(broken=broken).arguments()
        return list(diagnose(**{**arguments, **dict.fromkeys(without)}).findings)
    return work


def row(path: str, text: str, name: str, *, without: tuple[str, ...] = ()) -> Row:
    return Row(path=f"diagnosis/{path}.py", text=text, calls=told(name, broken=True, without=without),
               follow=told(name, broken=False, without=without))


class Net(nn.Module):
    """Two linear layers and a dropout, with stubs."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.dequantizes = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.last(self.first(self.quant(x)))
        return self.dequant(made) if self.dequantizes else made  # type: ignore[no-any-return]


class InFloat(nn.Module):
    """Runs a layer in float between int8 ones."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant, self.layer = quantization.QuantStub(), quantization.DeQuantStub(), layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant(self.layer(self.dequant(x)))  # type: ignore[no-any-return]


def net(*, dequantizes: bool = True) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net().eval()
    model.dequantizes = dequantizes
    return model


def eager(model: Any, *, inputs: torch.Tensor = INPUTS, widest: float = 1.0, in_float: tuple[str, ...] = ()) -> Any:
    """Convert a copy of a model after calibration on these inputs; the range of its first layer may be too wide."""
    prepared = copy.deepcopy(model)
    prepared.qconfig = quantization.QConfig(activation=quantization.MinMaxObserver,
                                            weight=quantization.default_per_channel_weight_observer)
    for name in in_float:
        prepared.get_submodule(name).qconfig = None
        setattr(prepared, name, InFloat(prepared.get_submodule(name)))
    prepared = quantization.prepare(prepared)
    prepared(inputs)
    if widest != 1.0:
        prepared.first.activation_post_process.max_val *= widest
    return quantization.convert(prepared)


def converted(make: Callable[[], Any]) -> Callable[[World], object]:
    def work(_: World) -> object:
        return list(diagnose(net(), (INPUTS,), converted=make()).findings)
    return work


def eager_net() -> Any:
    return eager(net())


def kernel(*, bias: bool) -> Any:
    """Convert a model, and give a layer another bias, or its weights in another order, after that."""
    made = eager(net())
    weight = made.first.weight()
    order = weight if bias else torch._make_per_channel_quantized_tensor(
        weight.int_repr().flip(0), weight.q_per_channel_scales(), weight.q_per_channel_zero_points(), 0)
    made.first.set_weight_bias(order, made.first.bias() + 1 if bias else made.first.bias())
    return made


class Dropping(nn.Module):
    """Returns what dropout leaves of a linear layer's outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.drop = inner, nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.inner(x))  # type: ignore[no-any-return]


def dropping(*, trains: bool) -> Any:
    made = Dropping(eager(net())).train(trains)
    made.inner.eval()
    return made


def fused(*, right: bool) -> Callable[[World], object]:
    def work(_: World) -> object:
        model = net()
        other = copy.deepcopy(model)
        if not right:
            with torch.no_grad():
                other.first.weight *= 1.5
        return list(diagnose(model, (INPUTS,), fused=other).findings)
    return work


def restored(make: Callable[[], Any], into: Callable[[], Any]) -> Callable[[World], object]:
    return lambda _: dequantize_model(make(), into()) and ""


def dynamic(*, broken: bool) -> Any:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    inputs = torch.randn(4, 3, 8, 8)
    if broken:
        made: Any = quantization.quantize_dynamic(copy.deepcopy(model), {nn.Conv2d})
    else:
        prepared = prepare_fx(copy.deepcopy(model), quantization.get_default_qconfig_mapping("x86"), (inputs,))
        prepared(inputs)
        made = convert_fx(prepared)
    return list(diagnose(model, (inputs,), converted=made).findings)


def small_head() -> Any:
    model = net()
    model.last = nn.Linear(8, 5)
    return model


def wrong_kernel(*, in_float: bool) -> Callable[[World], object]:
    """Convert a model with the PReLU that torch's kernel gets wrong where its slopes' zero point is far off."""
    def work(_: World) -> object:
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch's own, in copies of PReLU
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 16), nn.PReLU(16), nn.Linear(16, 4)).eval()
        mapping = quantization.get_default_qconfig_mapping("x86")
        prepared = prepare_fx(copy.deepcopy(model), mapping, (INPUTS,))
        prepared(INPUTS)
        made = convert_fx(copy.deepcopy(prepared))
        if in_float:
            replace_wrong_kernels(made, (INPUTS,))
        return list(diagnose(model, (INPUTS,), prepared=prepared, converted=made).findings)
    return work


def concatenated(*, in_float: bool) -> Callable[[World], object]:
    """Convert a model in FX mode that concatenates one tensor twice, with ranges that are unlike."""
    def work(_: World) -> object:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = Paths(8, loud_first=False).eval(), torch.randn(4, 3, 8, 8)
        mapping = quantization.get_default_qconfig_mapping("x86")
        if in_float:
            mapping.set_object_type(torch.cat, None).set_module_name("first", None)
        prepared = prepare_fx(copy.deepcopy(model), mapping, (inputs,))
        prepared(inputs)
        return list(diagnose(model, (inputs,), converted=convert_fx(prepared)).findings)
    return work


STAGE_ROWS = [
    Row(path="diagnosis/audits/joined.py", text="leave the concatenation and the layer that reads it in float",
        calls=concatenated(in_float=False), follow=concatenated(in_float=True), then="stays in float"),
    row("audits/joined", "concatenate with an nn.quantized.FloatFunctional", "put_together_without_functional"),
    row("audits/preparing", "set model.qconfig", "no_qconfig_eager"),
    row("audits/preparing", "prepare with prepare_qat", "observers_instead_of_fake_quantizers_fx"),
    row("audits/preparing", "make the optimizer from", "optimizer_of_the_float_model_fx"),
    row("audits/preparing", "switch them on", "simulation_off_fx"),
    row("audits/batch_norm", "fuse them before preparing", "nothing_fused"),
    row("audits/batch_norm", "use fuse_modules_qat", "folded_before_training_eager"),
    row("audits/batch_norm", "calibrate in eval mode", "tiny_batches_eager"),
    row("audits/batch_norm", "call move_exported_model_to_eval", "exported_in_training"),
    Row(path="diagnosis/audits/batch_norm.py", text="call .eval() on the model before it is prepared and converted.",
        calls=converted(lambda: dropping(trains=True)), follow=converted(lambda: dropping(trains=False))),
    row("audits/ranges", "take the batches with NaN", "broken_sample_eager"),
    row("audits/ranges", "run representative batches", "nothing_observed_fx"),
    row("audits/ranges", "call model.apply(torch.ao.quantization.disable_observer)", "learning_in_evaluation_fx"),
    row("int8_layers", "quantize these weights per channel, such as", "dense_per_tensor_fx", without=("prepared",)),
    row("audits/codes", "give it quant_min and quant_max", "few_codes_fx"),
    row("audits/conversion", "call convert (convert_fx", "conversion_forgotten_fx"),
    Row(path="diagnosis/audits/conversion.py", text="put a DeQuantStub on each output",
        calls=converted(lambda: eager(net(dequantizes=False))), follow=converted(lambda: eager(net()))),
    row("audits/conversion", "run representative batches", "nothing_observed_fx", without=("prepared",)),
    row("audits/conversion", "convert to a runtime with int8 kernels", "filters_rounded"),
    Row(path="diagnosis/audits/conversion.py", text="quantize_dynamic replaces linear and recurrent layers only",
        calls=lambda _: dynamic(broken=True), follow=lambda _: dynamic(broken=False)),
    row("audits/conversion", "convert with fold_quantize=True", "exported_without_folding"),
    row("audits/conversion", "use convert_fx instead", "reference_kept"),
    row("audits/conversion", "replace these by ops", "activation_without_kernel"),
    row("audits/conversion", "quantize it too", "large_layer_in_float"),
    row("audits/float_copies", "use pytest_qat.dequantize_model", "rebuilt_by_name_eager"),
    row("steps", "bring the columns to one range", "boxes_with_confidences_fx", without=("prepared",)),
    Row(path="diagnosis/steps.py", text="fuse a copy of the trained model", calls=fused(right=False),
        follow=fused(right=True)),
    Row(path="diagnosis/steps.py", text="leave this layer in float, or convert", calls=wrong_kernel(in_float=False),
        follow=wrong_kernel(in_float=True)),
    row("steps", "look at the training loop", "high_rate_fx"),
    row("steps", "convert the prepared model again as it is now; if", "other_weights_in_the_kernel_fx"),
    row("steps", "convert the prepared model again as it is now, and", "other_scale_in_the_kernel_fx"),
    row("int8_layers", "use one FloatFunctional for each operation", "one_adder_for_two_places", without=("prepared",)),
    Row(path="diagnosis/int8_layers.py", text="leave this module in float, or convert for another quantized engine.",
        calls=converted(lambda: kernel(bias=True)), follow=converted(eager_net)),
    Row(path="diagnosis/int8_layers.py", text="leave this module in float: give it no qconfig.",
        calls=converted(lambda: kernel(bias=False)), follow=converted(lambda: eager(net(), in_float=("first",))),
        then="stays in float"),
    Row(path="diagnosis/int8_layers.py", text="calibrate on data like those of the evaluation",
        calls=converted(lambda: eager(net(), inputs=INPUTS / 10)), follow=converted(eager_net)),
    Row(path="diagnosis/int8_layers.py", text="take outliers out of the calibration data",
        calls=converted(lambda: eager(net(), widest=1000.0)), follow=converted(eager_net)),
    Row(path="workflows/dequantized.py", text="Pass what convert returned", calls=restored(net, net),
        follow=restored(lambda: eager(net()), net)),
    Row(path="workflows/dequantized.py", text="Pass a float model of the same architecture", sites=2,
        calls=restored(lambda: eager(net()), small_head), follow=restored(lambda: eager(net()), net)),
    Row(path="diagnosis/given.py", text="Pass the module itself",
        calls=lambda _: diagnose(net(), (INPUTS,), converted=net().state_dict()),
        follow=lambda _: list(diagnose(net(), (INPUTS,), converted=eager(net())).findings)),
    Row(path="diagnosis/given.py", text="Pass the optimizer that trains",
        calls=lambda _: diagnose(net(), (INPUTS,), optimizer=list(net().parameters())),  # type: ignore[arg-type]
        follow=lambda _: list(diagnose(net(), (INPUTS,)).findings)),
]
