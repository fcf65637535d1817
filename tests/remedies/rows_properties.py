"""Advice about implementations that are held to the laws, saved examples, and Hypothesis strategies."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from fixtures.mutants import MUTANTS
from pytest_qat.properties import strategies
from pytest_qat.properties.laws import get_law
from pytest_qat.properties.ops import IntegerOps, ObserverOps, QParams, QuantOps
from pytest_qat.properties.replay import read_saved, saved_files, write_saved
from pytest_qat.properties.runner import check_law
from pytest_qat.properties.targets import load_ops
from tests.plugin.inner_runs import OPS
from tests.remedies.rows_case import done
from tests.remedies.walk import Row, World, each_told


def quantize(x: Any, *params: Any) -> Any:
    return x


def ops(**changes: Any) -> Any:
    return done(lambda: QuantOps(**{"name": "mine", "quantize": quantize, "dequantize": quantize, **changes}))


def observer(kind: str) -> Any:
    return done(lambda: ObserverOps(name="mine", make=torch.nn.Identity, kind=kind))


def loaded(function: str, code: str = "") -> Any:
    def work(world: World) -> None:
        (world.path / "kernels.py").write_text(OPS + code)
        world.patch.setattr(sys, "path", list(sys.path))
        world.patch.delitem(sys.modules, "kernels", raising=False)
        load_ops(f"kernels:{function}", root=world.path)
    return work


def saved(world: World, **changes: Any) -> Any:
    """Write a failing example as fuzzing does, with fields of the file changed."""
    mutant = next(mutant for mutant in MUTANTS if mutant.ops.name == "lane 37 off by one")
    failure = check_law(get_law(mutant.killed_by), mutant.ops)
    assert failure is not None
    folder = world.path / "saved"
    path = write_saved(failure, folder, reference="kernels:bad", seed=0)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def read(**changes: Any) -> Any:
    def work(world: World) -> None:
        read_saved(saved(world, **changes))
    return work


def written_into(name: str) -> Any:
    def work(world: World) -> None:
        (world.path / "file").write_text("")
        mutant = next(mutant for mutant in MUTANTS if mutant.ops.name == "lane 37 off by one")
        failure = check_law(get_law(mutant.killed_by), mutant.ops)
        assert failure is not None
        write_saved(failure, world.path / name, reference="a:b", seed=0)
    return work


def replayed(*, deleted: bool, ops: str = "bad") -> Any:
    def work(world: World) -> object:
        (world.project.path / "kernels.py").write_text(OPS)
        path = saved(world, ops=ops, **({} if ops == "gone" else {"law": "P20_per_channel_is_per_slice"}))
        if deleted:
            path.unlink()
            return world.project.run("--qat-ops=kernels:good", "-k", "P17_layout")
        return world.project.run(f"--qat-replay={path}")
    return work


def drawn(strategy: Any, **changes: Any) -> Any:
    return done(lambda: strategy(**changes))


PARAMS = QParams()
OPS_PY, REPLAY, STRATEGIES = "properties/ops.py", "properties/replay.py", "properties/strategies.py"
PROPERTY_ROWS = [
    Row(path=OPS_PY, text="Give the other one too.", calls=ops(quantize_per_channel=quantize),
        follow=ops(quantize_per_channel=quantize, dequantize_per_channel=quantize)),
    Row(path=OPS_PY, text="PyTorch rounds half_even.", calls=ops(rounding="up"), follow=ops(rounding="half_even")),
    Row(path=OPS_PY, text="Remove nan if any result is acceptable.", calls=ops(nan="odd"), follow=ops()),
    Row(path=OPS_PY, text="Use the kind that describes how it combines batches.",
        calls=observer("other"), follow=observer("minmax")),
    Row(path=OPS_PY, text="Give it a name such as", calls=ops(name=" "), follow=ops(name="my kernel")),
    Row(path=OPS_PY, text="Give the function itself", calls=ops(quantize=3), follow=ops(quantize=quantize)),
    Row(path=OPS_PY, text="For int8, use -128 and 127.", calls=ops(quant_min=127, quant_max=-128),
        follow=ops(quant_min=-128, quant_max=127)),
    Row(path=OPS_PY, text="Leave it out for activations that use all 8 bits.",
        calls=done(lambda: IntegerOps(name="mine", linear=quantize, activation_max=0)),
        follow=done(lambda: IntegerOps(name="mine", linear=quantize))),
    Row(path="properties/targets.py", text="Return pytest_qat.QuantOps(", follow=loaded("good"),
        calls=loaded("made", "\ndef made():\n    return 3\n")),
    Row(path="properties/targets.py", text="Give each implementation a different name.", follow=loaded("both"),
        calls=loaded("twice", "\ndef twice():\n    return [good(), good()]\n")),
    Row(path=REPLAY, text="Pass a file that a failed law has written",
        calls=lambda world: saved_files(world.path / "missing") and None,
        follow=lambda world: bool(saved_files(saved(world)))),
    Row(path=REPLAY, text="Set cache_dir to a writable folder.",
        calls=written_into("file"), follow=written_into("folder")),
    Row(path=REPLAY, text="Run --qat-ops again with this version.", calls=read(schema_version=9), follow=read()),
    Row(path="properties/examples.py", text="The file is damaged or from another version",
        calls=read(example={"values": []}),
        follow=read()),
    Row(path="properties/laws/__init__.py", text="The file is from another version; run --qat-ops again.",
        calls=read(law="P99_nothing"), follow=read()),
    Row(path="plugin/laws.py", text="Delete the file, or restore the implementation.",
        calls=replayed(deleted=False, ops="gone"), follow=replayed(deleted=True, ops="gone")),
    Row(path=STRATEGIES, text="Use one of {}.", calls=drawn(strategies.qparams, dtype=torch.float16),
        follow=drawn(strategies.qparams, dtype=torch.qint8)),
    Row(path=STRATEGIES, text="Swap quant_min and quant_max.",
        calls=drawn(strategies.qparams, quant_min=5, quant_max=-5),
        follow=drawn(strategies.qparams, quant_min=-5, quant_max=5)),
    Row(path=STRATEGIES, text='Use "affine".', calls=drawn(strategies.qparams, scheme="odd"),
        follow=drawn(strategies.qparams, scheme="affine")),
    Row(path=STRATEGIES, text="Remove both to use the defaults.", sites=3,
        calls=each_told(drawn(strategies.qparams, min_scale=-1.0),
                        drawn(strategies.values_for, params=PARAMS, min_size=3, max_size=2),
                        drawn(strategies.per_channel, min_channels=3, max_channels=2)),
        follow=lambda world: [drawn(strategies.qparams)(world), drawn(strategies.values_for, params=PARAMS)(world),
                              drawn(strategies.per_channel)(world)]),
    Row(path=STRATEGIES, text="Remove layouts to use all of them.",
        calls=drawn(strategies.quantizable_tensors, params=PARAMS, layouts=("odd",)),
        follow=drawn(strategies.quantizable_tensors, params=PARAMS)),
    Row(path=STRATEGIES, text="Use the defaults.", calls=drawn(strategies.observer_streams, min_batches=0),
        follow=drawn(strategies.observer_streams)),
]
