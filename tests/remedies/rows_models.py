"""Advice in findings about a model that went through the stages, followed by changing model, data or training."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.checks import ModelChecks
from pytest_qat.core.torch_state import preserved_torch_state, quantized_engine
from pytest_qat.diagnosis.causes import with_causes
from pytest_qat.exported.outputs import OutputForm
from pytest_qat.exported.program import export_program
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe
from pytest_qat.runtimes import load_runtime
from pytest_qat.runtimes.build import build
from pytest_qat.runtimes.exported import ExportedRuntime
from pytest_qat.runtimes.unrolled import check_steps
from pytest_qat.workflows import load_workflow
from tests.remedies.walk import Row, World

EASY = Tolerances(min_size_reduction=0.01, min_speedup=0.0, min_coverage=0.0)
ROWS = torch.randn(64, 16)


def mlp(*, out: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, out)).eval()


def case(**changes: Any) -> QATCase:
    return QATCase(**{"model": mlp(), "example_inputs": (ROWS,), "tolerances": EASY, **changes})


def told(make: Any, *checks: str, code: str, recipe: str = "fx-x86", **tolerances: Any) -> Any:
    """Make checks, and return what they say about one kind of finding, and why the last of them does not pass."""
    def work(world: World) -> object:
        made = make()
        bounds = dataclasses.replace(made.tolerances, **tolerances)
        run = ModelRun(made, get_recipe(recipe), RunSettings(tolerances=bounds), lock=MachineLock())
        try:
            results = [with_causes(judged, judged.check(name)) for judged in [ModelChecks(run, reference="models:made")]
                       for name in checks]
        finally:
            run.close()
        found = [finding for result in results for finding in result.findings if finding.code == code]
        return [*found, results[-1].verdict]
    return work


class Spare(nn.Module):
    """A model with a module that no call reaches."""

    def __init__(self, *, spare: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256))
        self.spare = nn.Linear(256, 256) if spare else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def spared(*, spare: bool) -> Any:
    return lambda: case(model=Spare(spare=spare).eval(), skip=("spare",) if spare else ())


def boxes(*, normalized: bool) -> Any:
    """Outputs of about the same spread, of which one lies far from zero unless the targets were normalized."""
    def make() -> QATCase:
        model = mlp()
        with torch.no_grad():
            model[2].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0 if normalized else 600.0]))
        return case(model=model)
    return make


def classes(count: int, *, seed: int, noise: float = 0.6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(4, 16, generator=torch.Generator().manual_seed(7))
    target = torch.arange(32 * count) % 4
    values = centers[target] + noise * torch.randn(len(target), 16, generator=generator)
    return list(zip(values.split(32), target.split(32), strict=True))


TRAINING = classes(20, seed=1)
EVALUATION = classes(20, seed=2)


def fitted(*, epochs: int) -> nn.Sequential:
    model = mlp().train()
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for inputs, target in TRAINING * epochs:
        optimizer.zero_grad()
        cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return model.eval()


def trained(*, float_epochs: int, rate: float | None) -> Any:
    """A model that was trained for so long in float, and is fine-tuned at a learning rate (None: not at all)."""
    def make() -> QATCase:
        training: dict[str, Any] = {} if rate is None else {
            "train_data": TRAINING * 3, "loss_fn": cross_entropy,
            "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=rate)}
        return case(model=fitted(epochs=float_epochs), eval_data=EVALUATION, **training)
    return make


def breaking(model: nn.Module) -> None:
    """A loop of the user's own that makes the model worse."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter))


def own_loop(train: Any) -> Any:
    return lambda: case(model=fitted(epochs=8), eval_data=EVALUATION, train=train)


def simulating(*, on: bool) -> Any:
    def train(model: nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.001)
        if not on:
            model.apply(tq.disable_fake_quant)
    return lambda: case(train=train)


def mapped(mapping: Any) -> Any:
    return lambda: case(qconfig_mapping=mapping("x86"), train_data=TRAINING, loss_fn=cross_entropy)


def faint(scale: float) -> Any:
    def make() -> QATCase:
        model = mlp()
        with torch.no_grad():
            model[0].weight.mul_(scale)
            model[0].bias.mul_(scale)
        return case(model=model)
    return make


