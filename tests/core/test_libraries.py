"""Models by their name in a library; transformers is played by a module of the same shape."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_qat.case import QATCase
from pytest_qat.core import memory
from pytest_qat.errors import InvalidCase, QATError, UnsupportedEnvironment
from pytest_qat.measure.untrained import why_random
from pytest_qat.references import load_case

GIB = 2**30


class TextConfig:
    def __init__(self, *, num_hidden_layers: int = 4, hidden_size: int = 8, vocab_size: int = 50,
                 max_position_embeddings: int = 512) -> None:
        self.num_hidden_layers, self.hidden_size, self.vocab_size = num_hidden_layers, hidden_size, vocab_size
        self.max_position_embeddings = max_position_embeddings


class UnlimitedConfig(TextConfig):
    def __init__(self) -> None:
        super().__init__(max_position_embeddings=-1)


class HugeConfig(TextConfig):
    """Of 64 GiB, or with two layers of 2 MiB."""

    def __init__(self, *, num_hidden_layers: int = 2**16) -> None:
        super().__init__(num_hidden_layers=num_hidden_layers, hidden_size=512)


class HugeAnywayConfig(TextConfig):
    def __init__(self, *, num_hidden_layers: int = 2) -> None:
        super().__init__(num_hidden_layers=num_hidden_layers, hidden_size=2**18)


class BrokenHugeConfig(HugeAnywayConfig):
    """Whose model fails after its weights were made."""


class ExpertsConfig(TextConfig):
    """Of 16 GiB, most of them in 256 experts that are alike."""

    def __init__(self, *, num_hidden_layers: int = 2, vocab_size: int = 50, n_routed_experts: int = 256) -> None:
        super().__init__(num_hidden_layers=num_hidden_layers, vocab_size=vocab_size)
        self.n_routed_experts = n_routed_experts


class SeriesConfig:
    def __init__(self) -> None:
        self.context_length, self.num_input_channels = 24, 3


class FusedConfig:
    def __init__(self) -> None:
        self.hidden_size = 12


class PartsConfig:
    def __init__(self, *, text_config: dict[str, Any] | None = None) -> None:
        self.text_config = HugeConfig(**(text_config or {}))
        self.vocab_size = self.text_config.vocab_size


class BrokenConfig(TextConfig):
    pass


class ImageConfig:
    def __init__(self, *, image_size: int | None = None) -> None:
        self.image_size = image_size


class Text(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__()
        config = getattr(config, "text_config", config)
        if type(config) is BrokenConfig:
            raise KeyError("full_attention")
        self.table = nn.Embedding(config.vocab_size, config.hidden_size)
        if experts := getattr(config, "n_routed_experts", 0):
            self.experts = nn.Linear(2**16, 2**8 * experts, bias=False)
        self.layers = nn.ModuleList(
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(min(config.num_hidden_layers, 64)))
        if config.num_hidden_layers > 64:  # the rest at once: a test has no time for each
            self.rest = nn.Linear(config.hidden_size, config.hidden_size * (config.num_hidden_layers - 64))
        if type(config) is BrokenHugeConfig:
            raise KeyError("full_attention")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.table(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


class Image(nn.Module):
    main_input_name = "pixel_values"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 224)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(pixel_values).flatten(1) @ torch.ones(4 if pixel_values.shape[-1] == 224 else 5, 1)


class Misnamed(Image):
    """Inherits the name of an input that it does not take."""

    main_input_name = "input_ids"


class Series(nn.Module):
    main_input_name = "past_values"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(config.num_input_channels, 2)

    def forward(self, past_values: Tensor, past_observed_mask: Tensor | None = None) -> Tensor:
        return self.layer(past_values)


class Fused(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.layer(hidden_states)


class MisnamedConfig(ImageConfig):
    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 16


KINDS: dict[type, Callable[[Any], nn.Module]] = {
    MisnamedConfig: Misnamed, ImageConfig: Image, SeriesConfig: Series, FusedConfig: Fused}


class AutoModel:
    @staticmethod
    def from_config(config: Any) -> nn.Module:
        return KINDS.get(type(config), Text)(config)


@pytest.fixture(autouse=True)
def _transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    played = ModuleType("transformers")
    for kind in (TextConfig, UnlimitedConfig, HugeConfig, HugeAnywayConfig, BrokenHugeConfig, PartsConfig, BrokenConfig,
                 ImageConfig, MisnamedConfig, SeriesConfig, FusedConfig, ExpertsConfig, AutoModel):
        setattr(played, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "transformers", played)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 16 * GIB)
    return


def loaded(reference: str) -> QATCase:
    return load_case(reference, root=Path())


def refused(kind: type[QATError], reference: str) -> QATError:
    with pytest.raises(kind) as caught:
        loaded(reference)
    return caught.value


def test_keyword_arguments_go_to_the_configuration() -> None:
    case = loaded("hf:TextConfig(num_hidden_layers=2, hidden_size=16)")
    assert [layer.in_features for layer in case.model.layers] == [16, 16]
    assert case.label == "Text(num_hidden_layers=2, hidden_size=16) (random weights)"
    assert len(loaded("hf:TextConfig").model.layers) == 4


def test_a_library_model_is_known_to_be_random_as_are_its_copies() -> None:
    for reference, library in (("hf:TextConfig", "transformers"), ("torchvision:raft_small", "torchvision")):
        model = copy.deepcopy(loaded(reference).model)
        assert why_random(model) == f"{library} drew them"


def test_a_model_with_trained_weights_is_not_called_random(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    monkeypatch.setattr(torchvision.models, "get_model", lambda name, **options: nn.Linear(2, 2))
    case = loaded("torchvision:resnet18(weights='DEFAULT')")
    assert case.label == "resnet18(weights='DEFAULT')"
    assert why_random(case.model) == ""
    assert loaded("torchvision:resnet18").label == "resnet18 (random weights)"


def test_keyword_arguments_go_to_the_function_that_builds_the_model() -> None:
    case = loaded("torchvision:squeezenet1_1(num_classes=7)")
    assert case.model(case.example_inputs[0]).shape == (1, 7)


@pytest.mark.parametrize("text", [
    "TextConfig(", "TextConfig(2)", "TextConfig(hidden_size=size)", "TextConfig(hidden_size=open('x'))",
    "TextConfig()()", "TextConfig(**{'hidden_size': 2})(", "a.TextConfig(hidden_size=2)"])
def test_what_is_no_call_with_literals_is_refused_and_nothing_is_run(text: str) -> None:
    error = refused(InvalidCase, f"hf:{text}")
    assert repr(text) in error.message
    assert "hf:BertConfig(num_hidden_layers=2" in error.hint


def test_a_keyword_that_the_configuration_does_not_take_is_named() -> None:
    assert "no_such" in refused(InvalidCase, "hf:TextConfig(no_such=2)").message


def test_no_limit_of_positions_is_no_length() -> None:
    assert loaded("hf:UnlimitedConfig").example_inputs[0].shape == (1, 64)


def test_a_model_that_fails_on_the_inputs_of_its_configuration_says_how() -> None:
    assert loaded("hf:ImageConfig").example_inputs[0].shape == (1, 3, 224, 224)
    error = refused(InvalidCase, "hf:ImageConfig(image_size=32)")
    assert "on 1x3x32x32, as its configuration says, it raised" in error.message
    assert "test_libraries.py:" in error.message


def test_a_configuration_without_a_model_says_where_it_fails() -> None:
    message = refused(InvalidCase, "hf:BrokenConfig").message
    assert "its defaults are not complete" in message
    assert "full_attention" in message
    assert "test_libraries.py:" in message


def test_a_model_that_does_not_fit_is_refused_before_it_is_built_and_a_smaller_one_that_fits_is_named() -> None:
    error = refused(UnsupportedEnvironment, "hf:HugeConfig")
    assert "64.1 GiB of weights" in error.message
    assert error.hint.endswith("such as 'hf:HugeConfig(num_hidden_layers=2)'.")
    assert len(loaded("hf:HugeConfig(num_hidden_layers=2)").model.layers) == 2
    error = refused(UnsupportedEnvironment, "hf:PartsConfig")
    assert error.hint.endswith("such as 'hf:PartsConfig(text_config={'num_hidden_layers': 2})'.")
    assert loaded("hf:PartsConfig(text_config={'num_hidden_layers': 2})").model is not None


def test_of_many_experts_a_few_will_do() -> None:
    hint = refused(UnsupportedEnvironment, "hf:ExpertsConfig").hint
    assert hint.endswith("such as 'hf:ExpertsConfig(num_hidden_layers=2, vocab_size=1000, n_routed_experts=8)'.")


@pytest.mark.parametrize(("name", "shape"), [
    ("MisnamedConfig", (1, 3, 224, 224)), ("SeriesConfig", (1, 24, 3)), ("FusedConfig", (1, 64, 12))])
def test_what_the_forward_takes_first_is_drawn(name: str, shape: tuple[int, ...]) -> None:
    case = loaded(f"hf:{name}")
    assert [tuple(each.shape) for each in case.example_inputs] == [shape]


@pytest.mark.parametrize("name", ["HugeAnywayConfig", "BrokenHugeConfig"])
def test_no_smaller_model_is_named_that_does_not_fit_either(name: str) -> None:
    error = refused(UnsupportedEnvironment, f"hf:{name}")
    assert "512.1 GiB" in error.message
    assert "such as" not in error.hint
