"""What stays in float, and why nothing runs in int8."""

from __future__ import annotations

from pytest_qat.diagnosis.coverage import causes_of_coverage
from pytest_qat.measure.coverage import Coverage, Idle, Leftover


def coverage(*leftovers: Leftover, int8_modules: int = 3, reference: bool = False) -> Coverage:
    return Coverage(weights=100, int8_weights=90, macs=1000, int8_macs=800, int8_modules=int8_modules,
                    leftovers=leftovers, reference=reference)


def left(module: str, *, reason: str = "it is so") -> Leftover:
    return Leftover(module=module, kind="Linear", weights=10, macs=100, reason=reason)


def test_a_model_without_int8_gets_the_reasons_of_its_layers() -> None:
    nothing, noted = causes_of_coverage(coverage(left("head"), int8_modules=0))
    assert (nothing.code, nothing.severity) == ("nothing-quantized", "error")
    assert "head (Linear: it is so)" in nothing.message
    assert (noted.code, noted.module) == ("left-in-float", "head")


def test_every_leftover_is_a_note() -> None:
    found = causes_of_coverage(coverage(*(left(f"layer{index}") for index in range(8))))
    assert {(finding.code, finding.severity) for finding in found} == {("left-in-float", "note")}
    assert [finding.module for finding in found] == [f"layer{index}" for index in range(8)]
    assert found[0].evidence == {"weights": 10, "macs": 100, "place": None}


def test_a_reference_form_is_told_as_that() -> None:
    first, *_ = causes_of_coverage(coverage(left("a", reason="dq"), left("b", reason="dq"), left("c"), int8_modules=0,
                                            reference=True))
    assert first.code == "converted-not-lowered"
    assert "2 products" in first.message
    assert not first.remedy, "what helps is tried, not guessed"


def test_a_model_all_in_int8_gives_no_findings() -> None:
    assert causes_of_coverage(coverage()) == ()


def test_weights_that_nothing_reads_are_told_apart() -> None:
    idle = (Idle(module="spare", weights=12, called=False), Idle(module="old", weights=8, called=True))
    measured = Coverage(weights=100, int8_weights=90, macs=1000, int8_macs=800, int8_modules=3, leftovers=(), idle=idle)
    (finding,) = causes_of_coverage(measured)
    assert (finding.code, finding.severity) == ("dead-weights", "note")
    assert finding.evidence == {"weights": 20, "modules": {"spare": 12, "old": 8}}
