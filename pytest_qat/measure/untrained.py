"""Whether anybody has trained a model, as its normalization layers tell.

Training moves the scale and the shift of every normalization layer off the constants that they start from, and batch
norm's running statistics too. A model in which all of them still stand there has random weights: its outputs hardly
depend on its inputs in ways that matter, and how far int8 changes them says little about the trained model.
"""

from __future__ import annotations

from torch import Tensor, nn

from pytest_qat.core.libraries import weights_drawn_by

__all__ = ["untrained_norms", "why_random"]


def why_random(model: nn.Module) -> str:
    """Return how it is known that a model has random weights, as a clause; "" where nothing says that it has."""
    if library := weights_drawn_by(model):
        return f"{library} drew them"
    norms = untrained_norms(model)
    layers = "normalization layer still holds" if norms == 1 else f"{norms} normalization layers still hold"
    return f"its {layers} the values that a new layer starts from" if norms else ""


def untrained_norms(model: nn.Module) -> int:
    """Return how many normalization layers a model has if none has ever been trained; 0 if one has, or there is none.

    A layer counts as a normalization layer if its class says so (`LayerNorm`, `BatchNorm2d`, a user's `RMSNorm`) and
    it has a scale, a shift or running statistics of its own.
    """
    count = 0
    for module in model.modules():
        if "norm" not in type(module).__name__.lower():
            continue
        state = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        known = [(name, tensor) for name, tensor in state if name in _STARTS]
        if not known:
            continue
        if not all(_as_at_start(name, tensor) for name, tensor in known):
            return 0
        count += 1
    return count


_STARTS: dict[str, float | None] = {"weight": None, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
"""What each tensor of a normalization layer starts from, the same everywhere; None: any value, for a scale may be 0."""


def _as_at_start(name: str, tensor: Tensor) -> bool:
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    values = tensor.detach()
    start = _STARTS[name]
    first = values.flatten()[0].item() if start is None else start
    # One value of one channel is no constant: a trained scale of a single channel would look like one.
    return bool((values == first).all()) and (start is not None or values.numel() > 1 or first in (0.0, 1.0))
