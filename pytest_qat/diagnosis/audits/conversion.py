"""Whether the converted model runs, computes in int8, keeps no float weights, and does not go back and forth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import call, opened
from pytest_qat.core.text import percent
from pytest_qat.diagnosis.audits.float_copies import is_rounded, wrongly_restored
from pytest_qat.diagnosis.audits.islands import float_islands
from pytest_qat.diagnosis.given import Given
from pytest_qat.exported.model import ExportedModel
from pytest_qat.findings import Finding
from pytest_qat.measure.coverage import Coverage, measure_coverage
from pytest_qat.measure.roundtrip import quantized_tensors
from pytest_qat.workflows.known_errors import explain, unexplained
from pytest_qat.workflows.names import user_names
from pytest_qat.workflows.observers import fake_quantizers
from pytest_qat.workflows.simulated import observers

__all__ = ["call_fails", "default_qparams", "output_stays_int8", "still_simulated", "what_is_int8"]

_NAMED = 5
_MOST = 0.5
_FEWEST_ISLANDS = 2


def call_fails(given: Given) -> Iterator[Finding]:
    """A converted model that raises where the float model does not."""
    if given.converted is None:
        return
    try:
        with torch.inference_mode():
            call(given.converted, given.batches[0])
    except Exception as error:
        yield (explain(error, model=given.converted, stage="int8 forward")
               or unexplained(error, model=given.converted, stage="the converted model"))


def still_simulated(given: Given) -> Iterator[Finding]:
    """Fake-quantizers or observers in what is called converted."""
    if given.converted is None:
        return
    count = len(list(fake_quantizers(given.converted))) + len(observers(given.converted))
    if count:
        yield Finding(
            code="still-simulated", severity="error", evidence={"modules": count},
            message=f"the converted model still holds {count} observers and fake-quantizers: it is the prepared model, "
                    "which keeps float weights, computes in float and does more work than the float model.",
            remedy="call convert (convert_fx, convert_pt2e) on it, and save, time and ship what that returns.")


def output_stays_int8(given: Given) -> Iterator[Finding]:
    """A converted model that returns int8 tensors, which losses and metrics do not take."""
    if given.converted is None:
        return
    with torch.inference_mode():
        leaves = pytree.tree_leaves(opened(call(given.converted, given.batches[0])))
    count = sum(isinstance(leaf, Tensor) and leaf.is_quantized for leaf in leaves)
    if count:
        yield Finding(
            code="output-not-dequantized", severity="error", evidence={"outputs": count},
            message=f"{count} of the {len(leaves)} outputs of the converted model are int8 tensors, which softmax, "
                    "losses and metrics do not take.",
            remedy="put a DeQuantStub on each output that float code reads.")


def default_qparams(given: Given) -> Iterator[Finding]:
    """Scale 1 and zero point 0 where values pass, which is what convert writes for an observer that saw nothing."""
    if given.converted is None:
        return
    own = user_names(given.converted)
    dynamic = {own[name] for name, module in given.converted.named_modules() if "dynamic" in type(module).__module__}
    tensors = [each for each in quantized_tensors(given.converted)
               if not each.name.endswith("weight") and each.module not in dynamic]
    default = [each for each in tensors if each.scale.numel() == 1 and float(each.scale) == 1.0
               and int(each.zero_point) == 0 and each.dtype == torch.quint8]
    called = _called(given)
    default = [each for each in default if each.module in called]
    if not default:
        return
    every = len(default) == sum(each.module in called for each in tensors)
    names = list(dict.fromkeys(each.module for each in default))
    yield Finding(
        code="never-calibrated", severity="error", module=None if every else names[0] or None,
        evidence={"default": len(default), "of": len(tensors), "modules": names[:_NAMED]},
        message=f"{'all' if every else len(default)} of the {len(tensors)} activations were converted with scale 1 and "
                f"zero point 0 ({', '.join(names[:_NAMED])}), which convert writes where an observer has seen nothing.",
        remedy="run representative batches through the prepared model before it is converted, with its observers on.")


def _called(given: Given) -> set[str]:
    """Return the modules of the converted model that a call reaches, by the user's names."""
    assert given.converted is not None, "unreachable because its tensors were listed"
    own, found = user_names(given.converted), set[str]()
    handles = [module.register_forward_hook(lambda *_, name=name: found.add(own[name]))
               for name, module in given.converted.named_modules()]
    quantized = [module for module in given.converted.modules() if hasattr(module, "scale")]
    try:
        with torch.inference_mode():
            call(given.converted, given.batches[0])
    finally:
        for handle in handles:
            handle.remove()
    functional = isinstance(given.converted, torch.fx.GraphModule) or not quantized
    return found | (set(own.values()) if functional else set())


def what_is_int8(given: Given) -> Iterator[Finding]:
    """Nothing in int8, float ops in between, or a float layer that holds most of the bytes."""
    if given.converted is None or any(True for _ in fake_quantizers(given.converted)):
        return
    coverage = measure_coverage(given.float_model, given.converted, given.case.example_inputs, reasons={})
    if not coverage.int8_modules:
        yield from _computes_in_float(given, coverage)
        return
    yield from _ping_pong(given.converted, given.batches[0], coverage)
    yield from _large_float_weights(coverage)


