"""Advice about PyTorch's own errors in fusing, preparing, observing, converting, exporting, saving and loading."""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.ao.quantization import quantize_fx
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

from tests.remedies.rows_errors_of_calls import ROWS, Uses, follows
from tests.remedies.walk import Row

IMAGES, PAIR, WORDS = torch.randn(1, 3, 8, 8), torch.randn(2, 4), torch.tensor([[1, 2]])
MAPPING = tq.get_default_qconfig_mapping("x86")
PREPARING, OBSERVING, EXPORTING, LOADING = (
    f"workflows/known_errors/{name}.py" for name in ("preparing", "observing", "exporting", "loading"))


def dense() -> nn.Module:
    return nn.Sequential(tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub())


def conv_bn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.SiLU())


def configured(model: nn.Module, qconfig: Any = None) -> nn.Module:
    model.qconfig = qconfig or tq.get_default_qat_qconfig("x86")
    return model


def prepared(model: nn.Module | None = None, *inputs: Tensor, qconfig: Any = None) -> nn.Module:
    """Prepare eagerly after training, and calibrate."""
    made: nn.Module = tq.prepare(configured((model or dense()).eval(), qconfig or tq.get_default_qconfig("x86")))
    made(*(inputs or (PAIR,)))
    return made


def converted(model: nn.Module | None = None, *inputs: Tensor, qconfig: Any = None) -> nn.Module:
    made: nn.Module = tq.convert(prepared(model, *inputs, qconfig=qconfig))
    return made


def by_fx(model: nn.Module, *inputs: Tensor, custom: Any = None) -> nn.Module:
    made: nn.Module = quantize_fx.prepare_fx(model.eval(), MAPPING, inputs or (PAIR,), prepare_custom_config=custom)
    made(*(inputs or (PAIR,)))
    return made


def quantizer() -> XNNPACKQuantizer:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config())


def exported(**options: Any) -> Any:
    return torch.export.export(nn.Sequential(nn.Linear(4, 4)).eval(), (PAIR,), **options).module()


def pt2e() -> Any:
    graph = prepare_pt2e(exported(), quantizer())
    graph(PAIR)
    return convert_pt2e(graph)


def engine(name: str) -> None:
    torch.backends.quantized.engine = name


def by_torchao(config: Any, *, times: int = 1) -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    for _ in range(times):
        quantize_(model, config)


def observers(activation: Any = tq.MinMaxObserver, weight: Any = tq.default_weight_observer) -> Any:
    return tq.QConfig(activation=activation, weight=weight)


def with_weights(value: float) -> None:
    model = dense()
    model[1].weight.data[0, 0] = value
    prepared(model)


NAN = dense()
NAN[1].weight.data[0, 0] = float("nan")
FLOAT_WORDS = tq.get_default_qat_qconfig_mapping("x86").set_object_type(nn.Embedding, None)


def embedding(mapping: Any) -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 2)).train()
    quantize_fx.prepare_qat_fx(model, mapping, (WORDS,))


def recurrent(*, skipped: bool) -> None:
    model = nn.Sequential(nn.GRU(4, 4))
    if skipped:
        model[0].qconfig = None  # type: ignore[assignment]
    prepared(model, torch.randn(3, 2, 4))


def fused(fuse: Any, names: list[str], *, train: bool, half: bool = False) -> None:
    model = conv_bn().train(train)
    model[0].train(train != half)
    fuse(model, [names])


def saved(model: nn.Module, *, whole: bool) -> None:
    file = io.BytesIO()
    torch.save(model if whole else model.state_dict(), file)
    file.seek(0)
    torch.load(file)


def to_onnx(make: Callable[[], Any]) -> Callable[[], Any]:
    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            torch.onnx.export(make(), (PAIR,), Path(folder) / "x.onnx", dynamo=True, verbose=False)
    return work


BRANCH = lambda self, x: x if x.sum() > 0 else -x  # noqa: E731 - the user's code of the rows below
WHERE = lambda self, x: torch.where(x.sum() > 0, x, -x)  # noqa: E731 - the same as tensor operations
SKIPPED = PrepareCustomConfig().set_non_traceable_module_names(["1"])
SIZE = {0: torch.export.Dim("size")}