def flat_of_norms(scale: float) -> Any:
    """A random or a trained norm, before outputs of which one is far from zero."""
    def make() -> QATCase:
        torch.manual_seed(0)
        model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4))
        with torch.no_grad():
            model[0].weight[0] = scale
            model[1].bias[0] = 600.0 if scale == 1.0 else 0.0
        return case(model=model.eval(), calibration_data=[ROWS])
    return make


def moded(*, train: bool) -> Any:
    return lambda: case(model=mlp().train(train))


SCORES, TRAIN = "diagnosis/scores.py", "diagnosis/training.py"
FINDING_ROWS = [
    Row(path="diagnosis/coverage.py", text="remove these modules if no other input uses them.",
        calls=told(spared(spare=True), "coverage", code="dead-weights"),
        follow=told(spared(spare=False), "coverage", code="dead-weights")),
    Row(path="diagnosis/costs.py", text="remove the modules that nothing calls.",
        calls=told(spared(spare=True), "size", code="size-dead-weights", recipe="eager-x86", min_size_reduction=2.0),
        follow=told(spared(spare=False), "size", code="size-dead-weights", recipe="eager-x86", min_size_reduction=2.0)),
    Row(path="diagnosis/costs.py", text="lower min_size_reduction: where all weights are int8",
        calls=told(lambda: case(model=wide()), "size", code="size-int8-weights", min_size_reduction=8.0),
        follow=told(lambda: case(model=wide()), "size", code="size-int8-weights", min_size_reduction=3.0)),
    Row(path="verdict.py", text="the model has random weights",
        calls=told(flat_of_norms(1.0), "accuracy", code="none", accuracy_drop=0.5),
        follow=told(flat_of_norms(1.5), "accuracy", code="none", accuracy_drop=0.5)),
    Row(path=SCORES, text="train on normalized targets",
        calls=told(boxes(normalized=False), "accuracy", code="flat-output", accuracy_drop=0.5),
        follow=told(boxes(normalized=True), "accuracy", code="flat-output", accuracy_drop=0.5)),
    Row(path=SCORES, text="train the float model as long as its fine-tuned copy",
        calls=told(trained(float_epochs=0, rate=0.5), "accuracy", code="suspicious-gain"),
        follow=told(trained(float_epochs=8, rate=0.001), "accuracy", code="suspicious-gain"), slow=True),
    Row(path=SCORES, text="give eval_data to measure accuracy.",
        calls=told(lambda: case(model=fitted(epochs=8)), "accuracy", code="agreement-only", accuracy_drop=0.1),
        follow=told(trained(float_epochs=8, rate=None), "accuracy", code="agreement-only", accuracy_drop=0.1),
        slow=True),
    Row(path=SCORES, text="leave out train and train_data: the PTQ model",
        calls=told(own_loop(breaking), "accuracy", code="qat-below-ptq"),
        follow=told(own_loop(None), "accuracy", code="qat-below-ptq", accuracy_drop=0.05),
        slow=True),
    Row(path=TRAIN, text="call .eval() before handing it over.",
        calls=told(moded(train=True), "prepare", code="model-in-train-mode"),
        follow=told(moded(train=False), "prepare", code="model-in-train-mode")),
    Row(path=TRAIN, text="give a QAT mapping",
        calls=told(mapped(tq.get_default_qconfig_mapping), "prepare", code="no-fake-quantize"),
        follow=told(mapped(tq.get_default_qat_qconfig_mapping), "prepare", code="no-fake-quantize")),
    Row(path=TRAIN, text="leave fake-quantize on until training ends",
        calls=told(simulating(on=False), "convert", code="fake-quantize-off"),
        follow=told(simulating(on=True), "convert", code="fake-quantize-off")),
    Row(path=TRAIN, text="give the trained model, and calibrate on real data",
        calls=told(faint(1e-12), "convert", code="range-collapsed"),
        follow=told(faint(1.0), "convert", code="range-collapsed")),
]


def wide() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 1024), nn.ReLU(), nn.Linear(1024, 512)).eval()


class Branching(nn.Module):
    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.fc, self.mended = nn.Linear(16, 4), mended

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x)
        if self.mended:
            return torch.where(output.mean() > 0, output, -output)
        return output if output.mean() > 0 else -output


