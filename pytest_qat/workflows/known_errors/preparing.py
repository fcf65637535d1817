"""Errors of fusing, preparing and converting: modes, orders, names, and what is handed over."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from pytest_qat.workflows.known_errors.known import Known
from pytest_qat.workflows.known_errors.raised import Raised, holds_int8

__all__ = ["PREPARING"]

_PT2E = ("prepare_pt2e", "prepare_qat_pt2e", "convert_pt2e")
_TRACED = r"symbolically traced variables|Proxy object cannot be iterated|\bProxy\b"


def _list_to_fuse(raised: Raised) -> list[str]:
    names = raised.local("modules_to_fuse", "_fuse_modules_helper")
    return [str(name) for name in names] if names else []


def _first_to_fuse(raised: Raised) -> str | None:
    return next(iter(_list_to_fuse(raised)), None) or raised.module


def _fused(raised: Raised) -> Mapping[str, str]:
    """Return the names that were to be fused, their types, and torch's reason."""
    types = re.findall(r"<class '[\w.]*?(\w+)'>", raised.text)
    names = ", ".join(_list_to_fuse(raised))
    return {"names": names or "modules", "types": ", ".join(types), "reason": raised.text.rstrip(". ")}


def _fuses(raised: Raised) -> bool:
    return raised.within("_fuse_modules_helper") is not None


def _missing_name(raised: Raised) -> bool:
    return raised.within("_get_module") is not None


def _prepares_fx(raised: Raised) -> bool:
    return raised.within("prepare_fx", "_prepare_fx") is not None


def _supported(raised: Raised) -> Mapping[str, str]:
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    return {"engines": ", ".join(engines)}


def _already_observed(raised: Raised) -> bool:
    """Whether a traced observer made the error, or PT2E was preparing a graph that has observers."""
    traced = any(type(owner).__module__.startswith("torch.ao.quantization") for owner in raised.owners
                 if not isinstance(owner, torch.fx.GraphModule))
    model = raised.local("model", "prepare_pt2e", "prepare_qat_pt2e")
    return (traced and _prepares_fx(raised)) or (
        isinstance(model, nn.Module) and any("activation_post_process" in name for name, _ in model.named_modules()))


def _converted_already(raised: Raised) -> bool:
    model = raised.local("graph_module", "_convert_fx") or raised.local("model", "convert_pt2e") or raised.model
    return isinstance(model, nn.Module) and holds_int8(model)


def _in_pt2e(raised: Raised) -> bool:
    return raised.within(*_PT2E, "_move_exported_model_to_eval", "_move_exported_model_to_train") is not None


def _handed_to_pt2e(raised: Raised) -> Mapping[str, str]:
    step = raised.within(*_PT2E, "_move_exported_model_to_eval", "_move_exported_model_to_train")
    return {"function": step.function.removeprefix("_") if step else ""}


def _quantizes_again(raised: Raised) -> bool:
    return raised.within("quantize_") is not None


def _traces(raised: Raised) -> bool:
    return raised.within("trace", "symbolic_trace") is not None


_FUSING = (
    Known(code="fusion-in-wrong-mode", pattern=r"Fusion only for eval", when=_prepares_fx,
          message="prepare_fx is for quantization after training, and the model is in train mode.",
          remedy="call prepare_qat_fx for QAT; for quantization after training call .eval() first."),
    Known(code="fusion-in-wrong-mode", pattern=r"Fusion only for eval", facts=_fused, module=_first_to_fuse,
          message="fuse_modules folds batch norm away, which is for eval mode only, and {names} are in train mode.",
          remedy="call fuse_modules_qat on a model in train mode for QAT."),
    Known(code="fusion-in-wrong-mode", pattern=r"must be in the same mode", facts=_fused, module=_first_to_fuse,
          message="of {names}, which are fused into one, some are in train mode and others in eval mode.",
          remedy="call .train() on the whole model before fuse_modules_qat; it wants all in train mode."),
    Known(code="fusion-unsupported", pattern=r"did not find fuser method for", facts=_fused, module=_first_to_fuse,
          message="torch cannot fuse {names}: there is no fused module for {types} in this order.",
          remedy="fuse only what follows each other as convolution or linear layer, batch norm, ReLU, and each only "
                 "once; "
                 "leave the rest out of the list."),
    Known(code="fusion-unsupported", when=_fuses, facts=_fused, module=_first_to_fuse,
          pattern=r"not yet supported in QAT|Only support fusing|must not be None|must match num_features|must match "
                  r"the",
          message="torch cannot fuse {names}: {reason}.",
          remedy="leave these modules out of the list of what is fused."),
    Known(code="fusion-unknown-name", pattern=r"has no attribute '(?P<name>\w+)'", when=_missing_name, facts=_fused,
          module=lambda raised: None,
          message="of {names}, which are to be fused, the model has no module {name}.",
          remedy="take the names of what is fused from model.named_modules()."),
)

