"""Advice about the model as it is handed over, and about what is measured of it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core.files import write_whole
from pytest_qat.exported.model import ExportedModel
from pytest_qat.exported.program import export_program
from pytest_qat.measure import memory
from pytest_qat.measure.latency import TimingSettings
from pytest_qat.measure.roundtrip import QuantizedTensor, check_roundtrip
from pytest_qat.pipeline.preflight import check_shapes, checked_model
from pytest_qat.runtimes import torch as torch_runtime
from tests.remedies.rows_case import (
    IMAGES,
    ROWS,
    Locked,
    Stateful,
    called,
    case,
    done,
    held,
    own_prepared,
    traced,
)
from tests.remedies.walk import PLAIN, Row, World

PREFLIGHT = "pipeline/preflight.py"


def kept(kept_value: Any) -> Any:
    return done(lambda: checked_model(QATCase(model=Locked(kept_value).eval(), example_inputs=(ROWS,))))


def double(*, mended: bool) -> Any:
    model = nn.Linear(4, 2).double()
    return done(lambda: checked_model(QATCase(model=model.float() if mended else model, example_inputs=(ROWS,))))


def shaped(side: int) -> Any:
    return lambda world: check_shapes(case(eval_data=[(torch.randn(8, 3, side, side), torch.arange(8) % 4)]))


PREFLIGHT_ROWS = [
    Row(path=PREFLIGHT, text="Make {} yield batches, or leave it out.",
        calls=done(lambda: checked_model(case(eval_data=[]))), follow=done(lambda: checked_model(case()))),
    Row(path=PREFLIGHT, text="Keep only parameters and buffers as tensor attributes", calls=kept(threading.Lock()),
        follow=kept(None)),
    Row(path=PREFLIGHT, text="Call .float() on the model.", calls=double(mended=False), follow=double(mended=True)),
    Row(path=PREFLIGHT, text="Give the arguments of one forward call as example_inputs.",
        calls=done(lambda: checked_model(case(example_inputs=(IMAGES, torch.arange(8))))),
        follow=done(lambda: checked_model(case(example_inputs=(IMAGES,))))),
    Row(path=PREFLIGHT, text="Use operations that return a new tensor",
        calls=called(lambda model, x: model.fc(x.sub_(1.0).div_(2.0))),
        follow=called(lambda model, x: model.fc((x - 1.0) / 2.0))),
    Row(path=PREFLIGHT, text="Return the logits as a tensor, or in a tuple or dict.",
        calls=called(lambda model, x: model.fc(x).argmax(1)),
        follow=called(lambda model, x: {"logits": model.fc(x)})),
    Row(path=PREFLIGHT, text="Look for NaN in the weights",
        calls=called(lambda model, x: model.fc(x) * float("nan")), follow=called(lambda model, x: model.fc(x))),
    Row(path=PREFLIGHT, text="bring every batch to one shape, by padding", calls=shaped(12), follow=shaped(8)),
    Row(path=PREFLIGHT, text="Leave out prepared= to have {} prepare", calls=own_prepared(give=True),
        follow=own_prepared(give=False)),
    Row(path=PREFLIGHT, text="move them into forward itself", calls=traced(inside=False), follow=traced(inside=True)),
    Row(path=PREFLIGHT, text="pass the state as an input and return it", calls=held(Stateful(keeps=True).eval()),
        follow=held(Stateful(keeps=False).eval())),
]


def timing(**changes: Any) -> Any:
    return done(lambda: TimingSettings(**changes))


def qparams(scale: float) -> Any:
    made = QuantizedTensor(name="fc.output", module="fc", dtype=torch.quint8, scale=torch.tensor([scale]),
                           zero_point=torch.tensor([0]), per_channel=False)
    return lambda world: check_roundtrip([made], seed=0)


def peaks(*, missing: bool) -> Any:
    """What is measured without a figure from the system; leaving it out measures nothing."""
    def work(world: World) -> None:
        if missing:
            world.patch.setattr(memory, "peak_memory_bytes", lambda: None)
            memory.MemoryProbes("torch", threads=1).measure({})
    return work


def without_memory(world: World) -> object:
    world.project.add(PLAIN)
    return world.project.run("--qat-model=models:plain", "-k", "size")


def unreadable(world: World) -> None:
    for side in memory.SIDES:
        (world.path / side).write_bytes(b"no program")
    memory.MemoryProbes("torch", threads=1).measure({side: world.path / side for side in memory.SIDES})


def written(folder: str) -> Any:
    def work(world: World) -> None:
        (world.path / "room").mkdir(exist_ok=True)
        write_whole(b"model", world.path / folder / "int8.pt")
    return work


class Text(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


def fixed_batch(rows: int) -> Any:
    def work(world: World) -> None:
        class Fixed(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.reshape(6, 4))

        program = export_program(Fixed(4, 2), (ROWS,), any_batch=True)
        ExportedModel(program.module(), always_on=frozenset()).train()(torch.randn(rows, 4))
    return work


MEASURE_ROWS = [
    Row(path="measure/latency.py", text="Remove {}.", calls=timing(max_time_s=-1.0), follow=timing()),
    Row(path="measure/latency.py", text="Remove max_pairs.", calls=timing(max_pairs=0), follow=timing()),
    Row(path="measure/latency.py", text="Use 0.95.", calls=timing(confidence=2.0), follow=timing(confidence=0.95)),
    Row(path="measure/memory.py", text="Measure memory on Linux or macOS", calls=peaks(missing=True),
        follow=peaks(missing=False)),
    Row(path="measure/memory.py", text="Remove --qat-memory; no check needs it.", calls=unreadable,
        follow=without_memory, sites=2, slow=True),
    Row(path="measure/roundtrip.py", text="calibrate on finite data", calls=qparams(float("nan")), follow=qparams(0.1)),
    Row(path="runtimes/torch.py", text="Leave out --qat-memory; no other check needs the trace.",
        calls=done(lambda: torch_runtime._script(Text(), (ROWS,))), follow=without_memory, slow=True),
    Row(path="core/files.py", text="Free some space, or set TMPDIR", calls=written("full"), follow=written("room")),
    Row(path="exported/model.py", text="Give batches of {} (drop_last=True).", calls=fixed_batch(5),
        follow=fixed_batch(6)),
]
