"""The user's own names of the modules in a prepared or converted model, whatever a workflow wrapped around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.ao.nn import quantizable as nnqa
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic.modules.fused import _FusedModule

from pytest_qat.exported.model import ExportedModel
from pytest_qat.exported.program import module_of
from pytest_qat.workflows.eager.wrappers import FloatIsland, QuantizedBorder
from pytest_qat.workflows.fx.parts import Part

__all__ = ["observed", "observed_module", "user_names"]


def user_names(model: nn.Module) -> dict[str, str]:
    """Return the user's own name of every module of a prepared or converted model, by its actual name.

    Borders and islands are this package's; what they add answers to the name of what they wrap.
    """
    names: dict[str, str] = {}

    def walk(module: nn.Module, actual: str, own: str, *, ours: bool, in_part: bool) -> None:
        names[actual] = own
        wrapper = isinstance(module, (QuantizedBorder, FloatIsland))
        part = isinstance(module, Part)
        one = isinstance(module, (nnqa.LSTM, nnq.LSTM))  # what is inside is torch.ao's, and answers to its name
        fused = isinstance(module, nn.Sequential) and isinstance(module, _FusedModule)
        for leaf, child in module._modules.items():  # noqa: SLF001 - named_children hides shared modules
            if child is not None:
                added = ours or one or (wrapper and leaf != "module") or (in_part and leaf != "module")
                same = wrapper or part or in_part or added or (fused and leaf.isdigit())
                inside = own if same else f"{own}.{leaf}" if own else leaf
                walk(child, f"{actual}.{leaf}" if actual else leaf, inside, ours=added, in_part=part)

    walk(model, "", "", ours=False, in_part=False)
    exported = {id(module.graph_module) for module in model.modules() if isinstance(module, ExportedModel)}
    for actual, module in model.named_modules():
        if isinstance(module, ExportedModel):
            names.update(_exported_names(module, actual))
        elif isinstance(module, torch.fx.GraphModule) and id(module) not in exported:
            names.update(_observed_names(module, names[actual], actual))
    return names


def observed(name: str) -> str:
    """Return what an observer with this user's name looks at, for a message."""
    return observed_module(name) or "the input"


def observed_module(name: str) -> str | None:
    """Return the module whose weights or output an observer with this user's name looks at; None for the input."""
    module = name.partition("activation_post_process")[0].rstrip(".").partition(".parametrizations.")[0]
    for leaf in ("weight_fake_quant", "weight"):
        if module == leaf or module.endswith(f".{leaf}"):
            module = module.removesuffix(leaf).rstrip(".")
    return module or None


def _observed_names(model: torch.fx.GraphModule, own: str, actual: str) -> dict[str, str]:
    """Names of the observers that torch.fx put into a graph: the module they look at or behind, "" for inputs."""
    found = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("activation_post_process"):
            user = _nearest(node.args[0], _called_module)
            name = ".".join(part for part in (own, user, "activation_post_process") if part)
            place = f"{actual}.{node.target}" if actual else str(node.target)
            found.update({place: name, f"{place}.activation_post_process": name})
    return found


def _called_module(node: torch.fx.Node) -> str:
    name = str(node.target) if node.op == "call_module" else ""
    return "" if name.startswith("activation_post_process") else name


def _exported_names(model: ExportedModel, actual: str) -> dict[str, str]:
    """Names inside an exported graph, whose modules hold the user's tensors; observers answer to what they look at."""
    prefix = f"{actual}.graph_module" if actual else "graph_module"
    names = {f"{prefix}.{name}" if name else prefix: "" if name.startswith("activation_post_process") else name
             for name, _ in model.graph_module.named_modules()}
    for node in model.graph_module.graph.nodes:
        if node.op == "call_module" and node.args and isinstance(node.args[0], torch.fx.Node) and (
                str(node.target).startswith("activation_post_process")):
            names[f"{prefix}.{node.target}"] = _observed_in_graph(node.args[0])
    return names


def _observed_in_graph(source: torch.fx.Node) -> str:
    """Return the name of an observer in an exported graph: a weight, what a module makes, or "" for inputs."""
    if source.op == "placeholder":
        return ""
    if source.op == "get_attr":
        return str(source.target)
    leaf = "activation_post_process" if _depends_on_input(source) else "weight"  # with batch norm folded in
    user = _nearest(source, module_of)
    return f"{user}.{leaf}" if user else ""


def _depends_on_input(node: torch.fx.Node) -> bool:
    seen, nodes = {node}, [node]
    for each in nodes:  # grows
        if each.op == "placeholder":
            return True
        sources = [source for source in each.all_input_nodes if source not in seen]
        seen.update(sources)
        nodes += sources
    return False


def _nearest(node: torch.fx.Node, named: Callable[[torch.fx.Node], str]) -> str:
    """Return the name of the nearest node with one at which or behind which a value is made; "" if there is none."""
    seen, nodes = {node}, [node]
    for each in nodes:  # grows
        if name := named(each):
            return name
        sources = [source for source in each.all_input_nodes if source not in seen and source.op != "get_attr"]
        seen.update(sources)
        nodes += sources
    return ""
