"""torch.ao FX graph mode: trace the model, or the parts of it that can be traced, and quantize the graphs."""

from pytest_qat.workflows.fx.workflow import CONVERTS_SLOWLY, convert, float_twin, prepare

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]
