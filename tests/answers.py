"""Answers of models, taken as the pipeline takes them, and how far two of them agree."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.properties.known_issues import lacks_vnni
from pytest_qat.runtimes import Deployed

__all__ = ["agree", "answer", "assert_op_is_timed", "quietly", "skip_where_kernels_saturate", "sqnr_db"]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """As the pipeline runs its stages; converters warn about themselves."""
    with preserved_torch_state(seed=0), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def answer(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return model(*inputs)


def sqnr_db(reference: Tensor, found: Tensor) -> float:
    assert reference.shape == found.shape
    noise = (reference - found).double().square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise.clamp_min(1e-30)))


def agree(reference: Any, found: Any, *, least_db: float) -> bool:
    assert pytree.tree_structure(reference) == pytree.tree_structure(found)
    return all(sqnr_db(one, other) > least_db if isinstance(one, Tensor) else one == other for one, other in zip(
        pytree.tree_leaves(reference), pytree.tree_leaves(found), strict=True))


def assert_op_is_timed(form: Deployed, inputs: Any, op: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An op of this name takes time; ops come longest first, and nothing is printed about them."""
    capfd.readouterr()
    with form.session(), torch.no_grad():
        form.run(form.adapt(inputs))
        found = form.op_times(form.adapt(inputs))
    assert [each.seconds for each in found] == sorted((each.seconds for each in found), reverse=True)
    assert sum(each.seconds for each in found if op in each.op) > 0, [each.op for each in found]
    assert capfd.readouterr() == ("", "")


def skip_where_kernels_saturate(recipe: str, side: str = "int8") -> None:
    """Skip a comparison that ONNX Runtime cannot hold here: without VNNI, sums of two 8-bit products saturate."""
    if recipe == "pt2e-onnxruntime" and side == "int8" and lacks_vnni():
        pytest.skip("ONNX Runtime's int8 kernels saturate on a CPU without VNNI (microsoft/onnxruntime#6004)")
