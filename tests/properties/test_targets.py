"""PyTorch's own quantization under the laws: what is known to be broken is, and nothing else.

The whole of it is `pytest --qat-ops=torch`; here are the parts that known issues are about, and one of each kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from pytest_qat.errors import InvalidCase, ReferenceNotFound
from pytest_qat.properties.known_issues import KNOWN, KnownIssue, known_issue
from pytest_qat.properties.laws import get_law, laws_for
from pytest_qat.properties.runner import check_law
from pytest_qat.properties.targets import load_ops, torch_targets

TARGETS = {ops.name: ops for ops in torch_targets()}
SOME = ("quint8", "decomposed int4", "learnable", "FakeQuantize", "FusedMovingAvgObsFakeQuantize", "engine x86",
        "engine x86, reduce_range", "MinMaxObserver affine", "PerChannelMinMaxObserver symmetric",
        "MinMaxObserver narrow", "quantized tensors", "eager", "fx")


@pytest.mark.skipif(Version(torch.__version__) < Version("2.14"), reason="older builds round before the zero point")
@pytest.mark.parametrize("name", [name for name in SOME if name in TARGETS])
def test_pytorch_keeps_the_laws_but_for_known_issues(name: str) -> None:
    ops = TARGETS[name]
    broken = {law.name for law in laws_for(ops) if check_law(law, ops, examples=10, shrink=False) is not None}
    assert broken == {law.name for law in laws_for(ops) if known_issue(name, law.name) is not None}


def test_torchao_loses_the_gradient_at_the_ends() -> None:
    ops = TARGETS.get("torchao int8")
    if ops is None:
        pytest.skip("torchao is not installed")
    failure = check_law(get_law("F5_gradient_mask"), ops)
    known = known_issue("torchao int8", "F5_gradient_mask")
    assert (failure is not None) is (known is not None)
    if known is not None:
        assert failure is not None
        assert failure.lines[1] == "expected 1.0, got 0.0"


def test_every_known_issue_names_a_law_and_an_implementation_that_exist() -> None:
    for issue in KNOWN:
        assert get_law(issue.law)
        assert Version(issue.since)
        for name in issue.ops:
            assert any(issue.names(target, issue.law) for target in TARGETS if target.startswith(
                name.removesuffix("*"))) or name == "torchao *", name


def test_a_known_issue_is_one_of_some_releases() -> None:
    issue = KnownIssue(law="P8_ties", ops=("a *", "b"), reason="because", issue="here#1")
    assert known_issue("a 1", "P8_ties", issues=[issue]) is issue
    assert known_issue("b", "P8_ties", issues=[issue]) is issue
    assert known_issue("b 1", "P8_ties", issues=[issue]) is None
    assert known_issue("b", "P9", issues=[issue]) is None
    assert str(issue) == "because (here#1)"
    future = KnownIssue(law="P8_ties", ops=("b",), reason="because", since="99.0")
    assert known_issue("b", "P8_ties", issues=[future]) is None


@pytest.mark.parametrize(("machine", "vnni", "concerned"), [
    ("x86_64", False, True), ("x86_64", True, False), ("AMD64", False, True), ("aarch64", False, False)])
def test_some_issues_are_those_of_cpus_without_vnni(machine: str, vnni: bool, concerned: bool,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert (known_issue("engine x86", "R1_exact_accumulation") is not None) is concerned
    assert known_issue("engine x86, reduce_range", "R1_exact_accumulation") is None
    assert known_issue("engine qnnpack", "R1_exact_accumulation") is None


def test_there_are_targets_of_every_kind_with_names_of_their_own() -> None:
    names = [ops.name for ops in torch_targets()]
    assert len(set(names)) == len(names)
    kinds = {type(ops).__name__ for ops in TARGETS.values()}
    assert kinds == {"QuantOps", "ObserverOps", "IntegerOps", "LearnableOps", "FakeQuantizeModules",
                     "QuantizedTensors", "FlowOps"}


def test_a_reference_gives_one_or_several(tmp_path: Path) -> None:
    assert [ops.name for ops in load_ops("fixtures.numpy_ops:ops", root=Path.cwd())] == ["numpy"]
    assert len(load_ops("fixtures.mutants:everything", root=Path.cwd())) > 40


@pytest.mark.parametrize(("body", "error", "said"), [
    ("def ops(): return None", InvalidCase, "gave NoneType, expected a QuantOps"),
    ("def ops(): return []", InvalidCase, "gave an empty list"),
    ("def ops(): return [1]", InvalidCase, "gave int"),
    ("def ops(): raise KeyError('x')", InvalidCase, "raised KeyError"),
    ("def other(): pass", ReferenceNotFound, "has no attribute 'ops'"),
    ("from pytest_qat import QuantOps\ndef ops():\n return [QuantOps(name='a', quantize=len, dequantize=len)] * 2",
     InvalidCase, "the same name"),
    ("from pytest_qat import QuantOps\ndef ops(): return QuantOps(name='a::b', quantize=len, dequantize=len)",
     InvalidCase, "expected text without '::'"),
    ("from pytest_qat import QuantOps\ndef ops(): return QuantOps(name='a', quantize=3, dequantize=len)",
     InvalidCase, "quantize=3, expected a function"),
    (("from pytest_qat import QuantOps\ndef ops(): return QuantOps(name='a', quantize=len, dequantize=len, "
     "rounding='up')"), InvalidCase, "rounding 'up'"),
    ("from pytest_qat import QuantOps\ndef ops(): return QuantOps(name='a', quantize=len, dequantize=len, nan='0')",
     InvalidCase, "nan '0'"),
    (("from pytest_qat import QuantOps\ndef ops(): return QuantOps(name='a', quantize=len, dequantize=len, "
     "quant_min=5, quant_max=5)"), InvalidCase, "codes from 5 to 5"),
    (("from pytest_qat import QuantOps\ndef ops(): return QuantOps(name='a', quantize=len, dequantize=len, "
     "quantize_per_channel=len)"), InvalidCase, "expected both or neither")])
def test_a_bad_reference_is_said_in_one_sentence(tmp_path: Path, body: str, error: type[Exception], said: str) -> None:
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(error) as caught:
        load_ops(f"{tmp_path / 'mine.py'}:ops", root=tmp_path)
    assert said in str(caught.value)


def test_an_engine_is_left_as_it_was() -> None:
    import torch

    before = torch.backends.quantized.engine
    ops: Any = TARGETS.get("engine qnnpack") or TARGETS["engine x86"]
    check_law(get_law("R3_linear"), ops, examples=3)
    assert torch.backends.quantized.engine == before