PREPARE_ROWS = [
    follows(PREPARING, "call prepare_qat_fx for QAT", lambda: quantize_fx.prepare_fx(conv_bn().train(), MAPPING,
                                                                                     (IMAGES,)),
            lambda: quantize_fx.prepare_qat_fx(conv_bn().train(), MAPPING, (IMAGES,))),
    follows(PREPARING, "call fuse_modules_qat on a model in train mode",
            lambda: fused(tq.fuse_modules, ["0", "1"], train=True), lambda: fused(tq.fuse_modules_qat, ["0", "1"],
                                                                                  train=True)),
    follows(PREPARING, "call .train() on the whole model before",
            lambda: fused(tq.fuse_modules_qat, ["0", "1"], train=True, half=True),
            lambda: fused(tq.fuse_modules_qat, ["0", "1"], train=True)),
    follows(PREPARING, "fuse only what follows each other", lambda: fused(tq.fuse_modules, ["0", "1", "2"],
                                                                          train=False),
            lambda: fused(tq.fuse_modules, ["0", "1"], train=False)),
    follows(PREPARING, "leave these modules out of the list",
            lambda: tq.fuse_modules_qat(nn.Sequential(nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3)), [["0", "1"]]),
            lambda: tq.prepare(nn.Sequential(nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3)).eval())),
    follows(PREPARING, "take the names of what is fused from", lambda: fused(tq.fuse_modules, ["0", "bn"], train=False),
            lambda: fused(tq.fuse_modules, ["0", "1"], train=False)),
    follows(PREPARING, "call .train() before prepare_qat.", lambda: tq.prepare_qat(configured(dense().eval())),
            lambda: tq.prepare_qat(configured(dense().train()))),
    follows(PREPARING, "call prepare_qat_fx or prepare_fx, which", lambda: tq.prepare_qat(dense(),
                                                                                          qconfig_mapping=MAPPING),
            lambda: quantize_fx.prepare_qat_fx(dense(), MAPPING, (PAIR,))),
    follows(PREPARING, "set model.qconfig to a QConfig", lambda: tq.prepare_qat(configured(dense().train(), "x86")),
            lambda: tq.prepare_qat(configured(dense().train()))),
    follows(PREPARING, "pass a QConfigMapping:",
            lambda: quantize_fx.prepare_fx(dense().eval(), tq.get_default_qconfig("x86"), (PAIR,)),
            lambda: quantize_fx.prepare_fx(
                dense().eval(), tq.QConfigMapping().set_global(tq.get_default_qconfig("x86")), (PAIR,))),
    follows(PREPARING, "pass the observer's class", lambda: observers(tq.MinMaxObserver()), observers),
    follows(PREPARING, "pass a quantizer:", lambda: prepare_pt2e(exported(), MAPPING),
            lambda: prepare_pt2e(exported(), quantizer())),
    follows(PREPARING, "pass quantize_ an instance of a config", lambda: by_torchao(Int8WeightOnlyConfig),
            lambda: by_torchao(Int8WeightOnlyConfig())),
    follows(PREPARING, "give QATConfig an activation_config",
            lambda: by_torchao(QATConfig(Int8DynamicActivationInt8WeightConfig(), step="prepare")),
            lambda: by_torchao(QATConfig(
                activation_config=IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False),
                weight_config=IntxFakeQuantizeConfig(torch.int8, "per_channel"), step="prepare"))),
    follows(PREPARING, "pass example_inputs, a tuple", lambda: quantize_fx.prepare_fx(dense().eval(), MAPPING),
            lambda: quantize_fx.prepare_fx(dense().eval(), MAPPING, (PAIR,))),
    follows(PREPARING, "set torch.backends.quantized.engine to one of", lambda: engine("none"),
            lambda: engine(torch.backends.quantized.supported_engines[-1])),
    follows(PREPARING, "set model.qconfig, and leave making", lambda: nnq.Linear.from_float(nn.Linear(4, 4)),
            converted),
    follows(PREPARING, "prepare the float model, and only once.", lambda: by_fx(by_fx(dense())),
            lambda: by_fx(dense())),
    follows(PREPARING, "convert a prepared model only once.",
            lambda: quantize_fx.convert_fx(quantize_fx.convert_fx(by_fx(nn.Sequential(nn.Linear(4, 4))))),
            lambda: quantize_fx.convert_fx(by_fx(nn.Sequential(nn.Linear(4, 4))))),
    follows(PREPARING, "call quantize_ on the float model", lambda: by_torchao(Int8WeightOnlyConfig(), times=2),
            lambda: by_torchao(Int8WeightOnlyConfig())),
    follows(PREPARING, "call prepare_qat or prepare before convert",
            lambda: quantize_fx.convert_fx(torch.fx.symbolic_trace(nn.Linear(4, 4))),
            lambda: quantize_fx.convert_fx(by_fx(nn.Linear(4, 4)))),
    follows(PREPARING, "call convert_fx on what prepare_fx", lambda: quantize_fx.convert_fx(prepared()),
            lambda: quantize_fx.convert_fx(by_fx(dense()))),
    follows(PREPARING, "pass torch.export.export(model", lambda: prepare_pt2e(nn.Linear(4, 4), quantizer()),
            lambda: prepare_pt2e(torch.export.export(nn.Linear(4, 4), (PAIR,)).module(), quantizer())),
    follows(PREPARING, "move that code into a module of its own", lambda: by_fx(nn.Sequential(nn.Linear(4, 4),
                                                                                              Uses(BRANCH))),
            lambda: by_fx(nn.Sequential(nn.Linear(4, 4), Uses(BRANCH)), custom=SKIPPED)),
]

