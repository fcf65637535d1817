"""Find what eager mode can fuse (conv-bn-relu and so on) from a traced call, inside any user-made container."""

from __future__ import annotations

from torch import nn
from torch.ao.quantization import fuser_method_mappings

from pytest_qat.workflows.eager.trace import Call, Trace

__all__ = ["fusable_chains"]

# Fusing a transposed convolution with its BatchNorm is not implemented for QAT in torch.ao.
_PATTERNS = frozenset(
    pattern for pattern in fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD  # noqa: SLF001 - no public list
    if pattern[0] not in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
)


def fusable_chains(trace: Trace, model: nn.Module, *, keep: frozenset[str]) -> list[list[str]]:
    """Return groups of module names that may be fused, longest first at each start.

    A group qualifies when its types are a pattern of torch.ao, each module is called once, and each value inside
    goes to the next module and nowhere else.

    Args:
        trace: One call of `model`.
        model: The traced model.
        keep: Names of modules that must stay as they are.
    """
    counts = trace.call_counts()
    chains: list[list[str]] = []
    taken: set[str] = set()
    for start in trace.calls:
        if start.kind != "module" or start.name in taken:
            continue
        chain = _longest(start, trace, model)
        if chain and not taken.intersection(chain) and not keep.intersection(chain) and (
                all(counts[name] == 1 for name in chain)):
            chains.append(chain)
            taken.update(chain)
    return chains


def _longest(start: Call, trace: Trace, model: nn.Module) -> list[str]:
    best: list[str] = []
    names, kinds, current = [start.name], [type(model.get_submodule(start.name))], start
    while len(names) < 3:
        following = _only_consumer(current, trace)
        if following is None:
            break
        names.append(following.name)
        kinds.append(type(model.get_submodule(following.name)))
        if tuple(kinds) in _PATTERNS:
            best = list(names)
        current = following
    return best


def _only_consumer(entry: Call, trace: Trace) -> Call | None:
    if len(entry.outputs) != 1 or entry.outputs[0] in trace.outputs:
        return None
    consumers = trace.consumers(entry.outputs[0])
    return consumers[0] if len(consumers) == 1 and consumers[0].kind == "module" else None
