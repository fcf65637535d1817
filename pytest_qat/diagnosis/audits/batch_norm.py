"""What happens to batch norm on the way: left unfused, folded before training, moved, or training at evaluation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pytest_qat.core.batches import call
from pytest_qat.diagnosis.given import Given, outputs_of
from pytest_qat.diagnosis.lost import with_statistics_of
from pytest_qat.exported.model import ExportedModel, training_nodes
from pytest_qat.findings import Finding, json_number
from pytest_qat.measure.agreement import agreement_db
from pytest_qat.workflows.observers import switch_fake_quantize, switch_observers

__all__ = ["drifted", "folded_before_training", "trains_at_evaluation", "unfused"]

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NAMED = 5
_HEALTHY_DB = 20.0
_MENDS_DB = 6.0


def _pairs(given: Given) -> list[tuple[str, str]]:
    """Return the names of each layer whose output goes to a batch norm, and of that batch norm, in the float model."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: list[tuple[str, str]] = []
    names = {id(module): name for name, module in given.float_model.named_modules()}

    def after(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = (names[id(module)], output)

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in made:
            found.append((made[id(args[0])][0], names[id(module)]))

    handles = [module.register_forward_hook(after) for module in given.float_model.modules()
               if isinstance(module, _FOLDABLE)]
    handles += [module.register_forward_pre_hook(before) for module in given.float_model.modules()
                if isinstance(module, _BatchNorm)]
    try:
        with torch.inference_mode():
            call(given.float_model, given.case.example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _quantized_apart(model: nn.Module, name: str) -> bool:
    """Whether a model still has a batch norm of this name, as a layer that is quantized by itself."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return False
    kind = type(module)
    if kind.__module__.startswith("torch.ao.nn.quantized"):
        return "BatchNorm" in kind.__name__
    return isinstance(module, _BatchNorm) and getattr(module, "qconfig", None) is not None


def unfused(given: Given) -> Iterator[Finding]:
    """Batch norms behind a layer that they could be folded into."""
    stage = given.converted if given.converted is not None else given.prepared
    if stage is None or isinstance(stage, (ExportedModel, torch.fx.GraphModule)):
        return
    left = [(layer, norm) for layer, norm in _pairs(given) if _quantized_apart(stage, norm)]
    if not left:
        return
    named = ", ".join(f"{layer} and {norm}" for layer, norm in left[:_NAMED])
    yield Finding(
        code="batch-norm-unfused", severity="warning", module=left[0][1], evidence={"pairs": left[:_NAMED],
                                                                                 "of": len(left)},
        message=f"{len(left)} batch norm{'s were' if len(left) > 1 else ' was'} left beside the layer before "
                f"({named}): each rounds to int8 once more and takes a kernel of its own.",
        remedy=f"fuse them before preparing: fuse_modules_qat(model.train(), [[{left[0][0]!r}, {left[0][1]!r}]]) for "
               "QAT, fuse_modules on model.eval() for calibration only.")


def folded_before_training(given: Given) -> Iterator[Finding]:
    """A model for QAT whose batch norms are gone, though the float model has them."""
    prepared = given.prepared
    if prepared is None or not given.simulates or isinstance(prepared, ExportedModel):
        return
    pairs = _pairs(given)
    if not pairs or any(isinstance(module, _BatchNorm) or hasattr(module, "bn") for module in prepared.modules()):
        return
    yield Finding(
        code="batch-norm-folded-before-training", severity="warning", module=pairs[0][0],
        evidence={"layers": [layer for layer, _ in pairs[:_NAMED]], "of": len(pairs)},
        message=f"the batch norms of {len(pairs)} layers ({', '.join(layer for layer, _ in pairs[:_NAMED])}) were "
                "folded into the weights before the model was prepared for QAT, so training goes on without them.",
        remedy="use fuse_modules_qat on the model in train mode, which keeps batch norm until convert; fuse_modules "
               "in eval mode is for calibration only.")


def drifted(given: Given) -> Iterator[Finding]:
    """Running statistics of a prepared model that the float model's would mend."""
    if given.prepared is None:
        return
    model = copy.deepcopy(given.prepared).eval()
    switch_observers(model, on=False)
    switch_fake_quantize(model, on=False)
    if (restored := with_statistics_of(given.float_model, model)) is None:
        return
    mended, place = restored
    wanted = outputs_of(given.float_model, given.batches)
    was = agreement_db(wanted, outputs_of(model, given.batches))
    becomes = agreement_db(wanted, outputs_of(mended, given.batches))
    if was >= _HEALTHY_DB or becomes - was < _MENDS_DB:
        return
    yield Finding(
        code="batch-norm-drifted", severity="error", module=place or None,
        evidence={"sqnr_db": json_number(was), "mended_db": json_number(becomes)},
        message=f"the running means and variances of batch norm moved away from the float model's, most at {place}: "
                f"with nothing rounded, the prepared model agrees with float to {was:.1f} dB, and with the float "
                f"model's statistics to {becomes:.1f} dB.",
        remedy="calibrate in eval mode; in QAT, freeze batch norm's statistics before the last epochs "
               "(freeze_bn_stats, or .eval() of the batch norms), and train with larger batches of data like those of "
               "the evaluation.")


def trains_at_evaluation(given: Given) -> Iterator[Finding]:
    """Batch norm or dropout of the converted model, or of one that is calibrated only, that is in train mode."""
    calibrated = given.observes and not given.simulates and isinstance(given.prepared, ExportedModel)
    ptq = given.prepared if calibrated else None
    model, stage = (given.converted, "converted") if given.converted is not None else (ptq, "prepared")
    if model is None:
        return
    own = _in_train_mode(model)
    if not own:
        return
    first = given.batches[:1]
    trained = outputs_of(model, first)
    level = agreement_db(trained, outputs_of(model.eval(), first))
    yield Finding(
        code="batch-norm-in-training", severity="error", module=own[0] or None,
        evidence={"modules": own[:_NAMED], "sqnr_db": json_number(level)},
        message=f"{', '.join(name or 'a layer' for name in own[:_NAMED])} of the {stage} model "
                f"{'are' if len(own) > 1 else 'is'} in train mode: the outputs depend on the other samples of the "
                f"batch or on chance, and agree with those in eval mode to {level:.1f} dB.",
        remedy="call move_exported_model_to_eval(model) of torchao.quantization.pt2e on the exported graph, whose "
               ".eval() has no effect on its ops." if isinstance(model, ExportedModel) else
        "call .eval() on the model before it is prepared and converted.")


def _in_train_mode(model: nn.Module) -> list[str]:
    if isinstance(model, ExportedModel):
        return training_nodes(model.graph_module)
    return [name for name, module in model.named_modules() if module.training and not type(
        module).__module__.startswith("torch.ao.nn") and isinstance(
            module, (_BatchNorm, nn.modules.dropout._DropoutNd))]  # noqa: SLF001 - the base of all of them