OBSERVER_ROWS = [
    follows(OBSERVING, "take weights from before training", lambda: with_weights(float("nan")),
            lambda: with_weights(1.0),
            model=NAN),
    follows(OBSERVING, "look for NaN or infinity in the calibration", lambda: prepared(dense(), PAIR * float("nan")),
            lambda: prepared(dense(), PAIR)),
    follows(OBSERVING, "set its qconfig to None, or to",
            lambda: embedding(tq.get_default_qat_qconfig_mapping("x86").set_object_type(
                nn.Embedding, tq.get_default_qat_qconfig("x86"))), lambda: embedding(FLOAT_WORDS)),
    follows(OBSERVING, "use a MinMaxObserver for a per-tensor",
            lambda: tq.PerChannelMinMaxObserver(qscheme=torch.per_tensor_affine)(PAIR),
            lambda: tq.MinMaxObserver(qscheme=torch.per_tensor_affine)(PAIR)),
    follows(OBSERVING, "use a PerChannelMinMaxObserver", lambda: tq.MinMaxObserver(qscheme=torch.per_channel_symmetric),
            lambda: tq.PerChannelMinMaxObserver(qscheme=torch.per_channel_symmetric)),
    *(follows(OBSERVING, text, lambda wrong=wrong, layers=layers, inputs=inputs: converted(
        nn.Sequential(tq.QuantStub(), *layers()), inputs, qconfig=wrong)(inputs),
        lambda right=right, layers=layers, inputs=inputs: converted(
            nn.Sequential(tq.QuantStub(), *layers()), inputs, qconfig=right)(inputs))
      for text, layers, inputs, wrong, right in (
        ("set qscheme=torch.per_channel_symmetric in", lambda: [nn.Conv2d(3, 3, 1)], IMAGES,
         observers(weight=tq.PerChannelMinMaxObserver.with_args(
             dtype=torch.qint8, qscheme=torch.per_channel_affine_float_qparams)),
         observers(weight=tq.default_per_channel_weight_observer)),
        ("use a per-tensor observer for activations", lambda: [nn.Linear(4, 4)], PAIR,
         observers(tq.PerChannelMinMaxObserver), observers()),
        ("give transposed convolutions a qconfig", lambda: [nn.ConvTranspose2d(3, 3, 1)], IMAGES,
         observers(weight=tq.default_per_channel_weight_observer), observers()),
        ("set dtype=torch.qint8 in the qconfig's weight", lambda: [nn.Linear(4, 4)], PAIR,
         observers(weight=tq.MinMaxObserver), observers()),
        ("use a qconfig whose activation observer keeps", lambda: [nn.Linear(4, 4)], PAIR,
         observers(tq.PlaceholderObserver), observers()))),
    follows(OBSERVING, "set the observer's dtype to torch.quint8", lambda: tq.MinMaxObserver(dtype=torch.float32)(PAIR),
            lambda: tq.MinMaxObserver(dtype=torch.quint8)(PAIR)),
    follows(OBSERVING, "set quant_min and quant_max to what the dtype holds",
            lambda: tq.FakeQuantize(observer=tq.MinMaxObserver, dtype=torch.qint8, quant_min=0, quant_max=255),
            lambda: tq.FakeQuantize(observer=tq.MinMaxObserver, dtype=torch.qint8, quant_min=-128, quant_max=127)),
    follows(OBSERVING, "set the qconfig of that module to None", lambda: recurrent(skipped=False),
            lambda: recurrent(skipped=True)),
]

