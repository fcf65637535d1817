"""Models by their name in a library: torchvision, timm and transformers. Weights are random: nothing is downloaded.

A name may carry keyword arguments, as in `hf:BertConfig(num_hidden_layers=2)`: of the configuration, or of the function
that builds the model. A library model comes with a way to draw inputs of the size that the library states for it, so
that it can be quantized without a line of code. It has no evaluation data; float is what int8 is compared with.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pytest_qat.core.memory import fits_into_memory, hold_to_memory
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.core.tracebacks import headline, place_of
from pytest_qat.errors import InvalidCase, QATError, ReferenceNotFound, UnsupportedEnvironment

__all__ = ["LIBRARIES", "LibraryModel", "weights_drawn_by"]

_TOKENS, _WAVE_SAMPLES, _FRAMES = 64, 16_000, 16
_IMAGE = (3, 224, 224)
_LESS = (("num_hidden_layers", 2), ("intermediate_size", 1024), ("vocab_size", 1000), ("n_routed_experts", 8),
         ("num_experts", 8), ("num_local_experts", 8), ("moe_intermediate_size", 256), ("ffn_hidden_size", 1024),
         ("num_hidden_layers", 1))
"""What a configuration is tried with where its defaults do not fit into memory, one more at a time."""
_PARTS = ("text_config", "vision_config", "audio_config")
_DRAWN_KINDS = ("input_ids", "pixel_values", "input_features", "input_values", "past_values", "hidden_states",
                "inputs_embeds")
_DRAWN_BY = "_pytest_qat_weights_drawn_by"


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryModel:
    """A model with random weights, as its library builds it.

    Attributes:
        model: In eval mode.
        label: The name to print; it says that the weights are random.
        draw: Draws one batch of inputs as the library states them; None where the library does not say.
        problem: What the model raised on such inputs, where that is why there are none; else empty.
    """

    model: nn.Module
    label: str
    draw: Callable[[], tuple[Any, ...]] | None
    problem: str = ""


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Return a model's name and its keyword arguments from `name` or `name(key=value, ...)`.

    Raises:
        InvalidCase: it is neither, or a value is no literal.
    """
    if "(" not in text:
        return text, {}
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            return call.func.id, {str(each.arg): ast.literal_eval(each.value) for each in call.keywords if each.arg}
    except (SyntaxError, ValueError):
        pass
    raise InvalidCase(f"the model is named {text!r}, expected a name, or one with keyword arguments whose values are "
                      "literals.", hint="Write it as in hf:BertConfig(num_hidden_layers=2, hidden_size=128).")


def _torchvision(text: str) -> LibraryModel:
    name, given = _parsed(text)
    models = _imported("torchvision", "torchvision.models")
    _known(name, models.list_models(), library="torchvision", listed="torchvision.models.list_models()")
    # Some builders would download weights for their backbone even where weights=None.
    takes_backbone = "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters
    options = {"weights": None, **({"weights_backbone": None} if takes_backbone else {}), **given}
    random = options.get("weights") is None and options.get("weights_backbone") is None
    label = _label(text, random=random)
    model = _built(lambda: models.get_model(name, **options), label=label, library="torchvision" if random else "")
    return LibraryModel(model=model.eval(), label=label, draw=_drawn_for_torchvision(models, name))


def _drawn_for_torchvision(models: Any, name: str) -> Callable[[], tuple[Any, ...]]:
    """Return what draws an image, two for optical flow, or a clip of the size that the weights' preprocessing makes."""
    preset = next(iter(models.get_model_weights(name))).transforms
    size: Any = (getattr(preset, "keywords", None) or {}).get("crop_size", _IMAGE[-1])
    sides = _sides(size)
    match getattr(preset, "func", preset).__name__:
        case "OpticalFlow":
            return lambda: (torch.randn(1, *_IMAGE), torch.randn(1, *_IMAGE))
        case "VideoClassification":
            return lambda: (torch.randn(1, 3, _FRAMES, *sides),)
        case _:
            return lambda: (torch.randn(1, *_IMAGE),)


def _timm(text: str) -> LibraryModel:
    name, given = _parsed(text)
    timm = _imported("timm", "timm")
    _known(name.partition(".")[0], timm.list_models(), library="timm", listed="timm.list_models()")
    options = {"pretrained": False, **given}
    label = _label(text, random=not options["pretrained"])
    model = _built(lambda: timm.create_model(name, **options), label=label,
                   library="" if options["pretrained"] else "timm")
    channels, *sides = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", _IMAGE)
    sides = _sides(given["img_size"]) if "img_size" in given else sides
    size = (given.get("in_chans", channels), *sides)
    return LibraryModel(model=model.eval(), label=label, draw=lambda: (torch.randn(1, *size),))