_HANDED_OVER = (
    Known(code="prepare-in-eval-mode", pattern=r"prepare_qat only works on models in training mode",
          message="the model is in eval mode when it is prepared for QAT, which trains it.",
          remedy="call .train() before prepare_qat."),
    Known(code="qconfig-of-wrong-kind",
          pattern=r"\bprepare(_qat)?\(\) got an unexpected keyword argument 'qconfig_mapping'"
                  r"|'QConfigMapping' object has no attribute '(_fields|values|get)'",
          message="a QConfigMapping is handed to eager quantization, which knows qconfigs of modules only.",
          remedy="call prepare_qat_fx or prepare_fx, which take a QConfigMapping."),
    Known(code="qconfig-of-wrong-kind", pattern=r"'(?P<kind>\w+)' object has no attribute '_fields'",
          when=lambda raised: raised.in_quantization_code,
          message="a module's qconfig is a {kind}, and prepare wants a QConfig.",
          remedy="set model.qconfig to a QConfig, such as get_default_qat_qconfig() returns."),
    Known(code="qconfig-of-wrong-kind", pattern=r"qconfig_mapping must be a QConfigMapping",
          message="torch.fx quantization got something else than a QConfigMapping.",
          remedy="pass a QConfigMapping: QConfigMapping().set_global(qconfig)."),
    Known(code="qconfig-of-wrong-kind", pattern=r"QConfig received observer instance",
          message="a QConfig makes an observer for every module, and was given one that is made already.",
          remedy="pass the observer's class, or class.with_args(...), to QConfig."),
    Known(code="qconfig-of-wrong-kind",
          pattern=r"'(?P<kind>\w+)' object has no attribute 'transform_for_annotation'"
                  r"|(?P<class>\w+)\.transform_for_annotation\(\) missing",
          message="PT2E quantization takes an instance of a quantizer, and got {kind}{class}.",
          remedy="pass a quantizer: XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=True))."),
    Known(code="qconfig-of-wrong-kind", pattern=r"Passing a generic Callable to `quantize_`",
          message="torchao's quantize_ takes an instance of one of torchao's configs, and got something else.",
          remedy="pass quantize_ an instance of a config, such as Int8DynamicActivationInt8WeightConfig()."),
    Known(code="qat-config-unsupported", pattern=r"Unexpected base config: (?P<config>\w+)",
          message="QATConfig cannot derive fake-quantize from {config}.",
          remedy="give QATConfig an activation_config and a weight_config of its own."),
    Known(code="no-example-inputs", pattern=r"(?P<function>\w+)\(\) missing 1 required positional argument: "
                                            r"'example_inputs'",
          message="{function} needs example inputs, to see what each operation gets.",
          remedy="pass example_inputs, a tuple of what one forward call takes."),
    Known(code="no-quantized-engine", facts=_supported,
          pattern=r"NoQEngine|quantized engine \w+ is not supported|(?P<name>\w+) is not a valid value for quantized "
                  r"engine"
                  r"|backend: (?P<backend>\w+) not supported. backend must be|Didn't find engine for operation "
                  r"quantized",
          message="this build of torch has no quantized engine of that name, or none is set; it has {engines}.",
          remedy="set torch.backends.quantized.engine to one of {engines}, before the model is prepared."),
    Known(code="no-qconfig", pattern=r"Input float module must have (a valid )?qconfig",
          message="a layer is to be made into a quantized one, and has no qconfig.",
          remedy="set model.qconfig, and leave making quantized layers to prepare and convert."),
)

_ORDER = (
    Known(code="prepared-twice", pattern=rf"{_TRACED}|^\w+$", when=_already_observed,
          message="the model is prepared already: it has observers, and they would be observed.",
          remedy="prepare the float model, and only once."),
    Known(code="converted-twice", pattern=r"incoming model must be produced by prepare_fx", when=_converted_already,
          message="the model is converted already.",
          remedy="convert a prepared model only once."),
    Known(code="converted-twice", pattern=r"(?P<kind>\w+Tensor) dispatch: attempting to run unimplemented",
          when=_quantizes_again,
          message="quantize_ met weights that torchao has quantized already ({kind}).",
          remedy="call quantize_ on the float model, and only once."),
    Known(code="convert-without-prepare",
          pattern=r"incoming model must be produced by prepare_fx|must have activation_post_process attribute"
                  r"|object has no attribute 'activation_post_process'",
          message="{where} is converted but was never prepared, so no observer has seen its values.",
          remedy="call prepare_qat or prepare before convert, of the same workflow."),
    Known(code="convert-without-prepare", pattern=r"input model must be a GraphModule, Got type:<class "
                                                  r"'[\w.]*?(?P<kind>\w+)'>",
          message="convert_fx got a {kind}, which prepare_fx or prepare_qat_fx did not make.",
          remedy="call convert_fx on what prepare_fx or prepare_qat_fx returned."),
    Known(code="not-exported", pattern=r"'(?P<kind>\w+)' object has no attribute '(meta|graph)'", when=_in_pt2e,
          facts=_handed_to_pt2e,
          message="{function} got a {kind}, and PT2E quantization works on the module of an exported program.",
          remedy="pass torch.export.export(model, example_inputs).module()."),
    Known(code="fx-cannot-trace", when=_traces,
          pattern=rf"{_TRACED}|'\w+' is not supported in symbolic tracing|takes \d+ positional arguments? but \d+ "
                  rf"were given",
          message="torch.fx cannot trace {where}{at}: Python code there depends on a tensor's values, its size or its "
                  "kind.",
          remedy="move that code into a module of its own, and name it in "
                 "PrepareCustomConfig().set_non_traceable_module_names([...])."),
)

PREPARING = (*_FUSING, *_HANDED_OVER, *_ORDER)
"""What is known of fusing, preparing and converting; the first that fits counts."""
