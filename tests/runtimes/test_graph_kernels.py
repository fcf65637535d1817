"""What exported graphs compute: names, kinds and MACs of their products, counted by hand."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pytest_qat.measure.macs import count_macs
from pytest_qat.runtimes.base import Kernel
from pytest_qat.runtimes.graph_kernels import REFERENCE_REASON, dequantized, kernels_of, op_name, products, requantized


class Calling(nn.Module):
    """A module around a function of tensors."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def exported(model: Any, *inputs: Tensor) -> torch.fx.GraphModule:
    module = model if isinstance(model, nn.Module) else Calling(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph_module: torch.fx.GraphModule = torch.export.export(module.eval(), inputs).graph_module
    return graph_module


def only_kernel(model: Any, *inputs: Tensor) -> Kernel:
    (kernel,) = kernels_of(exported(model, *inputs))
    return kernel


# -- MACs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "shape", "macs"), [
    (nn.Conv1d(3, 4, 5), (2, 3, 10), 2 * 4 * 6 * 3 * 5),
    (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 8, 8), 2 * 4 * 64 * 27),
    (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 8, 8), 2 * 4 * 64 * 27),
    (nn.Conv2d(3, 4, 3, stride=2, bias=False), (2, 3, 9, 9), 2 * 4 * 16 * 27),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 8, 8), 2 * 4 * 64 * 9),
    (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 3 * 27 * 16),
    (nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 5, 5), 2 * 3 * 25 * 4 * 4),
    (nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), (2, 4, 5, 5), 2 * 4 * 25 * 2 * 4),
    (nn.Linear(5, 7), (2, 5), 2 * 7 * 5),
    (nn.Linear(5, 7, bias=False), (2, 3, 5), 2 * 3 * 7 * 5),
])
def test_macs_of_a_layer(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    inputs = torch.randn(shape)
    kernel = only_kernel(nn.Sequential(layer), inputs)
    assert (kernel.module, kernel.macs) == ("0", macs)
    assert sum(count_macs(layer, (inputs,)).by_module.values()) == macs, "as the float model counts them"


@pytest.mark.parametrize(("function", "shapes", "op", "macs"), [
    (torch.matmul, [(2, 3, 4), (2, 4, 5)], "matmul", 2 * 3 * 5 * 4),
    (torch.mm, [(3, 4), (4, 5)], "mm", 3 * 5 * 4),
    (torch.bmm, [(2, 3, 4), (2, 4, 5)], "bmm", 2 * 3 * 5 * 4),
    (torch.addmm, [(5,), (3, 4), (4, 5)], "addmm", 3 * 5 * 4),
    (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], "baddbmm", 2 * 3 * 5 * 4),
    (F.scaled_dot_product_attention, [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)], "scaled_dot_product_attention",
     2 * 3 * 5 * 7 * (8 + 8)),
    (F.scaled_dot_product_attention, [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)], "scaled_dot_product_attention",
     2 * 3 * 5 * 7 * (8 + 6)),
])
def test_macs_of_a_product(function: Any, shapes: list[tuple[int, ...]], op: str, macs: int) -> None:
    inputs = [torch.randn(shape) for shape in shapes]
    kernel = only_kernel(function, *inputs)
    assert (kernel.op, kernel.macs) == (op, macs)
    if op != "scaled_dot_product_attention":  # for whose fused kernel torch's counter has no formula
        assert sum(count_macs(Calling(function), tuple(inputs)).by_module.values()) == macs


def test_macs_are_those_of_the_example_where_the_batch_is_open() -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(5, 7)), (torch.randn(4, 5),),
                                  dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert [kernel.macs for kernel in kernels_of(program.graph_module)] == [4 * 7 * 5]


def test_macs_are_unknown_where_the_graph_carries_no_shapes() -> None:
    graph_module = exported(nn.Linear(5, 7), torch.randn(2, 5))
    for node in graph_module.graph.nodes:
        node.meta.pop("val", None)
    assert [kernel.macs for kernel in kernels_of(graph_module)] == [None]


# -- names ----------------------------------------------------------------------------------------------------------


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.twice = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(self.first(x).mean((2, 3))))
        product: Tensor = y @ y.T
        return product


def test_kernels_come_in_order_with_the_names_of_the_user_s_modules() -> None:
    found = kernels_of(exported(Nested(), torch.randn(2, 3, 4, 4)))
    assert [(kernel.op, kernel.module) for kernel in found] == [
        ("conv2d", "first.0"), ("linear", "twice"), ("linear", "twice"), ("matmul", "")]


def test_only_products_are_kernels() -> None:
    graph = exported(lambda x: F.softmax(F.relu(x) + x, -1).mean(), torch.randn(2, 3)).graph
    assert list(products(graph)) == []


