"""torch.ao eager mode: modules are fused, wrapped and swapped by what one traced call showed."""

from pytest_qat.workflows.eager.workflow import CONVERTS_SLOWLY, convert, float_twin, prepare

__all__ = ["CONVERTS_SLOWLY", "convert", "float_twin", "prepare"]
