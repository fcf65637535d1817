"""Linear layers that hold their weights as (inputs, outputs), as GPT-2's `Conv1D` does, written as `nn.Linear`.

No quantizer knows the `addmm` that they call; the linear layer that they are, each does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["as_linear", "may_be_transposed"]


def may_be_transposed(model: nn.Module) -> Iterator[str]:
    """Yield the names of modules that have the parameters of such a layer, and nothing else that computes."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        alone = not any(True for _ in module.children()) and not any(True for _ in module.buffers())
        users = not type(module).__module__.startswith("torch.") and not isinstance(module, (nn.Linear, nn.Embedding))
        if (name and alone and users and own.keys() in ({"weight"}, {"weight", "bias"}) and own["weight"].dim() == 2
                and uses[id(own["weight"])] == 1):
            yield name


def as_linear(model: nn.Module) -> dict[str, str]:
    """Replace such layers in place, and return their classes by name; what computes anything else is left alone."""
    found = {}
    for name in list(may_be_transposed(model)):
        module = model.get_submodule(name)
        if _is_transposed(module):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _linear_of(module))
            found[name] = type(module).__name__
    return found


def _is_transposed(module: nn.Module) -> bool:
    weight, bias = _parameters(module)
    was = module.training
    state = torch.get_rng_state()
    try:
        for training in (True, False):
            module.train(training)
            for shape in ((3, len(weight)), (2, 3, len(weight))):
                x = torch.randn(shape, dtype=weight.dtype)
                made, wanted = module(x), functional.linear(x, weight.t(), bias)
                if not isinstance(made, Tensor) or made.shape != wanted.shape or not torch.allclose(
                        made, wanted, atol=1e-4, rtol=1e-4):
                    return False
    except Exception:  # whatever else a module of the user's does with such inputs
        return False
    finally:
        module.train(was)
        torch.set_rng_state(state)
    return True


def _linear_of(module: nn.Module) -> nn.Linear:
    weight, bias = _parameters(module)
    with torch.device("meta"):
        made = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None)
    made.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    for name, value in vars(module).items():  # code around it may read what it was made with
        vars(made).setdefault(name, value)
    return made.train(module.training)


def _parameters(module: Any) -> tuple[Tensor, Tensor | None]:
    return module.weight, getattr(module, "bias", None)