def test_the_bare_name_of_an_op_has_neither_namespace_nor_overload() -> None:
    graph = exported(lambda x: F.relu(x) + 1, torch.randn(2, 3)).graph
    assert [op_name(node) for node in graph.nodes if node.op == "call_function"] == ["relu", "add"]


# -- int8 or not ----------------------------------------------------------------------------------------------------


def quantized_graph(*, data: bool = True, weight: bool = True, reshape: bool = False, relu: bool = False,
                    result: bool = True) -> torch.fx.GraphModule:
    """A linear layer between quantize and dequantize ops, as PT2E leaves them."""
    import torch.ao.quantization.fx._decomposed  # registers the ops

    ops = torch.ops.quantized_decomposed
    form = (0.1, 0, -128, 127, torch.int8)

    def simulated(x: Tensor) -> Tensor:
        back: Tensor = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *form), *form)
        return back

    def function(x: Tensor, w: Tensor) -> Tensor:
        x = simulated(x) if data else x
        w = simulated(w) if weight else w
        y = F.linear(x.reshape(2, 5) if reshape else x, w)
        y = F.relu(y) if relu else y
        return simulated(y) if result else y

    return exported(function, torch.randn(2, 1, 5) if reshape else torch.randn(2, 5), torch.randn(7, 5))


def linear_of(graph_module: torch.fx.GraphModule) -> torch.fx.Node:
    (node,) = products(graph_module.graph)
    return node


@pytest.mark.parametrize("reshape", [False, True])
def test_a_product_of_dequantized_tensors_is_the_reference_form(reshape: bool) -> None:
    (kernel,) = kernels_of(quantized_graph(reshape=reshape))
    assert (kernel.int8, kernel.reason, kernel.macs) == (False, REFERENCE_REASON, 70)


def test_in_a_delegate_the_same_product_is_an_int8_kernel() -> None:
    (kernel,) = kernels_of(quantized_graph(), lowered=True)
    assert (kernel.int8, kernel.reason) == (True, "")


@pytest.mark.parametrize("lowered", [False, True])
def test_xnnpack_has_no_int8_kernel_for_a_product_of_two_activations(lowered: bool) -> None:
    import torch.ao.quantization.fx._decomposed  # registers the ops

    def function(x: Tensor, y: Tensor) -> Tensor:
        form, ops = (0.1, 0, -128, 127, torch.int8), torch.ops.quantized_decomposed
        both = [ops.dequantize_per_tensor(ops.quantize_per_tensor(value, *form), *form) for value in (x, y)]
        return torch.bmm(*both)

    (kernel,) = kernels_of(exported(function, torch.randn(2, 3, 4), torch.randn(2, 4, 5)), lowered=lowered)
    assert not kernel.int8
    assert kernel.reason == ("XNNPACK multiplies two activations in float" if lowered else REFERENCE_REASON)


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("float_side", ["data", "weight"])
def test_a_product_with_one_float_side_is_float_everywhere(lowered: bool, float_side: str) -> None:
    (kernel,) = kernels_of(quantized_graph(**{float_side: False}), lowered=lowered)
    assert (kernel.int8, kernel.reason) == (False, "its inputs are not quantized")


def test_a_value_is_dequantized_also_through_a_change_of_shape() -> None:
    for reshape in (False, True):
        data, weight = linear_of(quantized_graph(reshape=reshape)).args[:2]
        assert dequantized(data) and dequantized(weight)  # type: ignore[arg-type]  # noqa: PT018 - one of a kind
    assert not dequantized(linear_of(quantized_graph(data=False)).args[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("relu", [False, True])
def test_a_result_is_requantized_also_behind_its_activation(relu: bool) -> None:
    assert requantized(linear_of(quantized_graph(relu=relu)))
    assert not requantized(linear_of(quantized_graph(relu=relu, result=False)))


def test_an_integer_product_is_int8_without_any_quantize_op() -> None:
    left, right = torch.ones(17, 8, dtype=torch.int8), torch.ones(8, 8, dtype=torch.int8)
    kernel = only_kernel(torch._int_mm, left, right)
    assert (kernel.int8, kernel.op, kernel.macs, kernel.reason) == (True, "_int_mm", 17 * 8 * 8, "")


class Unread(nn.Module):
    """Two layers, and two whose results reach the output: by themselves, and written into a view."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.spoiled, self.main, self.added = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        self.dead(x).tanh().add_(1)
        self.spoiled(x).relu()
        y = self.main(x)
        y[:, :2].add_(self.added(x)[:, :2])
        return y


def test_what_no_output_depends_on_is_no_kernel() -> None:
    assert [kernel.module for kernel in kernels_of(exported(Unread().eval(), torch.randn(2, 4)))] == ["main", "added"]
