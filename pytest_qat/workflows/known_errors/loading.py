"""Errors of load_state_dict where the file and the model are at different stages of quantization."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from pytest_qat.workflows.known_errors.known import Known
from pytest_qat.workflows.known_errors.raised import Raised

__all__ = ["LOADING"]

_OBSERVERS = re.compile(r"activation_post_process|fake_quant|observer_enabled")
_INT8 = re.compile(r"_packed_params|_weight_bias|_frozen_param\d|_input_(scale|zero_point)_\d|^_(scale|zero_point)_\d")
_LOADERS = ("load_state_dict", "_load_from_state_dict")
_MISSING = r"'[\w.]+\.(weight|bias|scale|zero_point)'"
_STATE = "Error(s) in loading state_dict"


def _keys(text: str, kind: str) -> list[str]:
    found = re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. ?(?:\n|$)", text)
    return re.findall(r'"([^"]+)"', found[1]) if found else []


def _stage_of(keys: Iterable[str]) -> str:
    """Return which stage has these keys: `prepared`, `int8`, or an empty string where they do not tell."""
    names = list(keys)
    if any(map(_OBSERVERS.search, names)):
        return "prepared"
    scales = {name.removesuffix(".scale") for name in names if name.endswith(".scale")}
    if any(map(_INT8.search, names)) or scales & {name.removesuffix(".zero_point") for name in names}:
        return "int8"
    return ""


def _stages(raised: Raised) -> tuple[str, str] | None:
    """Return the stages of what was saved and of the model it was to be loaded into; None if that is not the matter."""
    text, state = raised.text, raised.local("state_dict", "load_state_dict")
    if not text.startswith(_STATE):
        packs = "_prepack' with arguments from the 'CPU'" in text or re.fullmatch(_MISSING, text)
        return (_stage_of(state or ()) or "float", "int8") if packs and raised.within(*_LOADERS) else None
    saved, own = _stage_of(_keys(text, "Unexpected")), _stage_of(_keys(text, "Missing"))
    if "Copying from quantized Tensor" in text or "no attribute 'tensor_data_names'" in text:
        saved = "int8"
    elif "no attribute 'qdata'" in text:
        own = "int8"
    return (saved or _stage_of(state or ()) or "float", own or "float") if saved or own else None


def _module(raised: Raised) -> str | None:
    """Return the module of the first key that only one of the two has."""
    keys = [*_keys(raised.text, "Unexpected"), *_keys(raised.text, "Missing"),
            *re.findall(r'parameter named "([^"]+)"', raised.text), *re.findall(r"^'([\w.]+)'$", raised.text)]
    names = {name for name, _ in raised.model.named_modules()}
    for key in keys:
        parts = key.split(".")
        own = [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]
        module = next((name for name in own if name in names and not _OBSERVERS.search(name)), None)
        if module:
            return module
    return raised.module


def _facts(raised: Raised) -> Mapping[str, str]:
    saved, own = _stages(raised) or ("", "")
    return {"saved": saved, "own": own}


def _between(saved: str, own: str) -> Callable[[Raised], bool]:
    return lambda raised: _stages(raised) == (saved, own)


_PATTERN = rf"^{re.escape(_STATE)}|_prepack' with arguments from the 'CPU'|^'[\w.]+'$"
_MESSAGE = "the state dict is of a model that is {saved}, and the model that it is loaded into is {own}."

LOADING = (
    Known(code="state-dict-of-another-stage", pattern=_PATTERN, when=_between("int8", "float"), message=_MESSAGE,
          facts=_facts, module=_module,
          remedy="fuse, prepare and convert the model as the saved one was, and load then."),
    Known(code="state-dict-of-another-stage", pattern=_PATTERN, when=_between("int8", "prepared"), message=_MESSAGE,
          facts=_facts, module=_module,
          remedy="convert the prepared model before loading an int8 state dict."),
    Known(code="state-dict-of-another-stage", pattern=_PATTERN, when=_between("prepared", "float"), message=_MESSAGE,
          facts=_facts, module=_module,
          remedy="fuse and prepare the model as the saved one was, and load then."),
    Known(code="state-dict-of-another-stage", pattern=_PATTERN, when=_between("prepared", "int8"), message=_MESSAGE,
          facts=_facts, module=_module,
          remedy="load it into the prepared model, and convert that afterwards."),
    Known(code="state-dict-of-another-stage", pattern=_PATTERN, when=_between("float", "prepared"), message=_MESSAGE,
          facts=_facts, module=_module,
          remedy="load it into the float model, and prepare that afterwards."),
    Known(code="state-dict-of-another-stage", pattern=_PATTERN, when=_between("float", "int8"), message=_MESSAGE,
          facts=_facts, module=_module,
          remedy="load it into the float model, and quantize that afterwards."),
    Known(code="state-dict-of-another-stage", pattern=_PATTERN, facts=_facts, module=_module,
          when=lambda raised: (_stages(raised) or ("", " "))[0] == (_stages(raised) or ("", " "))[1],
          message="the state dict and the model are both {own}, but were fused, prepared or converted in different "
                  "ways.",
          remedy="make the model by the same workflow, qconfig and fusion as the one that was saved."),
)
"""What is known of loading state dicts."""
