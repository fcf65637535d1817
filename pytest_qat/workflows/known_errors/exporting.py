"""Errors of torch.export, of calling what it made, of ONNX export and of saving models."""

from __future__ import annotations

from pytest_qat.workflows.known_errors.known import Known
from pytest_qat.workflows.known_errors.raised import Raised, holds_int8

__all__ = ["EXPORTING"]

_QUANTIZED_OP = r"(?:quantized::|aten::_?(?:fused_moving_avg|fake_quantize|quantize|dequantize))\w*"


def _observers_or_int8(raised: Raised) -> bool:
    return holds_int8(raised.model) or any("activation_post_process" in name for name,
                                           _ in raised.model.named_modules())


def _exports(raised: Raised) -> bool:
    return raised.within("export", "_export", "_export_for_training") is not None


def _holds_quantized(raised: Raised) -> bool:
    return "torch.ao." in raised.text or _observers_or_int8(raised)


EXPORTING = (
    Known(code="shape-fixed-by-export", pattern=r"Guard failed: (?P<name>\w+)\.size\(\)\[0\] == (?P<size>\d+)",
          message="the exported model takes {size} rows in {name} and no other number: torch.export fixed the batch "
                  "size to "
                  "that of its example inputs.",
          remedy="export it with dynamic_shapes={{\"{name}\": {{0: torch.export.Dim(\"batch\")}}}} and an example "
                 "batch of "
                 "2 or more."),
    Known(code="shape-fixed-by-export", pattern=r"Guard failed: (?P<what>[^\n]+)",
          message="an input has another shape than the example that torch.export saw ({what} must hold).",
          remedy="bring every batch to one shape: pad token ids to one length, say."),
    Known(code="inputs-fixed-by-export", pattern=r"exported input tree spec|Ran into a kwarg keyword mismatch",
          message="the exported model is called with other arguments than those of the example that torch.export saw.",
          remedy="call it with the number, kinds and names of arguments that it was exported with."),
    Known(code="mode-of-exported-graph", pattern=r"Calling (train|eval)\(\) (or eval\(\) )?is not supported",
          message="an exported graph has no .train() and .eval(): the mode is fixed in its operations.",
          remedy="call torchao.quantization.pt2e.move_exported_model_to_eval(model), or move_exported_model_to_train."),
    Known(code="dynamic-dimension-fixed",
          pattern=r"your code specialized it to be a constant \((?P<size>[01])\)|0/1 specialized due to hint of "
                  r"(?P<hint>[01])",
          message="a dynamic dimension has size {size}{hint} in the example inputs, and torch.export takes 0 and 1 for "
                  "constants.",
          remedy="use example inputs of 2 or more in every dynamic dimension."),
    Known(code="dynamic-dimension-fixed",
          pattern=r"You marked (?P<name>\w+) as dynamic but your code specialized it to be a constant "
                  r"\((?P<size>\d+)\)",
          message="the dimension {name} is to be dynamic, but the model works for size {size} only{at}: it loops over "
                  "that "
                  "dimension, asks for its length, or has weights of that size.",
          remedy="leave that dimension out of dynamic_shapes, or use operations that take any size."),
    Known(code="not-exportable",
          pattern=r"Could not guard on data-dependent expression|\.numpy\(\) is not supported for tensor subclasses",
          when=_exports,
          message="torch.export cannot follow {where}{at}: Python code there depends on the values of a tensor.",
          remedy="replace it by tensor operations, such as torch.where, or by torch.cond."),
    Known(code="int8-model-exported", pattern=r"quantized\.\w+PackedParams\w* .*does not have a field with name "
                                              r"'__obj_flat",
          message="an int8 model of eager or FX quantization holds packed weights, which torch.export, and ONNX export "
                  "through it, cannot read.",
          remedy="quantize the exported float model by PT2E (prepare_pt2e, convert_pt2e), and export what it returns."),
    Known(code="onnx-export-of-quantized",
          pattern=rf"Exporting the operator '(?P<op>{_QUANTIZED_OP})' to ONNX"
                  rf"|No ONNX function found for <OpOverload\(op='(?P<overload>(?:quantized|torchao"
                  rf"|aten\._?(?:fused_moving_avg"
                  rf"|fake_quantize|quantize|dequantize))[\w.]*)'",
          message="the model has the quantized operation {op}{overload}, for which ONNX export has no counterpart.",
          remedy="quantize by PT2E, and give torch.onnx.export(..., dynamo=True) the graph that convert_pt2e "
                 "returned."),
    Known(code="model-not-picklable", when=_observers_or_int8,
          pattern=r"Can't (?:get|pickle) local object|'\w+' object has no attribute '_modules'"
                  r"|Tried to serialize object __torch__|cannot pickle '[\w.]*ScriptObject'",
          message="a prepared, converted or exported model cannot be pickled as a whole.",
          remedy="save model.state_dict(), and load it into a model that is built, prepared and converted the same "
                 "way."),
    Known(code="model-not-picklable", pattern=r"Weights only load failed", when=_holds_quantized,
          message="the file holds a whole quantized model, and torch.load reads weights only by default.",
          remedy="save the state_dict instead of the model, and load that into a model that is converted the same "
                 "way."),
)
"""What is known of export and of saving; the first that fits counts."""


