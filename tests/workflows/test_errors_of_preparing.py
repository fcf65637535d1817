"""Errors of fusing, preparing, observing and converting, over layer types and workflows."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.nn import qat as nnqat
from torch.ao.quantization import quantize_fx
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.qat import QATConfig
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from pytest_qat.core.torch_state import preserved_torch_state
from tests.workflows.provoked import IMAGES, ROWS, SIGNALS, VOLUMES, WORDS, Net, Then, by_fx, check, explained, static

pytestmark = pytest.mark.slow

MAPPING = tq.get_default_qconfig_mapping("x86")


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    with preserved_torch_state(seed=0):
        yield


def quantizer(*, qat: bool = False) -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=qat, is_per_channel=True))


def exported(model: nn.Module, *inputs: Tensor, train: bool = False) -> nn.Module:
    return torch.export.export(model.train(train), inputs).module()


def configured(model: nn.Module, qconfig: Any) -> nn.Module:
    model.qconfig = qconfig
    return model


class Holder(nn.Module):
    """Layers under the names that users give them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Module()
        for index, layer in enumerate(layers):
            setattr(self.block, f"layer{index}", layer)
        self.names = [f"block.layer{index}" for index in range(len(layers))]


# -- fusing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [tq.fuse_modules, tq.fuse_modules_qat])
@pytest.mark.parametrize("layers", [
    [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)], [nn.Conv2d(3, 4, 1), nn.SiLU()], [nn.ReLU(), nn.Conv2d(3, 4, 1)],
    [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Hardswish()], [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)],
    [nn.Linear(4, 4), nn.LayerNorm(4)], [nn.Conv2d(3, 4, 1)], [nn.Sequential(nn.Conv2d(3, 4, 1)), nn.ReLU()],
    [nn.Conv2d(3, 4, 1), nn.BatchNorm1d(4)], [nn.Linear(4, 4), nn.ReLU6()],
], ids=lambda layers: "-".join(type(layer).__name__ for layer in layers) if isinstance(layers,
                                                                                       list) else layers.__name__)
def test_what_torch_cannot_fuse_is_named_with_types(fuse: Any, layers: list[nn.Module]) -> None:
    model = Holder(*copy.deepcopy(layers)).train(fuse is tq.fuse_modules_qat)
    check(explained(model, lambda: fuse(model, [model.names])), "fusion-unsupported", *model.names,
         *(type(layer).__name__ for layer in layers), module="block.layer0")


def test_fusing_twice_is_told() -> None:
    model = tq.fuse_modules(Net().eval(), [["conv", "norm", "act"]])
    check(explained(model, lambda: tq.fuse_modules(model, [["conv", "norm", "act"]])), "fusion-unsupported",
          "only once")


@pytest.mark.parametrize(("fuse", "layers", "reason"), [
    (tq.fuse_modules_qat, [nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm2d(4)], "not yet supported in QAT"),
    (tq.fuse_modules_qat, [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)], "num_features"),
    (tq.fuse_modules_qat, [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)], "affine"),
    (tq.fuse_modules_qat, [nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, affine=False)], "affine"),
    (tq.fuse_modules, [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)], "running_mean"),
])
def test_other_refusals_to_fuse_are_passed_on(fuse: Any, layers: list[nn.Module], reason: str) -> None:
    model = Holder(*copy.deepcopy(layers)).train(fuse is tq.fuse_modules_qat)
    check(explained(model, lambda: fuse(model, [model.names])), "fusion-unsupported", reason, module="block.layer0")


@pytest.mark.parametrize("fuse", [tq.fuse_modules, tq.fuse_modules_qat])
@pytest.mark.parametrize("names", [["conv", "bn"], ["blocks.0.conv", "norm"], ["0", "1"]])
def test_a_name_that_is_not_there_is_told(fuse: Any, names: list[str]) -> None:
    check(explained(Net(), lambda: fuse(Net().eval(), [names])), "fusion-unknown-name", names[0], "named_modules()")


def test_fusing_in_train_mode_names_the_modules() -> None:
    model = Net().train()
    check(explained(model, lambda: tq.fuse_modules(model, [["conv", "norm", "act"]])), "fusion-in-wrong-mode",
         "conv, norm, act", "fuse_modules_qat", module="conv")


