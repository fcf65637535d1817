"""Find the module whose int8 kernel computes something other than what fake-quantize simulated.

Each module of the int8 model is fed what the simulated one gets at the same place, so that it answers for its own error
alone: rounding ties add up on the way through a healthy model, and would convict the module where they get too many.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.utils import _pytree as pytree

from pytest_qat.core.batches import call
from pytest_qat.exported.model import ExportedModel
from pytest_qat.exported.program import module_of
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.parity import Parity, sqnr_db
from pytest_qat.verdict import db_text
from pytest_qat.workflows.names import user_names

__all__ = ["Call", "Divergence", "agreements", "first_divergence", "kernels_disagree"]

BROKEN_DB = 20.0
"""A module that agrees with the simulated one, on the same inputs, to less than this is broken, not merely noisy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far a module agrees with its form in the reference, on the same inputs.

    Attributes:
        module: Qualified name in the user's model.
        kind: Class of the converted module.
        sqnr_db: SQNR of its output, where the prepared module's output is the signal.
    """

    module: str
    kind: str
    sqnr_db: float


def first_divergence(prepared: nn.Module, converted: nn.Module, inputs: Any) -> Divergence | None:
    """Return the first module, in the order of the calls, that is below 20 dB on its own; None if none is.

    Args:
        prepared: In eval mode, observers off.
        converted: Its int8 form.
        inputs: One batch.
    """
    if isinstance(prepared, ExportedModel) and isinstance(converted, ExportedModel):
        return _first_in_graphs(prepared, converted, inputs)
    found, _ = agreements(prepared, converted, inputs)
    return next((each for each in found if each.sqnr_db < BROKEN_DB), None)


def _first_in_graphs(reference: ExportedModel, converted: ExportedModel, inputs: Any) -> Divergence | None:
    """Return the first module whose last value differs between two exported graphs, which no module hooks reach."""
    wanted: dict[str, Tensor] = {}
    found: list[Divergence] = []
    folded = _folded(reference.graph_module)

    def keep(module: str, kind: str, value: Tensor) -> Tensor:
        wanted[module] = value.detach().clone()
        if kind == "batch_norm" and module in folded:
            wanted[folded[module]] = wanted[module]
        return value

    def compare(module: str, kind: str, value: Tensor) -> Tensor:
        expected = wanted.get(module)
        if expected is None or expected.shape != value.shape:
            return value
        found.append(Divergence(module=module, kind=kind, sqnr_db=sqnr_db(expected, value)))
        return expected  # so that what follows gets the reference's

    _visit(reference, inputs, keep)
    _visit(converted, inputs, compare)
    return next((each for each in found if each.sqnr_db < BROKEN_DB), None)


def _folded(graph_module: torch.fx.GraphModule) -> dict[str, str]:
    """Return each BatchNorm's convolution or linear layer, which converting makes one with it."""
    found: dict[str, str] = {}
    for norm in graph_module.graph.nodes:
        node = norm.args[0] if "batch_norm" in str(norm.target) else None
        while isinstance(node, torch.fx.Node) and re.search(r"aten\.(div|add|mul)\.", str(node.target)):
            node = node.args[0]
        if isinstance(node, torch.fx.Node) and re.search(r"aten\.(conv|linear)", str(node.target)):
            found[module_of(norm)] = module_of(node)
    return found