def _computes_in_float(given: Given, coverage: Coverage) -> Iterator[Finding]:
    """Nothing in int8: the reference form, weights that were only rounded, or nothing at all."""
    assert given.converted is not None, "unreachable because its coverage was measured"
    if coverage.reference or _is_reference(given.converted):
        yield from _not_lowered(given.converted)
    elif (wrong := wrongly_restored(given)) is not None:
        yield wrong
    elif rounded := is_rounded(given):
        yield Finding(
            code="rounded-but-float", severity="error", module=rounded[0], evidence={"modules": rounded[:_NAMED]},
            message=f"the weights of {', '.join(rounded[:_NAMED])} are rounded to a few values, but stored and "
                    "multiplied as float32: the file gets no smaller and no call faster.",
            remedy="convert to a runtime with int8 kernels; rounding float weights only simulates one.")
    else:
        left = ", ".join(f"{each.title} ({each.kind})" for each in coverage.leftovers[:_NAMED])
        yield Finding(
            code="nothing-quantized", severity="error",
            module=coverage.leftovers[0].module or None if coverage.leftovers else None,
            message=f"no module that a call reaches computes in int8; in float: {left or 'everything'}.",
            remedy="quantize_dynamic replaces linear and recurrent layers only; use static quantization or QAT for "
                   "convolutions, and give a qconfig to every layer that is to be quantized.")


def _is_reference(converted: nn.Module) -> bool:
    if isinstance(converted, ExportedModel):
        return any("dequantize" in str(node.target) for node in converted.graph_module.graph.nodes)
    return any("quantized.reference" in type(module).__module__ for module in converted.modules())


def _not_lowered(converted: nn.Module) -> Iterator[Finding]:
    """The reference form is what PT2E's runtimes take, but with float weights it is nothing to ship."""
    floats = [name for name, tensor in converted.state_dict().items()
              if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() > 1]
    if isinstance(converted, ExportedModel):  # folding leaves the float weights behind, which no node reads
        read = {f"graph_module.{node.target}" for node in converted.graph_module.graph.nodes if node.op == "get_attr"}
        floats = [name for name in floats if name in read]
    if isinstance(converted, ExportedModel) and not floats:
        return
    place = user_names(converted).get(floats[0].rpartition(".")[0]) if floats else None
    yield Finding(
        code="converted-not-lowered", severity="error", module=place or None,
        evidence={"float_weights": [name.removeprefix("graph_module.") for name in floats[:_NAMED]], "of": len(floats)},
        message=f"the converted model is the reference form with {len(floats)} float weights in it, which are "
                "quantized and dequantized again in every call: it is no smaller than float, and slower.",
        remedy="convert with fold_quantize=True, and lower the result to the runtime that ships (ExecuTorch, or "
               "torch.compile with Inductor's freezing); in FX, use convert_fx." if isinstance(
                   converted, ExportedModel) else "use convert_fx instead of convert_to_reference_fx.")


def _ping_pong(converted: nn.Module, inputs: Any, coverage: Coverage) -> Iterator[Finding]:
    """Float ops between int8 layers, for which values are dequantized and quantized again."""
    islands = float_islands(converted, inputs)
    if len(islands) < _FEWEST_ISLANDS or len(islands) < _MOST * coverage.int8_modules:
        return
    ops = list(dict.fromkeys(op for island in islands for op in island.ops))
    named = next((island.module for island in islands if island.module), None)
    yield Finding(
        code="quantize-ping-pong", severity="warning", module=named,
        evidence={"islands": len(islands), "int8_modules": coverage.int8_modules, "ops": ops[:_NAMED]},
        message=f"between {coverage.int8_modules} int8 layers, values are dequantized and quantized again "
                f"{len(islands)} times for {', '.join(ops[:_NAMED])}, which have no int8 kernel here: each time costs "
                "two copies and one more rounding.",
        remedy="replace these by ops that have an int8 kernel (ReLU, Hardswish, ReLU6), or move them to the ends of "
               "the model.")


def _large_float_weights(coverage: Coverage) -> Iterator[Finding]:
    """A float layer that holds most of the bytes."""
    if coverage.int8_weights is None:
        return
    left = [(each, 4 * each.weights) for each in coverage.leftovers if each.weights]
    total = coverage.int8_weights + sum(size for _, size in left)
    if not left:
        return
    largest, size = max(left, key=lambda each: each[1])
    if size < _MOST * total:
        return
    yield Finding(
        code="float-weights-left", severity="warning", module=largest.module or None,
        evidence={"weights": largest.weights, "share_of_bytes": round(size / total, 4)},
        message=f"{largest.title} ({largest.kind}) stays in float and holds {percent(size / total, digits=0)} of the "
                "bytes of all weights, so the model gets hardly smaller.",
        remedy="quantize it too: an embedding with torch.ao.quantization.float_qparams_weight_only_qconfig, any other "
               "layer by giving it a qconfig.")