def test_prepare_fx_in_train_mode_is_told_as_that() -> None:
    check(explained(nn.Identity(), lambda: quantize_fx.prepare_fx(Net(stubs=False).train(), MAPPING, (IMAGES,))),
         "fusion-in-wrong-mode", "prepare_fx", "prepare_qat_fx")


# -- what is handed over --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prepare", "word"), [
    (lambda: tq.prepare(Net().eval(), qconfig_mapping=MAPPING), "prepare_qat_fx"),
    (lambda: tq.prepare_qat(Net().train(), qconfig_mapping=MAPPING), "prepare_qat_fx"),
    (lambda: tq.prepare_qat(Net().train(), MAPPING), "prepare_qat_fx"),
    (lambda: tq.prepare(configured(Net().eval(), MAPPING)), "prepare_qat_fx"),
    (lambda: tq.prepare_qat(configured(Net().train(), MAPPING)), "prepare_qat_fx"),
    (lambda: tq.quantize_dynamic(Net(), MAPPING), "prepare_qat_fx"),
    (lambda: tq.prepare(configured(Net().eval(), "x86")), "get_default_qat_qconfig()"),
    (lambda: tq.prepare_qat(configured(Net().train(), {"": None})), "get_default_qat_qconfig()"),
    (lambda: quantize_fx.prepare_fx(Net().eval(), tq.get_default_qconfig("x86"), (IMAGES,)), "set_global"),
    (lambda: quantize_fx.prepare_qat_fx(Net().train(), None, (IMAGES,)), "set_global"),
    (lambda: tq.QConfig(activation=tq.MinMaxObserver(), weight=tq.MinMaxObserver()), "with_args"),
    (lambda: prepare_pt2e(exported(Net(stubs=False), IMAGES), MAPPING), "XNNPACKQuantizer()"),
    (lambda: prepare_qat_pt2e(exported(Net(stubs=False), IMAGES, train=True), XNNPACKQuantizer), "XNNPACKQuantizer()"),
    (lambda: quantize_(nn.Sequential(nn.Linear(4, 4)), Int8WeightOnlyConfig), "instance"),
    (lambda: quantize_(nn.Sequential(nn.Linear(4, 4)), MAPPING), "instance"),
])
def test_a_qconfig_of_the_wrong_kind(prepare: Callable[[], Any], word: str) -> None:
    check(explained(nn.Identity(), prepare), "qconfig-of-wrong-kind", word)


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
def test_a_config_that_torchao_cannot_train_for(config: Any) -> None:
    check(explained(nn.Identity(), lambda: quantize_(nn.Sequential(nn.Linear(64, 8)), QATConfig(config(),
                                                                                               step="prepare"))),
         "qat-config-unsupported", config.__name__, "activation_config")


@pytest.mark.parametrize("prepare", [quantize_fx.prepare_fx, quantize_fx.prepare_qat_fx])
def test_example_inputs_that_are_missing(prepare: Any) -> None:
    check(explained(nn.Identity(), lambda: prepare(Net(), MAPPING)), "no-example-inputs", prepare.__name__)


@pytest.mark.parametrize("choose", [
    lambda: setattr(torch.backends.quantized, "engine", "none"), lambda: setattr(torch.backends.quantized, "engine",
                                                                                 "ABC"),
    lambda: tq.get_default_qconfig("tensorrt"), lambda: tq.get_default_qat_qconfig("cuda"),
    lambda: tq.get_default_qconfig_mapping("openvino"), lambda: tq.get_default_qat_qconfig_mapping("cpu"),
])
def test_an_engine_that_is_not_there_lists_those_that_are(choose: Callable[[], Any]) -> None:
    there = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    check(explained(nn.Identity(), choose), "no-quantized-engine", *there)


@pytest.mark.parametrize("make", [
    lambda: nnqat.Linear.from_float(nn.Linear(4, 4)), lambda: nnq.Conv2d.from_float(nn.Conv2d(3, 3, 1)),
    lambda: nnq.Linear.from_float(nn.Linear(4, 4)), lambda: nnqat.Conv2d.from_float(configured(nn.Conv2d(3, 3, 1),
                                                                                               None))])
