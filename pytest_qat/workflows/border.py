"""Modules that eager quantization needs around a user's model: stubs at its border, and islands of float inside."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.workflows.exported import ExportedModel, module_of

__all__ = ["FloatIsland", "QuantizedBorder", "is_stub", "observed", "user_names"]


class QuantizedBorder(nn.Module):
    """A model with one QuantStub per floating-point input tensor and a DeQuantStub on every output tensor.

    `torch.ao.quantization.QuantWrapper` does this for one input and one output; here inputs and outputs nest.
    """

    def __init__(self, module: nn.Module, *, inputs: tuple[Any, ...], qconfig: Any) -> None:
        super().__init__()
        floats = sum(_is_float(leaf) for leaf in pytree.tree_leaves(inputs))
        self.quants = nn.ModuleList(tq.QuantStub(qconfig) for _ in range(floats))
        self.dequant = tq.DeQuantStub()
        self.module = module
        self.qconfig: Any = qconfig
        self.dequant.qconfig = qconfig

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Quantize the float inputs in order, call the model, dequantize its outputs."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        stubs = iter(self.quants)
        leaves = [next(stubs)(leaf) if _is_float(leaf) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return pytree.tree_map_only(Tensor, self.dequant, self.module(*args, **kwargs))


class FloatIsland(nn.Module):
    """A module that stays in float between int8 neighbours: dequantize, call it, and quantize again if needed."""

    def __init__(self, module: nn.Module, *, requantize: bool, qconfig: Any) -> None:
        super().__init__()
        self.dequant = tq.DeQuantStub()
        self.dequant.qconfig = None
        self.module = module
        border: Any = tq.QuantStub(qconfig) if requantize else nn.Identity()
        border.qconfig = qconfig if requantize else None
        self.quant = border
        self.qconfig: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module on dequantized tensors."""
        args, kwargs = pytree.tree_map_only(Tensor, _dequantized, (args, kwargs))
        return pytree.tree_map_only(Tensor, self.quant, self.module(*args, **kwargs))


def is_stub(module: nn.Module) -> bool:
    """Whether a module only marks the way into or out of int8."""
    return isinstance(module, (tq.QuantStub, tq.DeQuantStub))


def user_names(model: nn.Module) -> dict[str, str]:
    """Return the user's own name of every module of a prepared or converted model, by its actual name.

    Borders and islands are this package's; what they add answers to the name of what they wrap.
    """
    names: dict[str, str] = {}

    def walk(module: nn.Module, actual: str, own: str, *, ours: bool) -> None:
        names[actual] = own
        wrapper = isinstance(module, (QuantizedBorder, FloatIsland))
        for leaf, child in module._modules.items():  # noqa: SLF001 - named_children hides shared modules
            if child is not None:
                added = ours or (wrapper and leaf != "module")
                inside = own if wrapper or added else f"{own}.{leaf}" if own else leaf
                walk(child, f"{actual}.{leaf}" if actual else leaf, inside, ours=added)

    walk(model, "", "", ours=False)
    exported = {id(module.graph_module) for module in model.modules() if isinstance(module, ExportedModel)}
    for actual, module in model.named_modules():
        if isinstance(module, ExportedModel):
            names.update(_exported_names(module, actual))
        elif isinstance(module, torch.fx.GraphModule) and id(module) not in exported:
            names.update(_observed_names(module, names[actual], actual))
    return names


def observed(name: str) -> str:
    """Return what an observer with this user's name looks at."""
    return name.partition("activation_post_process")[0].rstrip(".") or "the input"


def _observed_names(model: torch.fx.GraphModule, own: str, actual: str) -> dict[str, str]:
    """Names of the observers that torch.fx put into a graph: the module whose output they look at, "" for inputs."""
    found = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("activation_post_process"):
            seen = node.args[0]
            user = str(seen.target) if seen.op == "call_module" else ""
            name = ".".join(part for part in (own, user, "activation_post_process") if part)
            place = f"{actual}.{node.target}" if actual else str(node.target)
            found.update({place: name, f"{place}.activation_post_process": name})
    return found


def _exported_names(model: ExportedModel, actual: str) -> dict[str, str]:
    """Names inside an exported graph, where only observers and fake-quantizers are modules: what they look at."""
    prefix = f"{actual}.graph_module" if actual else "graph_module"
    inside = [name for name, _ in model.graph_module.named_modules()]
    names = dict.fromkeys((f"{prefix}.{name}" if name else prefix for name in inside), "")
    for node in model.graph_module.graph.nodes:
        if node.op == "call_module" and node.args and isinstance(node.args[0], torch.fx.Node):
            user = module_of(node.args[0])
            names[f"{prefix}.{node.target}"] = f"{user}.activation_post_process" if user else ""
    return names


def _dequantized(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
