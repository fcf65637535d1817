"""How much of a model runs in int8, from tables of an artifact's kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.measure.coverage import Coverage, Idle, Leftover, coverage_of_kernels
from pytest_qat.runtimes.base import Kernel
from pytest_qat.runtimes.graph_kernels import REFERENCE_REASON


class Net(nn.Module):
    """For two samples: conv 2*64*4*27 = 13824 MACs, fc (called twice) 2*2*16 = 64, head 2*20 = 40, spare none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)
        self.spare = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.fc(self.fc(self.bn(self.conv(x)).mean((2, 3)))))
        return logits


CONV, FC, HEAD = 13824, 64, 40
W_CONV, W_FC, W_HEAD, W_SPARE = 108, 16, 20, 12
IMAGES = torch.randn(2, 3, 8, 8)


def kernel(module: str | None, *, int8: bool = True, macs: int | None = None, reason: str | None = None,
           op: str = "op") -> Kernel:
    return Kernel(int8=int8, op=op, module=module, macs=macs,
                  reason=("" if int8 else "runs in float") if reason is None else reason)


def covered(*kernels: Kernel, reasons: dict[str, str] | None = None) -> Coverage:
    return coverage_of_kernels(Net().eval(), kernels, (IMAGES,), reasons=reasons or {})


def left(found: Coverage) -> list[tuple[str, int, int, str]]:
    return [(each.module, each.macs, each.weights, each.reason) for each in found.leftovers]


SPARE = (Idle(module="spare", weights=W_SPARE, called=False, names=("spare.weight",)),)
ALL = (kernel("conv"), kernel("fc"), kernel("fc"), kernel("head"))


# -- kernels that name their modules --------------------------------------------------------------------------------


def test_int8_kernels_of_every_module_cover_all_that_is_called() -> None:
    found = covered(*ALL)
    assert (found.macs, found.int8_macs, found.mac_share) == (CONV + FC + HEAD, CONV + FC + HEAD, 1.0)
    assert (found.weights, found.int8_weights) == (W_CONV + W_FC + W_HEAD, W_CONV + W_FC + W_HEAD)
    assert (found.int8_modules, found.reference) == (3, False)
    assert (left(found), found.idle) == ([], SPARE)


def test_a_float_kernel_is_a_leftover_with_its_reason() -> None:
    found = covered(*ALL[:3], kernel("head", int8=False))
    assert (found.macs, found.int8_macs, found.int8_weights) == (CONV + FC + HEAD, CONV + FC, W_CONV + W_FC)
    assert found.mac_share == (CONV + FC) / (CONV + FC + HEAD)
    assert found.weight_share == (W_CONV + W_FC) / (W_CONV + W_FC + W_HEAD)
    assert left(found) == [("head", HEAD, W_HEAD, "runs in float")]
    assert found.leftovers[0].kind == "Linear"


def test_leftovers_come_with_most_macs_first_then_most_weights() -> None:
    found = covered(*(kernel(name, int8=False) for name in ("head", "conv", "fc")))
    assert [each.module for each in found.leftovers] == ["conv", "fc", "head"]
    assert (found.int8_macs, found.int8_weights, found.int8_modules, found.mac_share) == (0, 0, 0, 0.0)


def test_the_module_s_own_macs_count_and_not_those_of_the_artifact() -> None:
    """Padding, layouts and fused ops make the kernels' own numbers differ."""
    found = covered(kernel("conv", macs=9_999_999), kernel("fc", macs=7), kernel("head", macs=7))
    assert (found.macs, found.int8_macs) == (CONV + FC + HEAD, CONV + FC + HEAD)


