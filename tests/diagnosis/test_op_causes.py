"""Which kind of work makes int8 too slow, from times of ops that are known."""

from __future__ import annotations

import pytest

from pytest_qat.diagnosis.op_costs import cause_in_ops
from pytest_qat.runtimes.base import OpTime

MS = 1e-3
FLOAT = {"aten::mkldnn_convolution": 2.0, "aten::relu": 0.5}


def times(ops: dict[str, float]) -> list[OpTime]:
    return [OpTime(op=name, shapes="[8, 3]", seconds=each * MS) for name, each in ops.items()]


@pytest.mark.parametrize(("int8", "call_ms", "code"), [
    ({"quantized::conv2d": 4.0, "aten::quantize_per_tensor": 0.2}, 4.3, "slow-int8-kernels"),
    ({"quantized::conv2d": 1.0, "aten::quantize_per_tensor": 1.0, "aten::dequantize": 1.5}, 3.6, "slow-conversions"),
    ({"quantized::conv2d": 1.0, "aten::copy_": 2.0, "quantized::cat": 1.0}, 4.0, "slow-copies"),
    ({"quantized::conv2d": 1.0, "quantized::hardswish": 3.0}, 4.0, "slow-other-ops"),
    ({"quantized::conv2d": 0.5}, 4.0, "slow-calls"),
    ({"Convolution (NHWC, QS8, QC8W) IGEMM #1": 4.0}, 4.1, "slow-int8-kernels"),
    ({"Convert (NC, F32, QS8) #1": 4.0}, 4.1, "slow-conversions"),
    ({"Transpose (ND, X8) #1": 4.0}, 4.1, "slow-copies"),
    ({"Fully Connected (NC, QS8, QC8W) GEMM #2": 4.0}, 4.1, "slow-int8-kernels"),
    ({"QGemm": 4.0}, 4.1, "slow-int8-kernels"), ({"QLinearConv": 4.0}, 4.1, "slow-int8-kernels"),
    ({"QLinearMatMul": 4.0}, 4.1, "slow-int8-kernels"), ({"onednn::qlinear_pointwise": 4.0}, 4.1, "slow-int8-kernels"),
    ({"QLinearSigmoid": 4.0}, 4.1, "slow-other-ops"), ({"QuantizeLinear": 4.0}, 4.1, "slow-conversions"),
])
def test_the_kind_that_takes_the_most_too_long_is_the_cause(int8: dict[str, float], call_ms: float, code: str) -> None:
    found = cause_in_ops(times(FLOAT), times(int8), calls_s=(2.6 * MS, call_ms * MS), floor=1.0)
    assert found is not None
    assert (found.code, found.severity, found.remedy) == (code, "warning", "")
    assert "; " not in found.message, "one kind is enough"


def test_kinds_are_named_until_they_make_half_of_the_difference() -> None:
    int8 = times({"quantized::conv2d": 2.6, "aten::quantize_per_tensor": 0.7, "aten::copy_": 0.9, "aten::relu": 1.1})
    found = cause_in_ops(times(FLOAT), int8, calls_s=(2.5 * MS, 5.3 * MS), floor=1.0)
    assert found is not None
    assert found.code == "slow-copies"  # 0.9, then 0.7, of 2.8
    assert found.message.count("; ") == 1
    assert found.evidence["seconds"]["int8"] == pytest.approx({
        "slow-int8-kernels": 2.6 * MS, "slow-conversions": 0.7 * MS, "slow-copies": 0.9 * MS,
        "slow-other-ops": 1.1 * MS, "slow-calls": 0.0})


def test_what_is_required_decides_what_is_too_long() -> None:
    """Four times as fast is required: convolutions that are twice as fast are too slow."""
    int8 = times({"quantized::conv2d": 1.0, "aten::quantize_per_tensor": 0.1, "aten::relu": 0.1})
    found = cause_in_ops(times(FLOAT), int8, calls_s=(2.5 * MS, 1.2 * MS), floor=4.0)
    assert found is not None
    assert found.code == "slow-int8-kernels"
    assert "1.00 ms of an int8 call's 1.20 ms" in found.message
    assert "2.00 ms of a float call's 2.50 ms" in found.message


@pytest.mark.parametrize(("fp32", "int8"), [({}, {}), (FLOAT, {}), ({}, FLOAT)])
def test_a_runtime_that_does_not_tell_convicts_nothing(fp32: dict[str, float], int8: dict[str, float]) -> None:
    assert cause_in_ops(times(fp32), times(int8), calls_s=(1.0, 2.0), floor=1.0) is None
