"""How long each op of an ExecuTorch program takes, portable or within XNNPACK, from its own event trace."""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from pytest_qat.core.quiet import quiet_loggers, silenced
from pytest_qat.runtimes.base import OpTime
from pytest_qat.runtimes.op_times import longest_first, repeat

__all__ = ["executorch_op_times"]

_PORTABLE = "native_call_"


def executorch_op_times(path: Path, values: Sequence[Tensor]) -> tuple[OpTime, ...]:
    """Call a program with tracing on, and return what each op takes; nothing if this build cannot trace.

    Args:
        path: The `.pte`.
        values: Input tensors, in order.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), silenced(), quiet_loggers():
        warnings.simplefilter("ignore")
        from executorch.devtools import Inspector
        from executorch.extension.pybindings import portable_lib

        program = portable_lib._load_for_executorch(str(path), enable_etdump=True)  # noqa: SLF001 - no public name
        if not program.has_etdump():
            return ()
        repeat(partial(program.forward, tuple(values)))
        trace = Path(folder) / "trace.etdp"
        program.write_etdump_result_to_file(str(trace))
        blocks = Inspector(etdump_path=str(trace)).event_blocks
    return longest_first([
        OpTime(op=event.name.removeprefix(_PORTABLE), shapes="", seconds=statistics.median(event.perf_data.raw) / 1e3)
        for block in blocks for event in block.events
        if event.perf_data is not None and (event.is_delegated_op or event.name.startswith(_PORTABLE))])
