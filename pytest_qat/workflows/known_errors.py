"""Turn the errors that PyTorch raises around quantization into findings: module, cause, mend."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from pytest_qat.core.tracebacks import headline, locate_module, place_of
from pytest_qat.findings import Finding
from pytest_qat.workflows.names import user_names

__all__ = ["explain", "unexplained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    code: str
    pattern: str
    message: str
    remedy: str


_KNOWN = (
    _Known(code="float-into-int8", pattern=r"Could not run 'quantized::(?P<op>[\w.]+)' with arguments from the 'CPU'",
           message="a float tensor reaches the int8 kernel quantized::{op}.",
           remedy="put a QuantStub where the tensor enters the int8 part."),
    _Known(code="mixed-dtypes",
           pattern=r"(promoteTypes with quantized numbers|Could not run 'aten::qscheme'"
                   r"|same dtype, but got.*\bQU?Int|\bc10::qu?int.*should be the same)",
           message="int8 and float tensors meet in one op.",
           remedy="put a DeQuantStub before the float part."),
    _Known(code="op-without-int8-kernel",
           pattern=r"Could not run '(?P<op>[\w:.]+)' with arguments from the 'Quantized\w+' backend",
           message="{op} has no kernel for int8 tensors.",
           remedy=""),
    _Known(code="no-quantized-engine", pattern=r"(NoQEngine|quantized engine \w+ is not supported)",
           message="torch has no quantized engine set that can run this.",
           remedy=""),
    _Known(code="embedding-qconfig",
           pattern=r"(Embedding weights requires a qscheme|Embedding quantization is only supported)",
           message="an embedding got a qconfig for activations and int8 weights.",
           remedy="set its qconfig to None, or to torch.ao.quantization.float_qparams_weight_only_qconfig."),
    _Known(code="observer-and-qscheme", pattern=r"(?P<op>\w*Observer\w*)'s qscheme only support",
           message="{op} is a per-tensor observer with a per-channel qscheme.",
           remedy="use a PerChannelMinMaxObserver for per-channel weights."),
    _Known(code="fusion-in-wrong-mode", pattern=r"(Fusion only for eval|must be in the same mode)",
           message="modules are fused in the wrong mode.",
           remedy="call fuse_modules_qat on a model in train mode for QAT."),
    _Known(code="shape-fixed-by-export", pattern=r"Guard failed: (?P<what>[^\n]+)",
           message="an input has another shape than the example that torch.export saw ({what} must hold).",
           remedy="bring every batch to one shape: pad token ids to one length, say."),
    _Known(code="prepare-in-eval-mode", pattern=r"prepare_qat only works on models in training mode",
           message="the model is in eval mode when it is prepared.", remedy="call .train() before prepare_qat."),
)


def explain(error: BaseException, *, model: nn.Module, stage: str) -> Finding | None:
    """Return what an error means for the user's model, or None if it is not a known one.

    Args:
        error: As caught, with its traceback.
        model: The module that was being called or transformed; names the place.
        stage: What was going on, such as `prepare` or `convert`.
    """
    text = str(error)
    for known in _KNOWN:
        match = re.search(known.pattern, text)
        if match is None:
            continue
        module = locate_module(error, model)
        return Finding(
            code=known.code, severity="error", module=user_names(model).get(module) or None if module else None,
            message=known.message.format(**match.groupdict()), remedy=known.remedy,
            evidence={"stage": stage, "error": text.splitlines()[0][:200]})
    return None


def unexplained(error: BaseException, *, model: nn.Module, stage: str) -> Finding:
    """Return what can be told of an error that quantization code of others raised and no table knows."""
    return Finding(
        code="quantization-raised", severity="error", module=locate_module(error, model),
        message=f"{stage} raised {type(error).__name__}: {headline(error)} ({place_of(error)}).",
        evidence={"stage": stage, "error": type(error).__name__})