def test_a_layer_without_qconfig(make: Callable[[], Any]) -> None:
    check(explained(nn.Identity(), make), "no-qconfig", "prepare and convert")


@pytest.mark.parametrize("of", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_names_itself(of: Any) -> None:
    model = nn.Sequential(nn.Sequential(of(4, 4)))
    check(explained(model, lambda: static(model, WORDS)), "embedding-qconfig", "float_qparams", module="0.0")


# -- observers ------------------------------------------------------------------------------------------------------


TENSOR_OBSERVERS = [tq.MinMaxObserver, tq.MovingAverageMinMaxObserver, tq.HistogramObserver]
CHANNEL_OBSERVERS = [tq.PerChannelMinMaxObserver, tq.MovingAveragePerChannelMinMaxObserver]


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize("observer", TENSOR_OBSERVERS)
@pytest.mark.parametrize("scheme", [torch.per_channel_symmetric, torch.per_channel_affine])
def test_a_per_tensor_observer_with_a_per_channel_scheme(observer: Any, scheme: torch.qscheme, *, fake: bool) -> None:
    made = (lambda: tq.FakeQuantize(observer=observer, qscheme=scheme)) if fake else lambda: observer(qscheme=scheme)
    check(explained(nn.Identity(), made), "observer-and-qscheme", "is a per-tensor observer", observer.__name__)


@pytest.mark.parametrize("observer", CHANNEL_OBSERVERS)
@pytest.mark.parametrize("scheme", [torch.per_tensor_symmetric, torch.per_tensor_affine])
def test_a_per_channel_observer_with_a_per_tensor_scheme(observer: Any, scheme: torch.qscheme) -> None:
    check(explained(nn.Identity(), lambda: observer(qscheme=scheme)(ROWS)), "observer-and-qscheme",
         "is a per-channel observer", observer.__name__)


def test_a_scheme_without_kernel_names_the_layer() -> None:
    weight = tq.PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_affine_float_qparams)
    model = nn.Sequential(tq.QuantStub(), nn.Sequential(nn.Conv2d(3, 4, 1)))
    qconfig = tq.QConfig(activation=tq.MinMaxObserver, weight=weight)
    check(explained(model, lambda: static(model, IMAGES, qconfig=qconfig)), "observer-and-qscheme", module="1.0")


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint32, torch.int8])
@pytest.mark.parametrize(("layer", "inputs"), [(nn.Linear(4, 4), ROWS), (nn.Conv2d(3, 4, 1), IMAGES),
                                               (nn.Conv1d(3, 4, 1), SIGNALS), (nn.Conv3d(3, 4, 1), VOLUMES)])
def test_weights_of_a_dtype_without_kernel(layer: nn.Module, inputs: Tensor, dtype: torch.dtype) -> None:
    qconfig = tq.QConfig(activation=tq.MinMaxObserver, weight=tq.MinMaxObserver.with_args(dtype=dtype))
    model = nn.Sequential(tq.QuantStub(), copy.deepcopy(layer))
    check(explained(model, lambda: static(model, inputs, qconfig=qconfig)), "weight-dtype", "torch.qint8", module="1")


@pytest.mark.parametrize("make", [lambda: tq.MinMaxObserver(dtype=torch.float32)(ROWS),
                                  lambda: tq.FakeQuantize(dtype=torch.int64)(ROWS),
                                  lambda: tq.HistogramObserver(dtype=torch.float16)(ROWS)])
def test_a_dtype_that_nothing_quantizes_to(make: Callable[[], Any]) -> None:
    check(explained(nn.Identity(), make), "observer-dtype", "quint8")


@pytest.mark.parametrize("given", [
    {"dtype": torch.qint8, "quant_min": 0, "quant_max": 255}, {"dtype": torch.quint8, "quant_min": -128,
                                                               "quant_max": 127},
    {"quant_min": 5, "quant_max": 1}, {"quant_min": 1, "quant_max": 255}])
