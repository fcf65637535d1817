"""What the laws cost and what they find, beside PyTorch's own strategy and reference checks.

Run from the repository root: `python -m tests.benchmarks.laws [SEEDS]`. It prints examples a second of each law on
torch's qint8 ops; the same number of tensors with the same number of values drawn by this package's strategy and by
`torch.testing._internal.hypothesis_utils.tensor`, in turn; which law kills each planted bug, and which of the bugs in
quantize and dequantize that strategy kills with the checks of PyTorch's test suite (a round trip within `2 / scale`,
for the small scales that it is used with, and numpy's `round(x / scale + zero_point)` to within a code: it adds the
zero point before rounding, so equality would fail correct code); with SEEDS, whether correct implementations survive
so many. Needs the package expecttest, which PyTorch's test utilities import.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from torch.testing._internal import hypothesis_utils as theirs
from torch.testing._internal.common_quantized import _quantize

from fixtures import reference_ops
from fixtures.mutants import MUTANTS
from pytest_qat.properties.laws import get_law, laws_for
from pytest_qat.properties.ops import QuantOps
from pytest_qat.properties.runner import check_law
from pytest_qat.properties.strategies import affine_examples
from pytest_qat.properties.targets import torch_targets

DRAWN, VALUES, ROUNDS = 300, 8, 5
ALL = list(hypothesis.HealthCheck)


def main() -> None:
    """Print the four parts."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    speed_of_laws()
    speed_of_strategies()
    kills()
    if len(sys.argv) > 1:
        survivors(int(sys.argv[1]))


def drawing(strategy: Any, check: Callable[[Any], None], count: int) -> float:
    """Return the seconds that drawing and checking so many examples takes."""
    @hypothesis.settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
                         suppress_health_check=ALL, verbosity=hypothesis.Verbosity.quiet, derandomize=False)
    @hypothesis.seed(0)
    @hypothesis.given(strategy)
    def run(example: Any) -> None:
        check(example)

    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def speed_of_laws() -> None:
    """Print examples a second, drawn and checked, of each law on torch's qint8 ops."""
    ops = next(ops for ops in torch_targets() if ops.name == "qint8")
    print("examples a second on torch's qint8 ops (drawn, and checked)")
    for law in laws_for(ops):
        count = 5 if law.share(ops) == 0 else 60

        def check(example: Any, law: Any = law) -> None:
            try:
                law(ops, example)
            except AssertionError:
                return  # known issues

        print(f"  {law.name:28} {count / drawing(law.examples(ops), check, count):7.0f}")


def speed_of_strategies() -> None:
    """Print how many tensors a second both strategies draw, in turn, with as many values each."""
    ours = affine_examples(min_size=VALUES, max_size=VALUES, allow_huge=False)
    shapes = st.just((VALUES,))
    other = theirs.tensor(shapes=shapes, elements=theirs.floats(-1e6, 1e6), qparams=theirs.qparams(dtypes=torch.qint8))
    ratios = []
    for _ in range(ROUNDS):
        mine = drawing(ours, lambda example: example.tensor(), DRAWN)
        its = drawing(other, lambda drawn: None, DRAWN)
        ratios.append(its / mine)
        print(f"  this package {DRAWN / mine:6.0f} tensors/s, PyTorch's strategy {DRAWN / its:6.0f}, "
              f"ratio {its / mine:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


def their_checks_fail(ops: QuantOps) -> tuple[bool, bool]:
    """Whether an implementation fails PyTorch's round trip, and PyTorch's reference."""
    failed = [False, False]
    strategy = theirs.tensor(shapes=theirs.array_shapes(1, 3, 1, 12), elements=theirs.floats(-10, 10),
                             qparams=theirs.qparams(dtypes=torch.qint8, scale_min=2.0**-10, scale_max=0.125))

    def check(drawn: Any) -> None:
        array, (scale, zero_point, _) = drawn
        x = torch.from_numpy(np.ascontiguousarray(array)).float()
        try:
            codes = ops.quantize(x.clone(), float(np.float32(scale)), int(zero_point), -128, 127)
            back = ops.dequantize(codes, float(np.float32(scale)), int(zero_point))
            clipped = np.clip(x.numpy(), (-128 - zero_point) * scale, (127 - zero_point) * scale)
            failed[0] |= not np.allclose(clipped, back.numpy(), atol=2 / scale)
            expected = _quantize(x.numpy(), scale, zero_point, -128, 127, np.int8)
            failed[1] |= bool((np.abs(codes.numpy().astype(int) - expected.astype(int)) > 1).any())
        except Exception:
            failed[0] = failed[1] = True

    try:
        drawing(strategy, check, 40)
    except Flaky:
        failed[0] = failed[1] = True
    return failed[0], failed[1]


def kills() -> None:
    """Print which law kills each planted bug, and what PyTorch's checks make of those they can be asked about."""
    asked = [mutant for mutant in MUTANTS if isinstance(mutant.ops, QuantOps)]
    same = reference_ops.half_even()
    plain = [mutant for mutant in asked if (mutant.ops.fake_quantize is None or "gradient" not in mutant.ops.name)
             and "fake-quantize" not in mutant.ops.name and "channel" not in mutant.killed_by.lower()
             and mutant.killed_by[0] == "P"]
    ours = 0
    for mutant in MUTANTS:
        killed = check_law(get_law(mutant.killed_by), mutant.ops) is not None
        ours += killed
        print(f"  {'killed' if killed else 'SURVIVES':9} {mutant.killed_by:26} {mutant.ops.name}", flush=True)
    print(f"{ours} of {len(MUTANTS)} planted bugs killed in CI mode, each by the law that names it")
    found = [their_checks_fail(mutant.ops) for mutant in plain]
    right = their_checks_fail(same)
    trips, references = (sum(pair[index] for pair in found) for index in (0, 1))
    print(f"of the {len(plain)} in quantize and dequantize, PyTorch's strategy kills {trips} with its round trip (the "
          f"correct reference {'fails' if right[0] else 'passes'}) and {references} with its reference (the correct "
          f"reference {'fails' if right[1] else 'passes'}); these laws kill all")


def survivors(seeds: int) -> None:
    """Print whether correct implementations keep every law with so many seeds."""
    for ops in (reference_ops.half_even(), reference_ops.half_away(), reference_ops.half_up(), reference_ops.min_max(),
                reference_ops.symmetric(), reference_ops.min_max_channels(), reference_ops.moving_average(),
                reference_ops.integer_ops(), reference_ops.learnable()):
        broken = [(law.name, seed) for law in laws_for(ops) for seed in range(seeds)
                  if check_law(law, ops, seed=seed) is not None]
        print(f"{ops.name}: {len(laws_for(ops))} laws, {seeds} seeds, {len(broken)} false alarms {broken or ''}",
              flush=True)


if __name__ == "__main__":
    main()