EXPORT_ROWS: list[Row] = [
    follows(EXPORTING, "export it with dynamic_shapes", lambda: exported()(ROWS[:1]),
            lambda: exported(dynamic_shapes={"input": {0: torch.export.Dim("batch")}})(torch.randn(7, 4))),
    follows(EXPORTING, "bring every batch to one shape: pad token ids", lambda: exported()(torch.randn(2, 5)),
            lambda: exported()(torch.randn(2, 4))),
    follows(EXPORTING, "call it with the number, kinds and names", lambda: exported()(PAIR, PAIR),
            lambda: exported()(PAIR)),
    follows(EXPORTING, "call torchao.quantization.pt2e.move_exported", lambda: pt2e().eval(),
            lambda: move_exported_model_to_eval(pt2e())),
    follows(EXPORTING, "use example inputs of 2 or more",
            lambda: torch.export.export(nn.Sequential(nn.Linear(4, 4)), (PAIR[:1],), dynamic_shapes=(SIZE,)),
            lambda: torch.export.export(nn.Sequential(nn.Linear(4, 4)), (PAIR,), dynamic_shapes=(SIZE,))),
    follows(EXPORTING, "leave that dimension out of dynamic_shapes",
            lambda: torch.export.export(Uses(lambda self, x: x * len(x)), (PAIR,), dynamic_shapes=(SIZE,)),
            lambda: torch.export.export(Uses(lambda self, x: x * len(x)), (PAIR,))),
    follows(EXPORTING, "replace it by tensor operations", lambda: torch.export.export(Uses(BRANCH), (PAIR,)),
            lambda: torch.export.export(Uses(WHERE), (PAIR,))),
    follows(EXPORTING, "quantize the exported float model by PT2E", lambda: torch.export.export(converted(), (PAIR,)),
            lambda: torch.export.export(pt2e(), (PAIR,))),
    follows(EXPORTING, "quantize by PT2E, and give torch.onnx.export",
            to_onnx(lambda: tq.prepare_qat(configured(dense().train())).eval()), to_onnx(pt2e)),
    follows(EXPORTING, "save model.state_dict(), and load", lambda: saved(pt2e(), whole=True),
            lambda: saved(pt2e(), whole=False), model=prepared()),
    follows(EXPORTING, "save the state_dict instead of the model", lambda: saved(converted(), whole=True),
            lambda: saved(converted(), whole=False), model=prepared()),
]

MAKE: dict[str, Callable[[], nn.Module]] = {
    "float": dense, "prepared": prepared, "int8": converted,
    "other int8": lambda: quantize_fx.convert_fx(by_fx(nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.Identity())))}


def loads(state: str, model: str) -> Callable[[], Any]:
    return lambda: copy.deepcopy(MAKE[model]()).load_state_dict(MAKE[state]().state_dict())


def loads_then(state: str, then: Callable[[nn.Module], Any]) -> Callable[[], Any]:
    """Load into a model of the same stage, and go on from there."""
    def work() -> None:
        model = MAKE[state]()
        model.load_state_dict(MAKE[state]().state_dict())
        then(model)
    return work


LOAD_ROWS = [
    follows(LOADING, "fuse, prepare and convert the model", loads("int8", "float"), loads("int8", "int8")),
    follows(LOADING, "convert the prepared model before loading", loads("int8", "prepared"), loads("int8", "int8")),
    follows(LOADING, "fuse and prepare the model as", loads("prepared", "float"), loads("prepared", "prepared")),
    follows(LOADING, "load it into the prepared model", loads("prepared", "int8"), loads_then("prepared", tq.convert)),
    follows(LOADING, "load it into the float model, and prepare", loads("float", "prepared"), loads_then("float",
                                                                                                         prepared)),
    follows(LOADING, "load it into the float model, and quantize", loads("float", "int8"), loads_then("float",
                                                                                                      converted)),
    follows(LOADING, "make the model by the same workflow", loads("other int8", "int8"), loads("int8", "int8")),
]
