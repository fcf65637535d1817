"""Advice about a case and its data: what a user's function returns, and what its batches are like."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pytest_qat.case import QATCase, calibration_batches
from pytest_qat.core import torch_state
from pytest_qat.core.batches import classify, in_parts, labeled
from pytest_qat.finetune import _length, _loss, _optimizer, calibrate, fine_tune
from pytest_qat.measure.accuracy import Scores, compare_scores
from pytest_qat.measure.scoring import evaluate
from pytest_qat.pipeline.preflight import check_prepared, checked_model, hold_to_model
from pytest_qat.recipe import get_recipe
from pytest_qat.tolerances import Tolerances
from pytest_qat.workflows import load_workflow
from tests.remedies.walk import Row, World
from tests.small_net import Net

IMAGES = torch.randn(8, 3, 8, 8)
ROWS = torch.randn(6, 4)


def case(**changes: Any) -> QATCase:
    return QATCase(**{"model": Net().eval(), "example_inputs": (IMAGES,), **changes})


def done(work: Any) -> Any:
    """Do something whose value says nothing."""
    def do(world: World) -> None:
        work()
    return do


def made(**changes: Any) -> Any:
    return done(lambda: case(**{name: value() if isinstance(value, Lazy) else value
                                for name, value in changes.items()}))


class Lazy:
    """A value that is made when the row runs."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def __call__(self) -> Any:
        return self.make()


def converted() -> nn.Module:
    fx, recipe = load_workflow("fx"), get_recipe("fx-x86")
    with torch_state.preserved_torch_state(seed=0), torch_state.quantized_engine("x86"):
        ready = fx.prepare(case(), recipe)
        calibrate(ready.module, [(IMAGES,)])
        return fx.convert(ready, recipe).module


def scripted() -> nn.Module:
    return torch.jit.trace(Net().eval(), IMAGES)  # type: ignore[no-any-return]


def trained(train: Any, **changes: Any) -> Any:
    return done(lambda: fine_tune(nn.Linear(4, 2), case(train=train, **changes)))


def step_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)


def refuses(model: nn.Module) -> None:
    raise RuntimeError("wrong argument")


def to_other(model: nn.Module) -> nn.Module:
    return nn.Linear(4, 2)


def nothing(model: nn.Module) -> None:
    return None


class Calls(nn.Module):
    """A model with one layer and a forward of the row's own."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.work = forward

    def forward(self, x: Tensor) -> Any:
        return self.work(self, x)


def called(forward: Any) -> Any:
    return done(lambda: checked_model(QATCase(model=Calls(forward).eval(), example_inputs=(ROWS,))))


class Locked(nn.Module):
    """Keeps an attribute that cannot be copied."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.fc, self.kept = nn.Linear(4, 2), kept

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Stateful(nn.Module):
    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.fc, self.keeps, self.last = nn.Linear(4, 2), keeps, 0.0

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        output: Tensor = self.fc(x) + (self.last if state is None else state)
        if self.keeps:
            self.last = self.last + 1.0
        return output


def held(model: nn.Module, deployed: Any = None) -> Any:
    return lambda world: hold_to_model(model, deployed or (lambda inputs: model(*inputs)), [(ROWS,)])


class Hooked(nn.Module):
    """What tracing loses, and the same inside forward."""

    def __init__(self, *, inside: bool) -> None:
        super().__init__()
        self.fc, self.inside = nn.Linear(4, 2), inside
        if not inside:
            self.register_forward_hook(lambda module, inputs, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x)
        return output * 2 if self.inside else output


def traced(*, inside: bool) -> Any:
    model = Hooked(inside=inside).eval()
    return lambda world: hold_to_model(model, lambda inputs: torch.fx.symbolic_trace(model)(*inputs), [(ROWS,)])


