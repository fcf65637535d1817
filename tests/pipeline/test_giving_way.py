"""Long stages look at the gate between their steps, so that another process's timing need not wait for their end."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pytest_qat.case import QATCase, Tolerances
from pytest_qat.measure.machine_lock import MachineLock
from pytest_qat.pipeline.run import ModelRun, RunSettings
from pytest_qat.recipe import get_recipe


class Counting(MachineLock):
    """Counts how often a stage looked."""

    times = 0

    def give_way(self) -> None:
        self.times += 1
        super().give_way()


def test_training_gives_way_after_every_step_and_evaluation_before_every_batch(tmp_path: Path) -> None:
    data = [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(3)]
    case = QATCase(model=nn.Sequential(nn.Linear(8, 3)).eval(), example_inputs=(data[0][0],), train_data=data,
                   loss_fn=nn.CrossEntropyLoss(), epochs=2, eval_data=data)
    lock = Counting(tmp_path)
    run = ModelRun(case, get_recipe("fx-x86"), RunSettings(tolerances=Tolerances()), lock=lock)
    run.converted()
    assert lock.times == 2 * len(data)
    run.accuracy()
    assert lock.times == 2 * len(data) + 2 * len(data), "float and int8"
    run.close()
