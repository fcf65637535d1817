"""Advice about PyTorch's own errors when converted models are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.nn import functional as F

from pytest_qat.core import torch_state
from pytest_qat.workflows.known_errors import explain
from tests.remedies.walk import Row, World

ROWS = torch.randn(2, 4)
CALLS = "workflows/known_errors/int8_calls.py"
FloatFunctional = torch.ao.nn.quantized.FloatFunctional


def explained(action: Callable[[], Any], model: nn.Module | None = None) -> Callable[[World], object]:
    """Do what a user does by hand, and explain what PyTorch raises."""
    def work(world: World) -> object:
        with torch_state.preserved_torch_state(seed=0), torch_state.quantized_engine("x86"):
            try:
                action()
            except Exception as error:
                found = explain(error, model=model or nn.Identity(), stage="convert")
                return found or f"unexplained: {error}"
        return None
    return work


def follows(path: str, text: str, wrong: Callable[[], Any], right: Callable[[], Any], *,
            model: nn.Module | None = None) -> Row:
    """Return the row of advice on an error: what raises it, and the same with the advice followed."""
    return Row(path=path, text=text, calls=explained(wrong, model), follow=explained(right))


def by_hand(*layers: nn.Module, inputs: Tensor = ROWS, qconfig: Any = None) -> nn.Module:
    """Quantize eagerly and call the int8 model."""
    model = nn.Sequential(*layers).train()
    model.qconfig = qconfig or tq.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    prepared = tq.prepare_qat(model)
    prepared(inputs)
    int8: nn.Module = tq.convert(prepared.eval())
    int8(inputs)
    return int8


def left_in_float(layer: nn.Module) -> nn.Module:
    layer.qconfig = None  # type: ignore[assignment]
    return layer


class Uses(nn.Module):
    """A function in a forward of the user's, and a module that it uses."""

    def __init__(self, function: Callable[[Uses, Tensor], Any]) -> None:
        super().__init__()
        self.function, self.add_ = function, FloatFunctional()
        self.dequant, self.quant = tq.DeQuantStub(), tq.QuantStub()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def between(function: Callable[[Uses, Tensor], Any], *behind: nn.Module) -> Callable[[], Any]:
    return lambda: by_hand(tq.QuantStub(), nn.Linear(4, 4), Uses(function), *behind, tq.DeQuantStub())


def never_dequantized() -> tuple[nn.Module, Tensor]:
    with torch_state.preserved_torch_state(seed=0), torch_state.quantized_engine("x86"):
        model = by_hand(tq.QuantStub(), nn.Linear(4, 4))
        return model, model(ROWS)


MODEL, OUTPUT = never_dequantized()
DYNAMIC = tq.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
INT8 = torch.quantize_per_tensor(ROWS, 0.1, 0, torch.quint8)
INT32 = tq.QConfig(activation=tq.FakeQuantize.with_args(
    observer=tq.MinMaxObserver, dtype=torch.qint32, quant_min=-128, quant_max=127), weight=tq.default_weight_fake_quant)


def trained(*, converted: bool) -> None:
    model = nn.Sequential(tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub()).train()
    model.qconfig = tq.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    prepared = tq.prepare_qat(model)
    prepared(ROWS).sum().backward()
    if converted:
        MODEL(ROWS).dequantize().sum().backward()


def joined(*dtypes: torch.dtype) -> Tensor:
    parts = [torch.quantize_per_tensor(ROWS, 0.1, 0, dtype) for dtype in dtypes]
    return torch.cat(parts)


CALL_ROWS = [
    follows(CALLS, "put a QuantStub in front of", lambda: by_hand(nn.Linear(4, 2), tq.DeQuantStub()),
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2), tq.DeQuantStub())),
    follows(CALLS, "leave out the second QuantStub", lambda: by_hand(tq.QuantStub(), tq.QuantStub(), nn.Linear(4, 2)),
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2))),
    follows(CALLS, "put a DeQuantStub at the end of forward", lambda: F.softmax(OUTPUT, 1),
            lambda: F.softmax(tq.DeQuantStub()(by_hand(tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub())(ROWS)), 1),
            model=MODEL),
    follows(CALLS, "put a DeQuantStub in front of the dynamic layer", lambda: DYNAMIC(INT8),
            lambda: DYNAMIC(INT8.dequantize())),
    follows(CALLS, "put a DeQuantStub in front of the layer that stays",
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 4), left_in_float(nn.LayerNorm(4))),
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub(), left_in_float(nn.LayerNorm(4)))),
    follows(CALLS, "replace it by a FloatFunctional of its own",
            between(lambda self, x: x + x if x.is_quantized else self.add_.add(x, x)),
            between(lambda self, x: self.add_.add(x, x))),
    follows(CALLS, "run it in float, between", between(lambda self, x: F.silu(x)),
            between(lambda self, x: self.quant(F.silu(self.dequant(x))))),
    follows(CALLS, "put a DeQuantStub before the float layer",
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 4), left_in_float(nn.Linear(4, 2))),
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub(), left_in_float(nn.Linear(4, 2)))),
    follows(CALLS, "bring both to one form there", between(lambda self, x: self.add_.add(x, ROWS)),
            between(lambda self, x: self.add_.add(x, self.quant(ROWS)))),
    follows(CALLS, "give all that is joined one dtype",
            lambda: joined(torch.quint8, torch.qint8), lambda: joined(torch.quint8, torch.quint8)),
    follows(CALLS, "call .dequantize() instead of the cast.", INT8.float, INT8.dequantize),
    follows(CALLS, "call .float() on the inputs",
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2), tq.DeQuantStub())(ROWS.double()),
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2), tq.DeQuantStub())(ROWS.double().float())),
    follows(CALLS, "set dtype=torch.quint8 in the qconfig's activation",
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2), qconfig=INT32),
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2))),
    follows(CALLS, "give the int8 model inputs of the shape",
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2), tq.DeQuantStub())(torch.randn(1, 5)),
            lambda: by_hand(tq.QuantStub(), nn.Linear(4, 2), tq.DeQuantStub())(torch.randn(1, 4))),
    follows(CALLS, "train the prepared model", lambda: trained(converted=True), lambda: trained(converted=False),
            model=MODEL),
]
