"""The types that a workflow takes and returns. A `PreparedModel` cannot be timed, a `ConvertedModel` not trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.recipe import Recipe

__all__ = ["CONTAINERS", "ConvertedModel", "PreparedModel", "Workflow"]

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that only hold others; what runs are their children."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel:
    """A model with observers and fake-quantize modules, ready to be calibrated and trained.

    Attributes:
        module: The prepared module; its parameters are the ones to train.
        float_modules: Reasons by module name for what stays in float.
    """

    module: nn.Module
    float_modules: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedModel:
    """A model whose quantized modules hold int8 weights and call int8 kernels; in eval mode, not trainable."""

    module: nn.Module


class Workflow(Protocol):
    """How a model is prepared and converted. The user's model is copied, never changed."""

    CONVERTS_SLOWLY: bool
    """Whether converting takes seconds to minutes; then the untrained control is scored in its simulated form."""

    def prepare(self, case: QATCase, recipe: Recipe) -> PreparedModel:
        """Return a QAT-prepared copy of the case's model.

        Raises:
            CheckFailed: the model cannot be prepared; the findings name module, cause and remedy.
        """

    def convert(self, prepared: PreparedModel, recipe: Recipe) -> ConvertedModel:
        """Return the int8 form of a copy of the prepared model."""

    def float_twin(self, case: QATCase) -> nn.Module:
        """Return the float model as it would ship without quantization: eval mode, BatchNorm folded."""