class NeverBegins:
    """Has a length, and every iterator of it is at its end."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(())


PAIRS = [(ROWS, torch.arange(6) % 2)]


def looped(**changes: Any) -> Any:
    settings = {"model": nn.Linear(4, 2), "example_inputs": (ROWS,), "train_data": PAIRS, "loss_fn": cross_entropy}
    return done(lambda: fine_tune(nn.Linear(4, 2), QATCase(**{**settings, **changes})))


def frozen(*, trains: bool) -> Any:
    def work(world: Any) -> None:
        layer = nn.Linear(4, 2).requires_grad_(trains)
        _optimizer(layer, QATCase(model=nn.Linear(4, 2), example_inputs=(ROWS,), train_data=PAIRS,
                                  loss_fn=cross_entropy))
    return work


def losing(loss_fn: Any) -> Any:
    return done(lambda: _loss(nn.Linear(4, 2), QATCase(
        model=nn.Linear(4, 2), example_inputs=(ROWS,), train_data=PAIRS, loss_fn=loss_fn), *PAIRS[0], step=1))


def diverging(rate: float) -> Any:
    def work(world: Any) -> None:
        torch.manual_seed(0)
        data = [(ROWS, torch.randn(6, 2))] * 60
        fine_tune(nn.Linear(4, 2), QATCase(
            model=nn.Linear(4, 2), example_inputs=(ROWS,), train_data=data, loss_fn=nn.functional.mse_loss,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate)))
    return work


def calibrated(batch: Any) -> Any:
    def work(world: Any) -> None:
        with torch_state.preserved_torch_state(seed=0), torch_state.quantized_engine("x86"):
            calibrate(load_workflow("fx").prepare(case(), get_recipe("fx-x86")).module, [batch])
    return work


def evaluated(data: Any, metric: Any = None, model: Any = None) -> Any:
    return done(lambda: evaluate(model or nn.Linear(4, 2), data, metric, like=(ROWS,)))


def paired(*, other: bool = False, order: bool = False) -> Any:
    def scores(count: int, seed: int) -> Scores:
        data = [(ROWS[:count], (torch.arange(count) + seed) % 2)]
        return evaluate(nn.Linear(4, 2), data, None)

    return done(lambda: compare_scores(scores(6, 0), scores(4 if other else 6, int(order)), None,
                                        higher_is_better=True))


def score_of(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """A score that takes its targets first, as scikit-learn's do."""
    return (y_pred.argmax(1) == y_true).float()


def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return score_of(targets, outputs)


def score(outputs: Tensor, targets: Tensor) -> Tensor:
    return score_of(targets, outputs).mean()


def own_prepared(*, give: bool) -> Any:
    def work(world: Any) -> None:
        with torch_state.preserved_torch_state(seed=0), torch_state.quantized_engine("x86"):
            ready = load_workflow("fx").prepare(case(), get_recipe("fx-x86")).module
        check_prepared(case(prepared=ready if give else None), get_recipe("eager-x86"))
    return work


INT8_OUT = "case.py"
LABELED = [(IMAGES, torch.arange(8) % 4)]
CASE_ROWS = [
    Row(path=INT8_OUT, text="Give the trained float model with its weights.",
        calls=made(model=nn.ReLU()), follow=made()),
    Row(path=INT8_OUT, text="Give the float model as model=", calls=made(model=Lazy(converted)),
        follow=made(converted=Lazy(converted))),
    Row(path=INT8_OUT, text="Load it on the CPU", calls=made(model=Lazy(lambda: Net().to("meta"))), follow=made()),
    Row(path=INT8_OUT, text="Give the nn.Module that it was scripted from.", calls=made(model=Lazy(scripted)),
        follow=made(), sites=2),
    Row(path=INT8_OUT, text="Write example_inputs=(batch,).", calls=made(example_inputs={"x": IMAGES}),
        follow=made(example_inputs=(IMAGES,)), sites=2),
    Row(path=INT8_OUT, text="Pass a function as {}.", calls=made(train=3), follow=made(train=step_in_place)),
    Row(path=INT8_OUT, text="Leave out train and train_data for calibration only.",
        calls=made(epochs=0, train=step_in_place), follow=made()),
    Row(path=INT8_OUT, text="Add loss_fn=", calls=made(train_data=PAIRS),
        follow=made(train_data=PAIRS, loss_fn=cross_entropy)),
    Row(path=INT8_OUT, text="Add train_data=", calls=made(loss_fn=cross_entropy),
        follow=made(train_data=PAIRS, loss_fn=cross_entropy)),
    Row(path=INT8_OUT, text="Keep metric for a score of each sample, or set_metric for one of the whole set.",
        calls=made(eval_data=LABELED, metric=per_sample, set_metric=score),
        follow=lambda world: [made(eval_data=LABELED, metric=per_sample)(world),
                              made(eval_data=LABELED, set_metric=score)(world)]),
    Row(path=INT8_OUT, text="Add eval_data=", calls=made(set_metric=score),
        follow=made(set_metric=score, eval_data=LABELED)),
    Row(path=INT8_OUT, text="Turn them around: {}=lambda outputs, targets: {}(targets, outputs).",
        calls=made(metric=score_of),
        follow=made(metric=lambda outputs, targets: score_of(targets, outputs))),
    Row(path=INT8_OUT, text="Write tolerances=", calls=made(tolerances=0.01),
        follow=made(tolerances=Tolerances(accuracy_drop=0.01))),
    Row(path=INT8_OUT, text="Use the names that model.named_modules() gives.", calls=made(skip=("head",)),
        follow=made(skip=(list(dict(Net().named_modules()))[-1],))),
    Row(path=INT8_OUT, text="Write {}.", calls=made(skip="fc"), follow=made(skip=("fc",))),
    Row(path=INT8_OUT, text="Give {} as a DataLoader", calls=made(eval_data=IMAGES), follow=made(eval_data=LABELED)),
    Row(path=INT8_OUT, text="Return an instance: {}(...).", calls=made(model=Net), follow=made(model=Net())),
    Row(path=INT8_OUT, text="Return the trained float model.", calls=made(model="net"), follow=made(model=Net())),
    Row(path=INT8_OUT, text="Make {} yield a batch.",
        calls=done(lambda: calibration_batches(case(calibration_data=[]), limit=1)),
        follow=done(lambda: calibration_batches(case(calibration_data=[(IMAGES,)]), limit=1))),
]

