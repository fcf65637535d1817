"""Errors of calling a converted model: float and int8 tensors at the wrong places, dtypes, shapes, devices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch

from pytest_qat.workflows.known_errors.known import Known
from pytest_qat.workflows.known_errors.raised import Raised, holds_int8

__all__ = ["INT8_CALLS"]

_NO_KERNEL = (
    r"Could not run '[\w:.]+' with arguments from the 'Quantized\w+' backend|empty_strided not supported on quantized"
    r"|\"\w+\" not implemented for 'QU?Int\d+'|Expected a floating point or complex tensor as input. Got QU?Int"
    r"|but got Quantized\w+Type|Got unsupported ScalarType QU?Int")
_MIXED = (
    r"promoteTypes with quantized numbers|Could not run 'aten::qscheme'|same dtype, but got.*\bQU?Int"
    r"|\bc10::qu?int.*should be the same|c10::qu?int\d+ != |!= c10::qu?int|Type promoting not supported. Got .*QU?Int"
    r"|(Add|Mul|MatMul) operands should have same data type|Copying from quantized Tensor to non-quantized")
_SIGNS = MappingProxyType({"add": "+", "sub": "-", "mul": "*", "div": "/", "mm": "@", "bmm": "@", "pow": "**"})
_FLOAT_FUNCTIONAL = MappingProxyType({"add": "add", "mul": "mul", "mm": "matmul", "bmm": "matmul", "cat": "cat"})
"""Operations that FloatFunctional has, with its names for them."""


def _name(raised: Raised) -> str:
    """Return the bare name of the operation that has no kernel, such as `add`; empty where the text has none."""
    found = re.search(r"(?:Could not run '|\")(?:\w+::)?(\w+)|([\w.]+): Expected a floating|checking arguments for "
                      r"(\w+)",
                      raised.text)
    return next(filter(None, found.groups()), "") if found else ""


def _operation(raised: Raised) -> Mapping[str, str]:
    name = _name(raised)
    aten = f"aten::{name}" if "'aten::" in raised.text else name
    sign = f" (the operator {_SIGNS[name]})" if name in _SIGNS else ""
    layer = type(raised.owner).__name__ if raised.owner is not None else "module"
    return {"op": f"{aten}{sign}" if name else "this operation", "method": _FLOAT_FUNCTIONAL.get(name, name),
            "layer": layer}


def _outside(raised: Raised) -> bool:
    return raised.outside


def _in_float_layer(raised: Raised) -> bool:
    return raised.owner is not None and type(raised.owner).__module__.startswith("torch.nn.modules.")


def _in_dynamic_layer(raised: Raised) -> bool:
    return raised.in_int8_layer and ".dynamic." in type(raised.owner).__module__


def _has_float_functional(raised: Raised) -> bool:
    return _name(raised) in _FLOAT_FUNCTIONAL


def _int8_is_there(raised: Raised) -> bool:
    return any(tensor.is_quantized for tensor in raised.tensors())


def _shapes(raised: Raised) -> Mapping[str, str]:
    """Return the shape of the input of the layer, and what the layer takes."""
    step = next(step for step in reversed(raised.steps) if step.module is raised.owner)
    given = next((step.frame.f_locals[name] for name in ("input", "x") if name in step.frame.f_locals), None)
    takes = next((f", which takes {getattr(raised.owner, name)} {what}" for name, what in (
        ("in_channels", "channels"), ("in_features", "features")) if hasattr(raised.owner, name)), "")
    return {"shape": f" of shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else "", "takes": takes}


INT8_CALLS = (
    Known(code="int8-on-gpu",
          pattern=r"(?:Could not run|for operator) '(?P<op>quantized::[\w.]+|[\w:.]+(?=' with arguments from the "
                  r"'Quant))'"
                  r".*(?:from the|dispatch key) '(?:Quantized)?(?:CUDA|MPS|XPU)",
          message="{where} runs {op}{at} on a GPU, and the int8 kernels of eager and FX quantization run on CPUs only.",
          remedy="move the converted model and its inputs to the CPU."),
    Known(code="float-into-int8",
          pattern=r"Could not run 'quantized::(?P<op>[\w.]+)' with arguments from the 'CPU(?:TensorId)?'"
                  r"|Input to 'quantized\.(?P<named>\w+)' must be quantized",
          message="{where} runs the int8 kernel quantized::{op}{named}{at}, but a float tensor reaches it: nothing "
                  "quantizes the tensor on its way there.",
          remedy="put a QuantStub in front of {where}."),
    Known(code="quantized-twice", pattern=r"Could not run 'aten::quantize_per_\w+' with arguments from the 'Quantized",
          message="{where} quantizes a tensor{at} that is int8 already.",
          remedy="leave out the second QuantStub on that path."),
    Known(code="output-not-dequantized", pattern=f"{_NO_KERNEL}|{_MIXED}", when=_outside, facts=_operation,
          message="the model's output is an int8 tensor, since no DeQuantStub stands at the end of forward, and {op} "
                  "behind the model takes float tensors only.",
          remedy="put a DeQuantStub at the end of forward, on every output."),
    Known(code="op-without-int8-kernel", pattern=_NO_KERNEL, when=_in_dynamic_layer, facts=_operation,
          message="{where} is quantized dynamically, so it takes float tensors, and an int8 tensor reaches it; {op} "
                  "has "
                  "no kernel for int8 tensors.",
          remedy="put a DeQuantStub in front of the dynamic layer {where}."),
    Known(code="op-without-int8-kernel", pattern=_NO_KERNEL, when=_in_float_layer, facts=_operation,
          message="{where} is a {layer} in float, and an int8 tensor reaches it; its {op} has no kernel for int8 "
                  "tensors.",
          remedy="put a DeQuantStub in front of the layer that stays in float, {where}."),
    Known(code="op-without-int8-kernel", pattern=_NO_KERNEL, when=_has_float_functional, facts=_operation,
          message="{op}{at} has no kernel for int8 tensors: prepare and convert see modules only, and this is none.",
          remedy="replace it by a FloatFunctional of its own: self.{method}_ = "
                 "torch.ao.nn.quantized.FloatFunctional() in __init__, self.{method}_.{method}(...) in forward."),
    Known(code="op-without-int8-kernel", pattern=_NO_KERNEL, facts=_operation,
          message="{op}{at} has no kernel for int8 tensors.",
          remedy="run it in float, between a DeQuantStub and a QuantStub."),
    Known(code="mixed-dtypes", pattern=_MIXED, when=_in_float_layer, facts=_operation,
          message="{where} is a {layer} in float, and the tensor that reaches it is int8.",
          remedy="put a DeQuantStub before the float layer {where}."),
    Known(code="mixed-dtypes", pattern=_MIXED,
          message="int8 and float tensors, or an int8 tensor and a number, meet in one operation{at}.",
          remedy="bring both to one form there: the float one by a QuantStub, or the int8 one by a DeQuantStub."),
    Known(code="mixed-dtypes", pattern=r"^All dtypes must be the same\.", when=_int8_is_there,
          message="tensors of several dtypes, one of them int8, are joined into one{at}.",
          remedy="give all that is joined one dtype: quantize every part of it."),
    Known(code="int8-tensor-cast", pattern=r"Creation of quantized tensor requires quantized dtype",
          message="an int8 tensor is cast{at}, by .float() or .to(), which does not undo quantization.",
          remedy="call .dequantize() instead of the cast."),
    Known(code="input-not-float32", when=lambda raised: raised.in_quantization_code,
          pattern=r"Quantize\b only works on Float Tensor, got (?P<dtype>\w+)|data type of input should be float\b"
                  r"|expected scalar type Float but found (?P<found>\w+)",
          message="{where} gets a tensor{at} whose dtype is not float32 ({dtype}{found}), and quantization starts from "
                  "float32 only.",
          remedy="call .float() on the inputs, and leave the model in float32."),
    Known(code="activation-dtype",
          pattern=r"Expected (?:input|activation) data type QUInt8 but got (?P<dtype>\w+)"
                  r"|data type of input should be QU[iI]nt8|ScalarType (?P<kind>\w+) is not supported in new_qtensor",
          message="{where} gets activations of a dtype that this engine has no int8 kernel for ({dtype}{kind}); the "
                  "qconfig's activation observer chose it.",
          remedy="set dtype=torch.quint8 in the qconfig's activation observer."),
    Known(code="int8-shape", when=lambda raised: raised.in_int8_layer, facts=_shapes,
          pattern=r"\[QConv\dD\]|Input channel size of weight and bias must match|could not create a primitive "
                  r"descriptor"
                  r"|number of rows in the packB should be equal|Input shape must be `\(N|each dimension of output "
                  r"tensor",
          message="an input{shape} does not fit the int8 layer {where}{takes}.",
          remedy="give the int8 model inputs of the shape that the float model takes."),
    Known(code="training-converted", when=lambda raised: holds_int8(raised.model),
          pattern=r"does not require grad and does not have a grad_fn|optimizer got an empty parameter list",
          message="the model is converted, so its weights are int8 constants, which have no gradients.",
          remedy="train the prepared model, and convert it afterwards."),
)
"""What is known of calling converted models; the first that fits counts."""