def test_a_range_that_does_not_fit(given: dict[str, Any]) -> None:
    check(explained(nn.Identity(), lambda: tq.FakeQuantize(observer=tq.MinMaxObserver, **given)(ROWS)),
          "observer-range")


def test_activations_per_channel() -> None:
    qconfig = tq.QConfig(activation=tq.PerChannelMinMaxObserver, weight=tq.default_weight_observer)
    model = nn.Sequential(tq.QuantStub(), nn.Linear(4, 4))
    check(explained(model, lambda: static(model, torch.randn(2, 4), qconfig=qconfig)(ROWS)), "per-channel-activations")


@pytest.mark.parametrize(("layer", "inputs"), [(nn.ConvTranspose1d(3, 4, 3), SIGNALS), (nn.ConvTranspose2d(3, 4, 3),
                                                                                        IMAGES),
                                               (nn.ConvTranspose3d(3, 4, 3), VOLUMES)])
def test_a_transposed_convolution_per_channel(layer: nn.Module, inputs: Tensor) -> None:
    model = nn.Sequential(tq.QuantStub(), layer)
    check(explained(model, lambda: static(model, inputs)), "per-channel-transposed-conv", module="1")
    plain, mapping = nn.Sequential(copy.deepcopy(layer)), tq.QConfigMapping().set_global(tq.get_default_qconfig("x86"))
    check(explained(plain, lambda: quantize_fx.convert_fx(by_fx(plain, inputs, mapping=mapping))),
         "per-channel-transposed-conv", module="0")


def test_packing_a_transposed_convolution_per_channel() -> None:
    weight = torch.quantize_per_channel(torch.randn(3, 4, 3, 3), torch.ones(4), torch.zeros(4).long(), 1, torch.qint8)
    pack = torch.ops.quantized.conv_transpose2d_prepack
    check(explained(nn.Identity(), lambda: pack(weight, None, [1, 1], [0, 0], [0, 0], [1, 1], 1)),
         "per-channel-transposed-conv")


def test_a_dynamic_qconfig_for_static_quantization() -> None:
    model = nn.Sequential(tq.QuantStub(), nn.Linear(4, 4))
    check(explained(model, lambda: static(model, ROWS, qconfig=tq.default_dynamic_qconfig.__class__(
        activation=tq.PlaceholderObserver, weight=tq.default_weight_observer))), "placeholder-observer", module="0")


def test_a_layer_that_returns_several_tensors() -> None:
    model = nn.Sequential(nn.Sequential(nn.GRU(4, 4)))
    check(explained(model, lambda: static(model, torch.randn(3, 2, 4))), "tuple-observed", "GRU", module="0.0")


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_calibration_data_that_are_not_finite(value: float) -> None:
    bad = IMAGES.clone()
    bad[0, 0, 0, 0] = value
    check(explained(Net(), lambda: static(Net(), bad)), "values-not-finite", "calibration data",
         module="quant" if value != value else "fc")
    check(explained(Net(stubs=False), lambda: by_fx(Net(stubs=False), bad)), "values-not-finite", "calibration data")
    graph = prepare_pt2e(exported(Net(stubs=False), IMAGES), quantizer())
    check(explained(graph, lambda: graph(bad)), "values-not-finite", "calibration data")


@pytest.mark.slow
def test_training_data_that_are_not_finite() -> None:
    graph = prepare_qat_pt2e(exported(Net(stubs=False), IMAGES, train=True), quantizer(qat=True))
    graph(IMAGES * float("nan"))
    check(explained(graph, lambda: convert_pt2e(graph)), "values-not-finite")


@pytest.mark.parametrize("qat", [False, True])
def test_weights_that_are_not_finite_are_named(*, qat: bool) -> None:
    model = Net()
    model.fc.weight.data[0, 0] = float("nan")
    model.train(qat).qconfig = (tq.get_default_qat_qconfig if qat else tq.get_default_qconfig)("x86")
    prepared = (tq.prepare_qat if qat else tq.prepare)(model)
    check(explained(prepared, lambda: prepared(IMAGES)), "values-not-finite", "the weights of fc", module="fc")


# -- order ----------------------------------------------------------------------------------------------------------


