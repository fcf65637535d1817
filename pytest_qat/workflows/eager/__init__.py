"""torch.ao eager mode: modules are fused, wrapped and swapped by what one traced call showed."""

from pytest_qat.workflows.eager.workflow import convert, float_twin, prepare

__all__ = ["convert", "float_twin", "prepare"]