def _transformers(text: str) -> LibraryModel:
    name, given = _parsed(text)
    transformers = _imported("transformers", "transformers")
    configs = [each for each in dir(transformers) if each.endswith("Config")]
    _known(name, configs, library="transformers", listed="the classes that end in Config")
    config = getattr(transformers, name)(**given)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache of past keys is no output that ships
    label = _label(f"{name.removesuffix('Config')}{text.removeprefix(name)}", random=True)
    try:
        model: Any = _built(lambda: _of_config(transformers, config), label=label, library="transformers",
                            smaller=lambda: "" if given else _smaller(transformers, name, config)).eval()
    except ValueError as error:
        raise InvalidCase(f"transformers has no model for {name}: {str(error).splitlines()[0][:200]}",
                          hint="Write a function that builds the model, and name that instead.") from error
    except QATError:
        raise
    except Exception as error:  # a config whose defaults make no model
        raise InvalidCase(f"{name}() makes no model, its defaults are not complete: {headline(error)} "
                          f"({place_of(error)}).",
                          hint="Write a function that builds the model, and name that instead.") from error
    if getattr(config, "is_encoder_decoder", False):
        encoder = _drawn(model.get_encoder(), library="transformers")
        if (draw := _drawn_for(encoder, config)) is not None and not _problem(encoder, draw):
            return LibraryModel(model=encoder, label=label.replace(" (", " encoder ("), draw=draw)
    draw = _drawn_for(model, config)
    problem = "" if draw is None else _problem(model, draw)
    return LibraryModel(model=model, label=label, draw=None if problem else draw, problem=problem)


def _of_kind(transformers: Any, kind: Callable[..., Any], given: Mapping[str, Any]) -> nn.Module:
    return _of_config(transformers, kind(**given))


def _of_config(transformers: Any, config: Any) -> nn.Module:
    """Return a model of a configuration: the bare one, or else the first with a head, as a depth estimator is."""
    try:
        bare: nn.Module = transformers.AutoModel.from_config(config)
    except ValueError:
        place = type(config).__module__.replace("configuration_", "modeling_")
        try:
            listed = vars(importlib.import_module(place))
        except ImportError:
            listed = {}
        kinds = [kind for name, kind in listed.items() if isinstance(kind, type) and issubclass(kind, nn.Module)
                 and getattr(kind, "config_class", None) is type(config) and not name.endswith("PreTrainedModel")]
        if not kinds:
            raise
        headed: nn.Module = kinds[0](config)
        return headed
    return bare


def _problem(model: nn.Module, draw: Callable[[], tuple[Any, ...]]) -> str:
    """Return what a model raises on what is drawn for it; "" if it runs.

    What a configuration says may be something else than the model reads.
    """
    try:
        with preserved_torch_state(seed=0), torch.no_grad():
            inputs = draw()
            model(*inputs)
    except Exception as error:
        shapes = " and ".join("x".join(str(size) for size in tensor.shape) for tensor in inputs)
        return f"on {shapes}, as its configuration says, it raised {headline(error)} ({place_of(error)})"
    return ""


def _smaller(transformers: Any, name: str, config: Any) -> str:
    """Return how to name a model of the same kind with less in it, where one is known to fit into memory; else ""."""
    kind, tried = type(config), dict[str, Any]()
    for count in range(1, len(_LESS) + 1):
        less = dict(_LESS[:count])
        if hasattr(config, _LESS[0][0]):
            fewer: dict[str, Any] = {key: value for key, value in less.items() if hasattr(config, key)}
        else:
            parts = {part: getattr(config, part, None) for part in _PARTS}
            fewer = {part: {key: value for key, value in less.items() if hasattr(held, key)}
                     for part, held in parts.items() if hasattr(held, _LESS[0][0])}
        if not fewer:
            return ""
        if fewer == tried:
            continue
        tried = fewer
        needed, built = _weight_bytes(partial(_of_kind, transformers, kind, fewer))
        if built and fits_into_memory(needed):
            return f"'hf:{name}({', '.join(f'{key}={value!r}' for key, value in fewer.items())})'"
    return ""


def weights_drawn_by(model: nn.Module) -> str:
    """Return the library that has built a model with random weights; "" for any other model."""
    return str(getattr(model, _DRAWN_BY, ""))


def _drawn(model: nn.Module, *, library: str) -> nn.Module:
    """Note on a model, for its copies as well, that a library has drawn its weights."""
    setattr(model, _DRAWN_BY, library)
    return model


def _label(text: str, *, random: bool) -> str:
    return f"{text} (random weights)" if random else text


def _built(build: Callable[[], nn.Module], *, label: str, library: str,
           smaller: Callable[[], str] = str) -> nn.Module:
    """Build a model, after finding out without its weights that a run of it fits into memory.

    Args:
        build: Builds it.
        label: Its name.
        library: Which one draws its weights; "" if they are trained.
        smaller: Returns how a smaller one is named; "" if that cannot be said.

    Raises:
        UnsupportedEnvironment: it does not.
    """
    needed, _ = _weight_bytes(build)
    hold_to_memory(label, needed, smaller="" if fits_into_memory(needed) else smaller())
    return _drawn(build(), library=library)


def _weight_bytes(build: Callable[[], nn.Module]) -> tuple[int, bool]:
    """Return how much a model's weights would take, without drawing any, and whether building it came to an end.

    If it does not, the weights are those that were made before.
    """
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that ids stay theirs

    def note(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        if parameter is not None and parameter.is_meta:
            held.append(parameter)
            sizes[id(parameter)] = parameter.nbytes

    built = False
    noting = register_module_parameter_registration_hook(note)
    try:
        # Code that reads values while it builds cannot do without them, and fails here.
        with preserved_torch_state(seed=0), torch.device("meta"), contextlib.suppress(Exception):
            build()
            built = True
    finally:
        noting.remove()
    return sum(sizes.values()), built


def _drawn_for(model: Any, config: Any) -> Callable[[], tuple[Any, ...]] | None:
    """Return what draws the inputs of a transformers model, whose sizes its configuration tells.

    The first argument of its forward is what is drawn, where its name is known; some inherit another `main_input_name`.
    A model of text and images takes both, if they are the first two arguments of its forward.
    """
    names = list(inspect.signature(model.forward).parameters)
    main = names[0] if names and names[0] in _DRAWN_KINDS else getattr(model, "main_input_name", "input_ids")
    parts = {"input_ids": getattr(config, "text_config", None), "pixel_values": getattr(config, "vision_config", None)}
    if not all(parts.values()):
        return _drawn_as(main, config)
    draws = [draw for name in names[:2] if name in parts and (draw := _drawn_as(name, parts[name])) is not None]
    return (lambda: tuple(drawn for draw in draws for drawn in draw())) if len(draws) == len(parts) else None


def _drawn_as(kind: str, config: Any) -> Callable[[], tuple[Any, ...]] | None:
    """Return what draws one input of a transformers model, by its name; None where the size is not known."""
    if kind == "input_ids" and hasattr(config, "vocab_size"):
        longest = getattr(config, "max_position_embeddings", None) or _TOKENS
        tokens = min(_TOKENS, longest) if longest > 0 else _TOKENS  # XLNet's is -1, for no limit
        return lambda: (torch.randint(0, config.vocab_size, (1, tokens)),)
    shape = _shape_of(kind, config)
    return None if shape is None else lambda: (torch.randn(1, *shape),)


def _shape_of(kind: str, config: Any) -> tuple[int, ...] | None:
    """Return the shape of one sample of a floating-point input; None where it is not known."""
    found: tuple[int, ...] | None = None
    match kind:
        case "pixel_values":
            image = getattr(config, "image_size", None) or _IMAGE[-1]
            found = (getattr(config, "num_channels", 3), *_sides(image))
        case "input_values":
            found = (_WAVE_SAMPLES,)
        case "input_features" if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
            found = (config.num_mel_bins, 2 * config.max_source_positions)
        case "past_values" if hasattr(config, "context_length") and hasattr(config, "num_input_channels"):
            found = (config.context_length, config.num_input_channels)
        case "hidden_states" | "inputs_embeds" if hasattr(config, "hidden_size"):
            found = (_TOKENS, config.hidden_size)
    return found


def _sides(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, Iterable) else (size, size)


def _imported(library: str, module: str) -> Any:
    try:
        found: ModuleType = importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        raise UnsupportedEnvironment(
            f"this reference needs {library}, which does not import here: {str(error).splitlines()[0]}.",
            hint=f"pip install {library}") from error
    return found


def _known(name: str, names: Iterable[str], *, library: str, listed: str) -> None:
    known = list(names)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3)
    raise ReferenceNotFound(f"{library} has no model named {name!r}.",
                            hint=f"Did you mean {' or '.join(near)}?" if near else f"Choose one of {listed}.")


LIBRARIES: Mapping[str, Callable[[str], LibraryModel]] = MappingProxyType(
    {"torchvision": _torchvision, "timm": _timm, "hf": _transformers})
"""What builds a model, by the word before the colon of a reference."""
