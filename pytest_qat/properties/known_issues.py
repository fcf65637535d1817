"""Known issues: laws that released versions of torch and torchao break, with the upstream thread of each."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from packaging.version import Version

__all__ = ["KNOWN", "KnownIssue", "known_issue", "lacks_vnni"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssue:
    """A law that a release of torch or torchao breaks.

    Attributes:
        law: Name of the law.
        ops: Names of the implementations; a name that ends in `*` matches all names that start with it.
        reason: What happens, in one sentence.
        issue: The upstream issue; empty if there is none yet.
        since: The first release of torch that has the issue.
        without_vnni: Whether only x86 CPUs without AVX-512 VNNI instructions have it.
    """

    law: str
    ops: tuple[str, ...]
    reason: str
    issue: str = ""
    since: str = "0"
    without_vnni: bool = False

    def names(self, ops: str, law: str) -> bool:
        """Whether it is about this law and implementation."""
        return law == self.law and any(
            ops.startswith(name[:-1]) if name.endswith("*") else ops == name for name in self.ops)

    def concerns(self, ops: str, law: str) -> bool:
        """Whether it is about this law and implementation, with this release of torch and on this machine."""
        return self.names(ops, law) and Version(metadata.version("torch")) >= Version(self.since) and not (
            self.without_vnni and not lacks_vnni())

    def __str__(self) -> str:
        return f"{self.reason} ({self.issue})" if self.issue else self.reason


def lacks_vnni() -> bool:
    """Whether this is an x86 CPU without AVX-512 VNNI, where kernels add pairs of 8-bit products in 16 bits."""
    import torch

    return platform.machine().lower() in {"x86_64", "amd64"} and not torch.cpu._is_vnni_supported()  # noqa: SLF001 - it has no public name


_ENGINES = ("engine x86", "engine fbgemm")
_SATURATES = ("without VNNI, the sum of two products of codes saturates at 16 bits (vpmaddubsw) where activations use "
              "all 8 bits; the default qconfigs of x86 and fbgemm therefore set reduce_range=True")
_OVERFLOW = "pytorch/pytorch#17458"

KNOWN: tuple[KnownIssue, ...] = (
    KnownIssue(
        law="P13_nan_and_infinity", ops=("quint8", "qint8"), issue="pytorch/pytorch#133557",
        reason="torch.quantize_per_tensor sends inf to the wrong end of the range if the zero point is positive (-inf "
               "if it is negative), because an int32 sum wraps around"),
    KnownIssue(
        law="P14_huge_finite", ops=("quint8", "qint8"), issue="pytorch/pytorch#111471",
        reason="torch.quantize_per_tensor sends values beyond 2^31 steps to the wrong end of the range"),
    KnownIssue(
        law="F5_gradient_mask", ops=("torchao *",), issue="pytorch/ao#4806", since="2.14",
        reason="torchao's fake-quantize has no gradient where values round to quant_min or quant_max, because the "
               "gradient of torch.clamp at its bounds became 0"),
    KnownIssue(
        law="F7_learnable", ops=("learnable",), issue="pytorch/pytorch#52038",
        reason="the backward pass of torch's learnable fake-quantize uses a different zero point than the forward pass "
               "if it is negative, because it adds 0.5 and truncates"),
    KnownIssue(
        law="F9_fused", ops=("FusedMovingAvgObsFakeQuantize",), issue="pytorch/pytorch#194816",
        reason="the fused kernel uses other qparams than those of its observer, which convert reads, if all data are "
               "zero and if the codes are symmetric"),
    KnownIssue(
        law="F12_nan", ops=("quint8", "qint8"), issue="pytorch/pytorch#153340",
        reason="quantize and fake-quantize send NaN to different ends of the range"),
    KnownIssue(
        law="O1_valid_qparams", issue="pytorch/pytorch#100051",
        ops=("MinMaxObserver affine", "MovingAverageMinMaxObserver affine", "PerChannelMinMaxObserver affine",
             "MovingAveragePerChannelMinMaxObserver affine", "HistogramObserver", "PT2E *"),
        reason="observers give an infinite or NaN scale if the range of the data exceeds float32's largest number"),
    KnownIssue(
        law="O8_not_a_number",
        ops=("MinMaxObserver *", "MovingAverageMinMaxObserver *", "PerChannelMinMaxObserver *",
             "MovingAveragePerChannelMinMaxObserver *"),
        reason="a single NaN makes an observer's scale NaN without a warning"),
    *(KnownIssue(law=law, ops=ops, issue=_OVERFLOW, reason=_SATURATES, without_vnni=True) for law, ops in (
        ("R1_exact_accumulation", (*_ENGINES, "engine onednn")), ("R2_requantization", (*_ENGINES, "engine onednn")),
        ("R3_linear", (*_ENGINES, "engine onednn")), ("R5_padding", _ENGINES))),
)


def known_issue(ops: str, law: str, *, issues: Sequence[KnownIssue] = KNOWN) -> KnownIssue | None:
    """Return the known issue of one of PyTorch's own implementations with a law, or None."""
    return next((issue for issue in issues if issue.concerns(ops, law)), None)
