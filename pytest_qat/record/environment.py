"""What a result depends on: the machine, the packages and torch's quantized engines."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from pytest_qat.core.versions import package_versions
from pytest_qat.record.schema import Environment

__all__ = ["describe_environment"]


@functools.cache
def describe_environment(*, seed: int) -> Environment:
    """Return machine, package versions and torch's CPU capability as plain JSON values."""
    import torch  # only where a model was measured, so torch is loaded by then

    return {
        "python": platform.python_version(), "platform": platform.platform(), "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "quantized_engines": list(torch.backends.quantized.supported_engines),
        "packages": package_versions(),
        "seed": seed,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
