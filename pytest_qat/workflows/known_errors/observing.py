"""Errors of observers and fake-quantize: qschemes, dtypes, ranges, and values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pytest_qat.workflows.known_errors.known import Known
from pytest_qat.workflows.known_errors.raised import Raised

__all__ = ["OBSERVING"]


def _in_quantization_code(raised: Raised) -> bool:
    return raised.in_quantization_code


def _weights_not_finite(raised: Raised) -> str | None:
    """Return the module whose weights hold NaN or infinity."""
    for name, parameter in raised.model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            return name.rpartition(".")[0] or None
    return None


def _from_weights(raised: Raised) -> bool:
    return _in_quantization_code(raised) and any(
        parameter.is_floating_point() and not bool(torch.isfinite(parameter).all())
        for parameter in raised.model.parameters())


def _observed_tuple(raised: Raised) -> bool:
    return raised.within("_observer_forward_hook") is not None


def _kind_of_observed(raised: Raised) -> Mapping[str, str]:
    return {"layer": type(raised.local("self", "_observer_forward_hook")).__name__}


_FINITE = r"histc: range of|min \S+ should be less than max|`zero_point` must be between `quant_min` and `quant_max`"

OBSERVING = (
    Known(code="values-not-finite", pattern=_FINITE, when=_from_weights, module=_weights_not_finite,
          message="the weights of {where} hold NaN or infinity, so an observer finds no range.",
          remedy="take weights from before training made them NaN or infinite."),
    Known(code="values-not-finite", pattern=_FINITE, when=_in_quantization_code,
          message="the observer of {where} saw NaN or infinity, so it finds no range.",
          remedy="look for NaN or infinity in the calibration data (torch.isfinite), and leave those samples out."),
    Known(code="embedding-qconfig",
          pattern=r"(Embedding weights requires a qscheme|Embedding(Bag)? quantization is only supported)",
          message="the embedding {where} got a qconfig for activations and int8 weights, and needs one for weights "
                  "with "
                  "float zero points.",
          remedy="set its qconfig to None, or to torch.ao.quantization.float_qparams_weight_only_qconfig."),
    Known(code="observer-and-qscheme", pattern=r"(?P<op>\w*PerChannel\w*Observer\w*)'s qscheme only support",
          message="{op} is a per-channel observer and is given a per-tensor qscheme.",
          remedy="use a MinMaxObserver for a per-tensor qscheme, or torch.per_channel_symmetric with this one."),
    Known(code="observer-and-qscheme", pattern=r"(?P<op>\w*Observer\w*)'s qscheme only support",
          message="{op} is a per-tensor observer and is given a per-channel qscheme.",
          remedy="use a PerChannelMinMaxObserver for per-channel weights."),
    Known(code="observer-and-qscheme", pattern=r"Unsupported qscheme: (?P<scheme>\w+)", when=_in_quantization_code,
          message="{where} has no int8 kernel for weights of the qscheme {scheme}.",
          remedy="set qscheme=torch.per_channel_symmetric in the weight observer."),
    Known(code="per-channel-activations", when=_in_quantization_code,
          pattern=r"a Tensor with \d+ elements cannot be converted to Scalar",
          message="the activations of {where} are observed per channel, and int8 kernels take one scale for a tensor.",
          remedy="use a per-tensor observer for activations; per-channel ones are for weights."),
    Known(code="per-channel-transposed-conv",
          pattern=r"Per channel weight observer is not supported yet for ConvTranspose"
                  r"|Per Channel Quantization is currently disabled for transposed conv",
          message="{where} is to have per-channel weights, and transposed convolutions have no int8 kernel for them.",
          remedy="give transposed convolutions a qconfig with per-tensor weights, such as default_weight_observer."),
    Known(code="weight-dtype", pattern=r"Weight observer must have (?:a )?dtype (?:of )?\S*qint8, got "
                                       r"(?P<dtype>[\w.]+)",
          message="the weight observer of {where} has dtype {dtype}, and int8 kernels take qint8 weights.",
          remedy="set dtype=torch.qint8 in the qconfig's weight observer."),
    Known(code="observer-dtype", pattern=r"Default Observer only works for .* data type",
          message="an observer is given a dtype that is none to quantize to.",
          remedy="set the observer's dtype to torch.quint8 for activations or torch.qint8 for weights."),
    Known(code="observer-range", when=_in_quantization_code,
          pattern=r"quant_m(in|ax) out of bound|quantization range must include 0|quant_min must be less than or equal",
          message="an observer's quant_min and quant_max do not fit its dtype, or do not include 0.",
          remedy="set quant_min and quant_max to what the dtype holds: 0 and 255 for quint8, -128 and 127 for qint8."),
    Known(code="placeholder-observer", pattern=r"calculate_qparams should not be called for PlaceholderObserver",
          message="{where} has a qconfig for dynamic quantization, which keeps no ranges, and is converted statically.",
          remedy="use a qconfig whose activation observer keeps ranges, such as get_default_qconfig() returns."),
    Known(code="tuple-observed", pattern=r"'(tuple|list|dict)' object has no attribute", when=_observed_tuple,
          facts=_kind_of_observed,
          message="{where} ({layer}) returns several tensors, and an observer takes one; eager quantization has no "
                  "static "
                  "int8 form of it.",
          remedy="set the qconfig of that module to None, so that it stays in float."),
)
"""What is known of observers; the first that fits counts."""