def propagated(model: nn.Module) -> nn.Module:
    model.qconfig = tq.get_default_qconfig("x86")
    tq.propagate_qconfig_(model)
    return model


@pytest.mark.parametrize("convert", [
    lambda: tq.convert(propagated(Net().eval())), lambda: quantize_fx.convert_fx(torch.fx.symbolic_trace(Net())),
    lambda: quantize_fx.convert_fx(Net()), lambda: convert_pt2e(exported(Net(stubs=False), IMAGES)),
    lambda: tq.convert(by_fx(Net(stubs=False), IMAGES)),
    lambda: quantize_fx.convert_fx(tq.prepare(propagated(Net().eval()))),
])
def test_converting_what_was_never_prepared(convert: Callable[[], Any]) -> None:
    check(explained(nn.Identity(), convert), "convert-without-prepare", "prepare")


def test_converting_twice() -> None:
    model = quantize_fx.convert_fx(by_fx(Net(stubs=False), IMAGES))
    check(explained(model, lambda: quantize_fx.convert_fx(model)), "converted-twice", "only once")


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
def test_quantizing_twice_by_torchao(config: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    quantize_(model, config())
    check(explained(model, lambda: quantize_(model, config())), "converted-twice", "only once")


def test_preparing_twice() -> None:
    prepared = by_fx(Net(stubs=False), IMAGES)
    check(explained(prepared, lambda: by_fx(prepared, IMAGES)), "prepared-twice", "only once")
    graph = prepare_pt2e(exported(Net(stubs=False), IMAGES), quantizer())
    check(explained(graph, lambda: prepare_pt2e(copy.deepcopy(graph), quantizer())), "prepared-twice", "only once")


@pytest.mark.parametrize(("work", "kind"), [
    (lambda: prepare_pt2e(Net(), quantizer()), "Net"), (lambda: prepare_qat_pt2e(nn.Sequential(), quantizer()),
                                                        "Sequential"),
    (lambda: prepare_pt2e(torch.export.export(Net(stubs=False), (IMAGES,)), quantizer()), "ExportedProgram"),
    (lambda: convert_pt2e(Net()), "Net"), (lambda: move_exported_model_to_eval(Net()), "Net"),
])
def test_pt2e_of_what_was_not_exported(work: Callable[[], Any], kind: str) -> None:
    check(explained(nn.Identity(), work), "not-exported", kind, "torch.export.export")


# -- tracing --------------------------------------------------------------------------------------------------------


def while_small(x: Tensor) -> Tensor:
    while x.sum() < 100:
        x = x + 1
    return x


def written(x: Tensor) -> Tensor:
    x[:, 0] = 1
    return x


@pytest.mark.parametrize("function", [
    lambda x: x if x.sum() > 0 else -x, lambda x: torch.stack([row + 1 for row in x]), lambda x: x * len(x),
    lambda x: sum(x for _ in range(x.shape[0])), lambda x: x * float(x.mean()), lambda x: x * int(x.mean()),
    lambda x: torch.from_numpy(x.numpy()), lambda x: x if x.shape[0] > 1 else x + 1, while_small, written,
    lambda x: x if bool((x > 0).all()) else -x, lambda x: x if f"{x.dim():d}" == "2" else -x,
    lambda x: x + torch.zeros(x.shape[0], 4), lambda x: torch.cat([*x.chunk(1)]),
])
@pytest.mark.parametrize("prepare", [quantize_fx.prepare_fx, quantize_fx.prepare_qat_fx])
def test_code_that_cannot_be_traced_names_module_and_line(function: Callable[[Tensor], Any], prepare: Any) -> None:
    model = nn.Sequential(nn.Sequential(Then(function))).train(prepare is quantize_fx.prepare_qat_fx)
    finding = check(explained(model, lambda: prepare(model, MAPPING, (ROWS,))), "fx-cannot-trace",
                   "set_non_traceable_module_names", module="0.0")
    lines, first = inspect.getsourcelines(function)
    place = finding.evidence["line"]
    assert place.partition(":")[0] == "test_errors_of_preparing.py"
    assert first <= int(place.partition(":")[2]) < first + len(lines)