def _visit(model: ExportedModel, inputs: Any, visitor: Callable[[str, str, Tensor], Tensor]) -> None:
    """Call a graph, and hand each module's name, op and last float value to a visitor, which returns what follows."""
    copied = copy.deepcopy(model)
    last = {module_of(node): node for node in copied.graph_module.graph.nodes
            if node.op == "call_function" and "quantize" not in str(node.target)}

    class Visiting(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            value, module = super().run_node(node), module_of(node)
            if not module or last.get(module) is not node or not (
                    isinstance(value, Tensor) and value.is_floating_point()):
                return value
            return visitor(module, str(node.target).rpartition("aten.")[2].partition(".")[0], value)

    def run(*args: Any) -> Any:
        return Visiting(copied.graph_module).run(*args)

    with torch.inference_mode():
        copied.graph_module.forward = run
        call(copied, inputs)


def agreements(reference: nn.Module, converted: nn.Module, inputs: Any, *,
               with_rounding: bool = False) -> tuple[list[Divergence], dict[str, Call]]:
    """Return how far each module of a model agrees with the reference's on the reference's inputs.

    Args:
        reference: In eval mode, with modules of the same names.
        converted: Its int8 form.
        inputs: One batch.
        with_rounding: Whether the rounding of a module's output counts, which the reference may simulate.

    Returns:
        The modules that can be compared, in the order of the calls, and the first call of each of the reference's.
    """
    with torch.inference_mode():
        calls: dict[str, list[Call]] = {}
        with _recording(reference, calls):
            call(reference, inputs)
        found: list[Divergence] = []
        with _comparing(converted, calls, found, with_rounding=with_rounding):
            call(converted, inputs)
    return found, {name: made[0] for name, made in calls.items()}


def kernels_disagree(parity: Parity, culprit: Divergence | None, *, unknown_because: str | None = None) -> Finding:
    """Return the finding for a converted model that computes something other than the prepared one.

    Args:
        parity: How far they agree, end to end.
        culprit: The first module at which they diverge; None if no single one does.
        unknown_because: Why the module could not be looked for.
    """
    evidence: dict[str, Any] = {"sqnr_db": json_number(parity.sqnr_db),
                                "quantization_sqnr_db": json_number(parity.quantization_sqnr_db)}
    if unknown_because is not None:
        evidence["module_unknown_because"] = unknown_because
    return Finding(
        code="kernels-disagree", severity="error", module=culprit.module if culprit else None, evidence=evidence,
        message="the int8 kernel computes something other than what fake-quantize simulated "
                f"({db_text(culprit.sqnr_db)} at this {culprit.kind})." if culprit else
                f"the int8 kernels compute something other than what fake-quantize simulated "
                f"({db_text(parity.sqnr_db)}).")


@dataclass(frozen=True, slots=True)
class Call:
    """What a module of the simulated model was called with, and what it returned."""

    args: tuple[Any, ...]
    output: Any


@contextlib.contextmanager
def _recording(model: nn.Module, calls: dict[str, list[Call]]) -> Iterator[None]:
    def record(name: str, args: tuple[Any, ...], output: Any) -> None:
        calls.setdefault(name, []).append(Call(_copied(args), _copied(output)))

    with contextlib.ExitStack() as hooks:
        for name, module in _modules(model):
            handle = module.register_forward_hook(lambda _, args, output, name=name: record(name, args, output))
            hooks.callback(handle.remove)
        yield


@contextlib.contextmanager
def _comparing(model: nn.Module, calls: dict[str, list[Call]], found: list[Divergence], *,
               with_rounding: bool) -> Iterator[None]:
    """Feed each module what the simulated one got, and keep those that return something else."""
    started: dict[str, int] = {}
    fed: dict[str, Call | None] = {}  # by module, the call it must reproduce; modules do not call themselves

    def feed(name: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        index = started[name] = started.get(name, -1) + 1
        known = calls.get(name, [])
        same = _like(known[index].args, args) if index < len(known) else None
        fed[name] = None if same is None else known[index]
        return same

    def compare(name: str, module: nn.Module, output: Any) -> None:
        expected = fed.get(name)
        if expected is None or not isinstance(output, Tensor):
            return
        like = _like(expected.output, output)
        if like is not None:
            wanted = expected.output if with_rounding else like
            found.append(Divergence(module=name, kind=type(module).__name__,
                                    sqnr_db=sqnr_db(_plain(wanted), _plain(output))))

    with contextlib.ExitStack() as hooks:
        for name, module in _modules(model):
            before = module.register_forward_pre_hook(lambda _, args, name=name: feed(name, args))
            after = module.register_forward_hook(lambda module, _, output, name=name: compare(name, module, output))
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules below a model by their names in the user's, but for what observes and for whole graphs."""
    own = user_names(model)
    inside = {id(child) for module in model.modules() if isinstance(module, nn.Sequential) and isinstance(
        module, _FusedModule) for child in module.children()}
    for name, module in model.named_modules():
        whole = isinstance(module, torch.fx.GraphModule) or id(module) in inside
        if name and not whole and "fake_quant" not in name and "activation_post_process" not in name:
            yield own[name], module


def _like(values: Any, form: Any) -> Any:
    """Return values in the dtype and with the qparams of a form; None if they do not have its structure and shapes."""
    given, structure = pytree.tree_flatten(values)
    wanted, other = pytree.tree_flatten(form)
    if structure != other:
        return None
    found = []
    for value, like in zip(given, wanted, strict=True):
        if not isinstance(value, Tensor) or not isinstance(like, Tensor):
            found.append(like)
        elif value.shape != like.shape or (like.is_quantized and like.qscheme() != torch.per_tensor_affine):
            return None
        elif like.is_quantized:
            found.append(torch.quantize_per_tensor(value.float(), like.q_scale(), like.q_zero_point(), like.dtype))
        else:
            found.append(value.to(like.dtype))
    return pytree.tree_unflatten(found, structure)


def _copied(values: Any) -> Any:
    return pytree.tree_map(lambda value: _plain(value).clone() if isinstance(value, Tensor) else value, values)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor
