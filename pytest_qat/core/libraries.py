"""Models by their name in a library: torchvision, timm and transformers. Weights are random: nothing is downloaded.

A library model comes with a way to draw inputs of the size that the library states for it, so that it can be
quantized without a line of code. It has no evaluation data; float is what int8 is compared with.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import nn

from pytest_qat.core.memory import hold_to_memory
from pytest_qat.core.torch_state import preserved_torch_state
from pytest_qat.errors import InvalidCase, ReferenceNotFound, UnsupportedEnvironment

__all__ = ["LIBRARIES", "LibraryModel"]

_TOKENS, _WAVE_SAMPLES, _FRAMES = 64, 16_000, 16
_IMAGE = (3, 224, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryModel:
    """A model with random weights, as its library builds it.

    Attributes:
        model: In eval mode.
        label: The name to print; it says that the weights are random.
        draw: Draws one batch of inputs as the library states them; None where the library does not say.
    """

    model: nn.Module
    label: str
    draw: Callable[[], tuple[Any, ...]] | None


def _torchvision(name: str) -> LibraryModel:
    models = _imported("torchvision", "torchvision.models")
    _known(name, models.list_models(), library="torchvision", listed="torchvision.models.list_models()")
    # Some builders would download weights for their backbone even where weights=None.
    takes_backbone = "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters
    options = {"weights": None, **({"weights_backbone": None} if takes_backbone else {})}
    label = f"{name} (random weights)"
    model = _built(lambda: models.get_model(name, **options), label=label).eval()
    return LibraryModel(model=model, label=label, draw=_drawn_for_torchvision(models, name))


def _drawn_for_torchvision(models: Any, name: str) -> Callable[[], tuple[Any, ...]]:
    """Return what draws an image, two for optical flow, or a clip of the size that the weights' preprocessing makes."""
    preset = next(iter(models.get_model_weights(name))).transforms
    size: Any = (getattr(preset, "keywords", None) or {}).get("crop_size", _IMAGE[-1])
    sides = tuple(size) if isinstance(size, Iterable) else (size, size)
    match getattr(preset, "func", preset).__name__:
        case "OpticalFlow":
            return lambda: (torch.randn(1, *_IMAGE), torch.randn(1, *_IMAGE))
        case "VideoClassification":
            return lambda: (torch.randn(1, 3, _FRAMES, *sides),)
        case _:
            return lambda: (torch.randn(1, *_IMAGE),)


def _timm(name: str) -> LibraryModel:
    timm = _imported("timm", "timm")
    _known(name.partition(".")[0], timm.list_models(), library="timm", listed="timm.list_models()")
    label = f"{name} (random weights)"
    model = _built(lambda: timm.create_model(name, pretrained=False), label=label)
    size = tuple((getattr(model, "pretrained_cfg", None) or {}).get("input_size", _IMAGE))
    return LibraryModel(model=model.eval(), label=label, draw=lambda: (torch.randn(1, *size),))


def _transformers(name: str) -> LibraryModel:
    transformers = _imported("transformers", "transformers")
    configs = [each for each in dir(transformers) if each.endswith("Config")]
    _known(name, configs, library="transformers", listed="the classes that end in Config")
    config = getattr(transformers, name)()
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache of past keys is no output that ships
    label = f"{name.removesuffix('Config')} (random weights)"
    try:
        model: Any = _built(lambda: _of_config(transformers, config), label=label).eval()
    except ValueError as error:
        raise InvalidCase(f"transformers has no model for {name}: {str(error).splitlines()[0][:200]}",
                          hint="Write a function that builds the model, and name that instead.") from error
    except TypeError as error:  # a config whose defaults make no model
        raise InvalidCase(f"{name}() makes no model, its defaults are not complete: {str(error).splitlines()[0][:200]}",
                          hint="Write a function that builds the model, and name that instead.") from error
    if getattr(config, "is_encoder_decoder", False):
        encoder = model.get_encoder()
        if _runs(encoder, draw := _drawn_for(encoder, config)):
            return LibraryModel(model=encoder, label=label.replace(" (", " encoder ("), draw=draw)
    draw = _drawn_for(model, config)
    return LibraryModel(model=model, label=label, draw=draw if _runs(model, draw) else None)


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


def _runs(model: nn.Module, draw: Callable[[], tuple[Any, ...]] | None) -> bool:
    """Whether a model takes what is drawn for it: what its configuration says may be something else than it reads."""
    if draw is None:
        return False
    try:
        with preserved_torch_state(seed=0), torch.no_grad():
            model(*draw())
    except Exception:
        return False
    return True


def _built(build: Callable[[], nn.Module], *, label: str) -> nn.Module:
    """Build a model, after finding out without its weights that a run of it fits into memory.

    Raises:
        UnsupportedEnvironment: it does not.
    """
    with preserved_torch_state(seed=0), torch.device("meta"):  # the weights themselves are drawn below
        try:
            weights = sum(parameter.nbytes for parameter in build().parameters())
        except Exception:  # code that reads values while it builds cannot do without them
            weights = 0
    hold_to_memory(label, weights)
    return build()


def _drawn_for(model: Any, config: Any) -> Callable[[], tuple[Any, ...]] | None:
    """Return what draws the inputs of a transformers model, whose sizes its configuration tells.

    A model of text and images takes both, if they are the first two arguments of its forward.
    """
    main = getattr(model, "main_input_name", "input_ids")
    parts = {"input_ids": getattr(config, "text_config", None), "pixel_values": getattr(config, "vision_config", None)}
    if not all(parts.values()):
        return _drawn_as(main, config)
    first = list(inspect.signature(model.forward).parameters)[:2]
    draws = [draw for name in first if name in parts and (draw := _drawn_as(name, parts[name])) is not None]
    return (lambda: tuple(drawn for draw in draws for drawn in draw())) if len(draws) == len(parts) else None


def _drawn_as(kind: str, config: Any) -> Callable[[], tuple[Any, ...]] | None:
    """Return what draws one input of a transformers model, by its name; None where the size is not known."""
    if kind == "input_ids" and hasattr(config, "vocab_size"):
        tokens = min(_TOKENS, getattr(config, "max_position_embeddings", None) or _TOKENS)
        return lambda: (torch.randint(0, config.vocab_size, (1, tokens)),)
    if kind == "pixel_values":
        image = getattr(config, "image_size", None) or _IMAGE[-1]
        sides = tuple(image) if isinstance(image, Iterable) else (image, image)
        return lambda: (torch.randn(1, getattr(config, "num_channels", 3), *sides),)
    if kind == "input_features" and hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):
        return lambda: (torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions),)
    if kind == "input_values":
        return lambda: (torch.randn(1, _WAVE_SAMPLES),)
    return None


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