class Foreign(nn.Module):
    """Leaves torch for NumPy in the middle of forward."""

    def __init__(self, *, mended: bool) -> None:
        super().__init__()
        self.fc, self.mended = nn.Linear(16, 4), mended

    def forward(self, x: Tensor) -> Tensor:
        middle = x.sort(dim=1).values if self.mended else torch.from_numpy(np.sort(x.numpy(), axis=1))
        return self.fc(middle)  # type: ignore[no-any-return]


def exported(model: nn.Module) -> Any:
    def work(world: World) -> None:
        export_program(model.eval(), (ROWS,), any_batch=True)
    return work


class Opaque:
    def __init__(self, value: Tensor) -> None:
        self.value, self.lock = value, (part for part in ())


def returned(value: object) -> Any:
    def work(world: World) -> None:
        OutputForm(value)
    return work


def taking(inputs: Tensor) -> Any:
    def work(world: World) -> None:
        runtime = load_runtime("onnxruntime")
        assert isinstance(runtime, ExportedRuntime)
        runtime.check_inputs((inputs,))
    return work


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]  # type: ignore[no-any-return]


def unrolled(length: int, timeout_s: float) -> Any:
    def work(world: World) -> None:
        graph = export_program(Recurrent().eval(), (torch.randn(2, length, 8),), any_batch=False).graph
        check_steps(graph, runtime="executorch", seconds_per_step={"LSTM": 2.0}, timeout_s=timeout_s)
    return work


def both(*works: Any) -> Any:
    """Follow each of two ways that are offered."""
    def work(world: World) -> object:
        return [each(world) for each in works]
    return work


CHILD = """
import sys, time
from pathlib import Path
from pytest_qat.runtimes.build_note import Note, write_note
artifact = Path(sys.argv[3])
write_note(Note(stage="lowering"), artifact)
time.sleep(2.0)
artifact.write_bytes(b"artifact")
write_note(Note(stage="exiting", done=True), artifact)
"""


def building(timeout_s: float) -> Any:
    """Build with a converter that needs two seconds and the time that importing takes."""
    def work(world: World) -> None:
        script = world.path / "child.py"
        script.write_text(CHILD)
        build("executorch", {"int8": world.path / "int8.pt2"}, {"int8": world.path / "int8.pte"}, threads=1,
              timeout_s=timeout_s, child=(sys.executable, str(script)))
    return work


EXPORTED_ROWS = [
    Row(path="exported/program.py", text="decide by shapes and attributes instead of tensor values",
        calls=exported(Branching(mended=False)), follow=exported(Branching(mended=True))),
    Row(path="exported/program.py", text="write this part with plain tensor operations",
        calls=exported(Foreign(mended=False)), follow=exported(Foreign(mended=True))),
    Row(path="exported/outputs.py", text="return a tuple or dict of tensors.", calls=returned(Opaque(ROWS)),
        follow=returned({"value": ROWS})),
    Row(path="runtimes/exported.py", text="call .float() on the model and on its inputs.", calls=taking(ROWS.double()),
        follow=taking(ROWS.double().float())),
    Row(path="runtimes/unrolled.py", text="shorten the sequence to {} of its length", calls=unrolled(160, 300),
        follow=both(unrolled(int(160 * 0.93), 300), unrolled(160, 320)), slow=True),
    Row(path="runtimes/build.py", text="if it only needs more time, give --qat-stage-timeout", calls=building(1.0),
        follow=building(60.0), slow=True),
]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        return self.fc(x if shift is None else x + shift)  # type: ignore[no-any-return]


class Asking(nn.Module):
    """Calls its inner module in one of two forms, by the values that it gets, so that only the inner one is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.inner(x)  # type: ignore[no-any-return]
        return self.inner(x, x)  # type: ignore[no-any-return]


def called_later(example: Tensor) -> Any:
    def work(world: World) -> None:
        with preserved_torch_state(seed=0), quantized_engine("x86"):
            ready = load_workflow("fx").prepare(case(model=Asking().eval(), example_inputs=(example,)),
                                                get_recipe("fx-x86"))
            ready.module(-ROWS.abs())
    return work


PART_ROWS = [
    Row(path="workflows/fx/parts.py", text="Give example_inputs in the form", calls=called_later(ROWS.abs()),
        follow=called_later(-ROWS.abs())),
]

__all__ = ["EXPORTED_ROWS", "FINDING_ROWS", "PART_ROWS"]