def test_a_module_half_in_int8_counts_half_its_macs_and_no_weight() -> None:
    found = covered(kernel("conv"), kernel("fc"), kernel("fc", int8=False), kernel("head"))
    assert (found.macs, found.int8_macs) == (CONV + FC + HEAD, CONV + FC // 2 + HEAD)
    assert found.int8_weights == W_CONV + W_HEAD
    assert left(found) == [("fc", FC // 2, W_FC, "runs in float")]


@pytest.mark.parametrize(("int8", "other", "share"), [(3, 1, 48), (1, 3, 16), (30, 10, 48)])
def test_kernels_of_one_module_share_its_macs_as_their_own_counts_say(int8: int, other: int, share: int) -> None:
    found = covered(kernel("conv"), kernel("fc", macs=int8), kernel("fc", int8=False, macs=other), kernel("head"))
    assert found.int8_macs == CONV + share + HEAD
    assert left(found)[0][:2] == ("fc", FC - share)
    assert found.macs == CONV + FC + HEAD


@pytest.mark.parametrize("macs", [None, 0])
def test_one_sibling_without_macs_makes_the_shares_equal(macs: int | None) -> None:
    found = covered(kernel("conv"), kernel("fc", macs=3), kernel("fc", int8=False, macs=macs), kernel("head"))
    assert (found.int8_macs, found.macs) == (CONV + FC // 2 + HEAD, CONV + FC + HEAD)


def test_a_module_that_no_kernel_names_is_a_leftover() -> None:
    found = covered(kernel("fc"), kernel("head"))
    assert left(found) == [("conv", CONV, W_CONV, "no kernel of the artifact is known to compute it")]
    assert (found.macs, found.int8_macs) == (CONV + FC + HEAD, FC + HEAD)


@pytest.mark.parametrize("int8", [False, True])
def test_a_kernel_that_the_float_model_does_not_ask_for_counts_for_nothing(int8: bool) -> None:
    """A pooling that a converter writes as a convolution, say."""
    found = covered(*ALL, kernel("", macs=50, int8=int8))
    assert (found.macs, found.int8_macs, left(found)) == (CONV + FC + HEAD, CONV + FC + HEAD, [])
    alone = covered(kernel("head", int8=False), kernel("", macs=HEAD, int8=int8), *ALL[:3])
    assert left(alone) == [("head", HEAD, W_HEAD, "runs in float")]


def test_a_part_of_a_module_does_the_products_of_the_module_around_it() -> None:
    """Gates of a recurrent layer, projections of attention."""
    found = covered(*ALL[:3], kernel("head.cell.gates", macs=HEAD // 4), kernel("head.cell.more", macs=3 * HEAD // 4))
    assert (found.mac_share, found.weight_share, left(found)) == (1.0, 1.0, [])


@pytest.mark.parametrize("reasons", [{"head": "skipped"}, {"fc": "no", "head": "skipped"}])
def test_a_known_reason_goes_before_the_artifact_s(reasons: dict[str, str]) -> None:
    found = covered(*ALL[:3], kernel("head", int8=False), reasons=reasons)
    assert left(found)[0] == ("head", HEAD, W_HEAD, "skipped")


def test_a_reason_of_a_parent_is_one_of_its_children() -> None:
    model = nn.ModuleDict({"block": Net()})

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner["block"](x)
            return found

    found = coverage_of_kernels(Around().eval(), [kernel("inner.block.conv", int8=False)], (IMAGES,),
                                reasons={"inner.block": "skipped"})
    assert {each.reason for each in found.leftovers} == {"skipped"}


# -- kernels that do not --------------------------------------------------------------------------------------------


def test_without_names_the_kernels_own_macs_count_and_weights_are_unknown() -> None:
    found = covered(kernel(None, macs=700), kernel(None, macs=300, int8=False, op="Gemm"))
    assert (found.macs, found.int8_macs, found.mac_share) == (CONV + FC + HEAD, 700, 700 / (CONV + FC + HEAD))
    assert (found.int8_weights, found.weight_share, found.int8_modules) == (None, None, 1)
    assert found.leftovers == (Leftover(module="", kind="Gemm", weights=0, macs=CONV + FC + HEAD - 700,
                                        reason="runs in float"),)
    assert found.leftovers[0].title == "a Gemm"


def test_kernels_without_names_that_do_more_than_is_asked_for_share_it() -> None:
    found = covered(kernel(None, macs=3 * 13928), kernel(None, macs=13928, int8=False))
    assert found.mac_share == pytest.approx(0.75, abs=1e-4)


def test_kernels_without_names_are_known_by_their_size() -> None:
    found = covered(kernel(None, macs=CONV), kernel(None, macs=32), kernel(None, macs=32),
                    kernel(None, macs=HEAD, int8=False))
    assert (found.int8_macs, found.int8_weights) == (CONV + FC, W_CONV + W_FC)
    assert left(found) == [("head", HEAD, W_HEAD, "runs in float")]


def test_kernels_of_one_size_and_two_kinds_do_not_convict_a_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    found = coverage_of_kernels(model, [kernel(None, macs=32), kernel(None, macs=32, int8=False, op="Gemm")],
                                (torch.randn(2, 4),), reasons={})
    assert (found.macs, found.int8_macs, found.int8_weights) == (64, 32, None)
    assert [(each.title, each.macs) for each in found.leftovers] == [("a Gemm", 32)]


@pytest.mark.parametrize("other", [None, "no.such.module"])
def test_a_kernel_without_a_known_name_leaves_the_others_their_names(other: str | None) -> None:
    found = covered(kernel("conv"), kernel("fc"), kernel("fc"), kernel(other, macs=HEAD, int8=False))
    assert (found.macs, found.int8_macs) == (CONV + FC + HEAD, CONV + FC)
    assert left(found) == [("head", HEAD, W_HEAD, "runs in float")]
    assert covered(kernel("conv"), kernel(other, macs=10)).int8_macs == CONV + 10, "what no kernel does is float"


def test_no_kernel_at_all_covers_nothing() -> None:
    found = covered()
    assert (found.macs, found.int8_macs, found.mac_share) == (CONV + FC + HEAD, 0, 0.0)
    assert (found.int8_weights, found.int8_modules, found.reference) == (0, 0, False)
    assert [each.module for each in found.leftovers] == ["conv", "fc", "head"]


# -- the reference form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv", None])
def test_a_model_that_no_runtime_lowered_is_a_reference(name: str | None) -> None:
    float_ones = [kernel(name, int8=False, macs=5, reason=REFERENCE_REASON), kernel(name, int8=False, macs=5)]
    assert covered(*float_ones).reference
    assert not covered(*float_ones, kernel(name, macs=5)).reference, "one int8 kernel is a lowered model"
    assert not covered(float_ones[1]).reference, "float for another reason"


@pytest.mark.parametrize("macs", [None, 7])
def test_kernels_without_names_and_macs_leave_the_share_unknown(macs: int | None) -> None:
    for found in (covered(kernel(None, macs=macs), kernel(None)),
                  covered(kernel(None, macs=macs), kernel(None, int8=False))):
        assert (found.macs, found.int8_macs, found.mac_share) == (CONV + FC + HEAD, None, None)
    assert covered(kernel(None, int8=False), kernel(None, int8=False)).mac_share == 0.0