TWO = {"a": torch.randn(6, 2), "b": torch.randn(6, 3)}
DATA_ROWS = [
    Row(path="core/batches.py", text="Give metric=, a function (output, target) -> one score per sample.",
        calls=evaluated(PAIRS, model=lambda x: x[:, 0]),
        follow=evaluated(PAIRS, lambda output, target: -(output - target).abs(), model=lambda x: x[:, 0])),
    Row(path="core/batches.py", text="Give metric=, a function (output, target) -> one score per sample, or name",
        calls=done(lambda: classify(TWO, source="top-1")),
        follow=done(lambda: classify({"logits": TWO["a"], "b": TWO["b"]}, source="top-1"))),
    Row(path="core/batches.py", text="Make {} yield (inputs, target)",
        calls=done(lambda: list(labeled([ROWS], field="eval_data"))),
        follow=done(lambda: list(labeled(PAIRS, field="eval_data")))),
    Row(path="core/batches.py", text="Give batches of {}, or return one row per sample.",
        calls=done(lambda: in_parts(lambda part: part.flatten()[:5] * torch.rand(5), ROWS, size=4)),
        follow=done(lambda: in_parts(lambda part: part * 2, ROWS, size=4))),
    Row(path="finetune.py", text="Give the arguments of forward alone, without targets.",
        calls=calibrated((IMAGES, torch.arange(8))), follow=calibrated((IMAGES,))),
    Row(path="finetune.py", text="Drop such samples or fill them in", calls=calibrated((IMAGES / 0,)),
        follow=calibrated(((IMAGES / 0).nan_to_num(posinf=9.0, neginf=-9.0),))),
    Row(path="finetune.py", text="train gets the prepared module in train mode", calls=trained(refuses),
        follow=trained(step_in_place)),
    Row(path="finetune.py", text="Train the given model in place, not a copy", calls=trained(to_other),
        follow=trained(step_in_place)),
    Row(path="finetune.py", text="Train the given model in place, or leave out train", calls=trained(nothing),
        follow=trained(None)),
    Row(path="finetune.py", text="Make every iter(train_data) begin from the start",
        calls=looped(train_data=NeverBegins(PAIRS)), follow=looped()),
    Row(path="finetune.py", text="Set requires_grad on the layers to train", calls=frozen(trains=False),
        follow=frozen(trains=True)),
    Row(path="finetune.py", text="Write optimizer=lambda parameters", sites=2,
        calls=looped(optimizer=lambda parameters: torch.optim.SGD(parameters, learning_rate=1e-4)),
        follow=looped(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4))),
    Row(path="finetune.py", text="Check that train_data fit the model", calls=losing(lambda output: output.mean()),
        follow=losing(cross_entropy)),
    Row(path="finetune.py", text="Reduce the loss to its mean.",
        calls=losing(lambda output, target: cross_entropy(output, target, reduction="none")),
        follow=losing(lambda output, target: cross_entropy(output, target, reduction="none").mean())),
    Row(path="finetune.py", text="Use a learning rate 10 to 100 times lower", calls=diverging(10.0),
        follow=diverging(0.1)),
    Row(path="finetune.py", text="Fine-tuning in a test takes seconds to minutes",
        calls=done(lambda: _length(itertools.repeat(PAIRS[0]))),
        follow=done(lambda: _length(list(itertools.islice(itertools.repeat(PAIRS[0]), 5))))),
    Row(path="finetune.py", text="Make train_data yield batches", calls=done(lambda: _length([])),
        follow=trained(None)),
]
