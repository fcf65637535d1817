"""A model taken through FX mode, for tests that look at what came of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.core.batches import call, float_tensors
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.finetune import calibrate
from pytest_qat.measure.coverage import Coverage, measure_coverage
from pytest_qat.measure.parity import sqnr_db
from pytest_qat.recipe import get_recipe
from pytest_qat.workflows import PreparedModel, fx

__all__ = ["RECIPE", "Made"]

RECIPE = get_recipe("fx-x86")


class Made:
    """A model taken through FX without training."""

    def __init__(self, model: nn.Module, inputs: Any, **settings: Any) -> None:
        example = inputs if isinstance(inputs, tuple) else (inputs,)
        with preserved_torch_state(seed=0), quantized_engine("x86"):
            self.case = QATCase(model=model.eval(), example_inputs=example, **settings)
            self.before = copy.deepcopy(model)
            self.prepared: PreparedModel = fx.prepare(self.case, RECIPE)
            calibrate(self.prepared.module, [example])
            self.int8 = fx.convert(self.prepared, RECIPE).module
            with torch.no_grad():
                self.wanted = float_tensors(call(copy.deepcopy(model), example))
                self.made = float_tensors(call(self.int8, example))

    @property
    def sqnr_db(self) -> float:
        """Worst agreement of any output with float."""
        assert len(self.wanted) == len(self.made)
        return min(sqnr_db(one, other) for one, other in zip(self.wanted, self.made, strict=True))

    def coverage(self) -> Coverage:
        """What runs in int8."""
        with quantized_engine("x86"):
            return measure_coverage(self.case.model, self.int8, self.case.example_inputs,
                                    reasons=self.prepared.float_modules)

    def int8_layers(self) -> int:
        """Number of int8 layers that run."""
        return self.coverage().int8_modules
