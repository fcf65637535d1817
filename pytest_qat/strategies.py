"""Public Hypothesis strategies for tests of quantization; they are made in `pytest_qat.properties.strategies`."""

from pytest_qat.properties.strategies import (
    affine_examples,
    channel_examples,
    code_range,
    fake_quantize_configs,
    observer_streams,
    per_channel,
    qparams,
    quantizable_tensors,
    values_for,
)

__all__ = ["affine_examples", "channel_examples", "code_range", "fake_quantize_configs", "observer_streams",
           "per_channel", "qparams", "quantizable_tensors", "values_for"]
