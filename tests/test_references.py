"""From a reference on the command line to a case."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pytest_qat.case import QATCase
from pytest_qat.errors import InvalidCase, InvalidOption, QATError, ReferenceNotFound
from pytest_qat.references import as_case, load_case, resolve

HEADER = "import torch\nfrom torch import nn\nfrom pytest_qat import QATCase\n"

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write a module of a user's into the folder that references start from."""
    def file(code: str, *, at: str = "zoo.py") -> Path:
        path = tmp_path / at
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEADER + textwrap.dedent(code))
        return tmp_path

    return file


def refused(kind: type[QATError], reference: str, root: Path, **options: Any) -> QATError:
    with pytest.raises(kind) as caught:
        load_case(reference, root=root, **options)
    assert caught.value.hint, "every refusal comes with a mend"
    return caught.value


# -- finding what is named ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["zoo:build", "zoo.py:build", "zoo:Holder.build", "./zoo.py:Holder.build"])
def test_a_function_is_found_by_module_by_file_and_inside_a_class(write: Writer, reference: str) -> None:
    root = write("""
        def build(): return 7
        class Holder:
            build = staticmethod(build)
        """)
    assert resolve(reference, root=root)() == 7


def test_a_function_is_found_in_a_package_and_by_an_absolute_path(write: Writer) -> None:
    root = write("def build(): return 7", at="farm/inner/zoo.py")
    assert resolve("farm.inner.zoo:build", root=root)() == 7
    assert resolve(f"{root}/farm/inner/zoo.py:build", root=Path("/"))() == 7


def test_a_file_is_loaded_once_however_often_it_is_named(write: Writer) -> None:
    root = write("build = object()")
    assert resolve("zoo.py:build", root=root) is resolve("zoo.py:build", root=root)


def test_a_file_may_import_its_neighbor(write: Writer) -> None:
    write("weight = 7", at="farm/neighbor_of_zoo.py")
    root = write("from neighbor_of_zoo import weight", at="farm/zoo.py")
    assert resolve("farm/zoo.py:weight", root=root) == 7


@pytest.mark.parametrize("reference", ["zoo", "zoo:", ":build", ""])
def test_a_reference_without_its_two_parts_is_refused_with_the_forms(tmp_path: Path, reference: str) -> None:
    error = refused(ReferenceNotFound, reference, tmp_path)
    assert repr(reference) in error.message
    assert all(form in error.hint for form in ("package.module:function", "path/file.py:function", "torchvision:"))


def test_an_unknown_module_is_answered_with_the_near_one(write: Writer) -> None:
    error = refused(ReferenceNotFound, "zoom:build", write(""))
    assert "no module is named 'zoom'" in error.message
    assert "Did you mean zoo?" in error.hint


def test_an_unknown_module_in_a_package_is_answered_with_the_near_one(write: Writer) -> None:
    write("", at="farm/__init__.py")
    error = refused(ReferenceNotFound, "farm.zoom:build", write("", at="farm/zoo.py"))
    assert "no module is named 'farm.zoom'" in error.message
    assert "Did you mean zoo?" in error.hint


def test_an_unknown_attribute_is_answered_with_the_near_one(write: Writer) -> None:
    error = refused(ReferenceNotFound, "zoo:biuld", write("def build(): ..."))
    assert error.message == "zoo has no attribute 'biuld'."
    assert error.hint == "Did you mean build?"


def test_an_unknown_attribute_of_a_class_is_answered_from_that_class(write: Writer) -> None:
    error = refused(ReferenceNotFound, "zoo:Holder.bild", write("class Holder:\n    def build(): ..."))
    assert error.hint == "Did you mean build?"


def test_an_attribute_like_no_other_is_answered_without_a_guess(write: Writer) -> None:
    assert "Did you mean" not in refused(ReferenceNotFound, "zoo:qqqq", write("def build(): ...")).hint


def test_an_unknown_file_is_answered_with_the_near_one(write: Writer) -> None:
    error = refused(ReferenceNotFound, "zou.py:build", write(""))
    assert error.message == "there is no file zou.py."
    assert error.hint == "Did you mean zoo.py?"


def test_a_missing_import_of_the_user_s_module_is_told_from_a_missing_module(write: Writer) -> None:
    error = refused(ReferenceNotFound, "zoo:build", write("import no_such_dependency"))
    assert "zoo imports no_such_dependency" in error.message


@pytest.mark.parametrize("reference", ["zoo:build", "zoo.py:build"])
def test_a_module_that_raises_on_import_is_named_with_the_line(write: Writer, reference: str) -> None:
    error = refused(ReferenceNotFound, reference, write("x = 1\nraise ValueError('no weights')"))
    assert "ValueError: no weights (zoo.py:5)" in error.message


def test_a_file_that_failed_to_import_is_tried_again(write: Writer) -> None:
    root = write("raise ValueError")
    refused(ReferenceNotFound, "zoo.py:build", root)
    write("build = 7")
    assert resolve("zoo.py:build", root=root) == 7


# -- calling it -----------------------------------------------------------------------------------------------------


def test_a_function_that_raises_is_named_with_file_and_line(write: Writer) -> None:
    error = refused(InvalidCase, "zoo:build", write("def build():\n    return {}['weights']"))
    assert error.message.startswith("zoo:build raised KeyError: 'weights'")
    assert "zoo.py:5" in error.message


def test_the_line_named_is_the_user_s_own_and_not_the_standard_library_s(write: Writer) -> None:
    root = write("import pathlib\ndef build():\n    return pathlib.Path('no-such-file').read_text()")
    assert "zoo.py:6" in refused(InvalidCase, "zoo:build", root).message


def test_the_line_is_named_in_a_folder_that_is_called_like_this_package(write: Writer) -> None:
    root = write("def build():\n    raise ValueError", at="try_pytest_qat/zoo.py")
    assert "zoo.py:5" in refused(InvalidCase, "try_pytest_qat/zoo.py:build", root).message


def test_a_refusal_of_the_user_s_own_case_passes_unchanged(write: Writer) -> None:
    root = write("def build(): return QATCase(model=None, example_inputs=())")
    assert refused(InvalidCase, "zoo:build", root).message.startswith("model is None")


def test_a_function_with_arguments_is_refused(write: Writer) -> None:
    error = refused(InvalidCase, "zoo:build", write("def build(width): ..."))
    assert "TypeError" in error.message
    assert "without arguments" in error.hint


@pytest.mark.parametrize(("result", "seen"), [
    ("None", "None"), ("nn.Linear", "the class Linear"), ("'resnet.pt'", "str 'resnet.pt'"), ("(1, 2)", "tuple (1, 2)"),
    ("(torch.zeros(1), nn.Linear(1, 1))", "tuple"), ("(nn.Linear(1, 1),)", "tuple"), ("{}", "dict"),
])
def test_what_is_no_model_is_refused_as_what_it_is(write: Writer, result: str, seen: str) -> None:
    error = refused(InvalidCase, "zoo:build", write(f"def build(): return {result}"))
    assert error.message.startswith(f"zoo:build gave {seen}")
    assert "a QATCase, an nn.Module or a (model, example_inputs) pair" in error.message


def test_a_class_that_was_returned_is_mended_by_calling_it(write: Writer) -> None:
    assert "Linear(...)" in refused(InvalidCase, "zoo:build", write("def build(): return nn.Linear")).hint


def test_a_module_class_that_needs_no_arguments_is_its_own_function(write: Writer) -> None:
    root = write("class Net(nn.Linear):\n    def __init__(self): super().__init__(4, 2)")
    assert load_case("zoo:Net", root=root, shapes="2x4").label == "Net"


@pytest.mark.parametrize("kind", ["QATCase", "nn.Module"])
def test_an_object_is_taken_as_it_is(write: Writer, kind: str) -> None:
    root = write("it = nn.Linear(4, 2)\n" + (
        "it = QATCase(model=it, example_inputs=(torch.zeros(2, 4),))" if kind == "QATCase" else ""))
    made = load_case("zoo:it", root=root, shapes=None if kind == "QATCase" else "2x4")
    assert isinstance(made.model, nn.Linear)


# -- inputs of a bare model -----------------------------------------------------------------------------------------


def test_a_bare_model_without_shapes_is_refused_with_both_mends() -> None:
    with pytest.raises(InvalidCase, match="bare Linear") as caught:
        as_case(nn.Linear(4, 2), source="zoo:build")
    assert "--qat-inputs=" in caught.value.hint
    assert "(model, example_inputs)" in caught.value.hint


def test_a_bare_model_gets_inputs_of_the_given_shapes() -> None:
    made = as_case(nn.Bilinear(4, 3, 2), source="zoo:build", shapes="2x4,2x3")
    assert [tuple(value.shape) for value in made.example_inputs] == [(2, 4), (2, 3)]


@pytest.mark.parametrize(("weights", "shape", "count"), [
    (1_000, "1x3x64x64", 16), (1_000, "8x3x64x64", 8), (1_000, "64x3x64x64", 2),
    (100_000_000, "1x3x224x224", 10), (200_000_000, "1x3x768x768", 2), (100_000_000, "1x16", 16)])
def test_fewer_inputs_are_drawn_for_a_model_that_takes_long(weights: int, shape: str, count: int) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(1).expand(weights))
    assert len(list(as_case(model, source="models:net", shapes=shape).calibration_data or ())) == count


def test_drawn_inputs_are_calibrated_on_more_than_one_batch() -> None:
    made = as_case(nn.Linear(4, 2), source="zoo:build", shapes="2x4")
    batches = list(made.calibration_data or ())
    assert len(batches) > 1
    assert not torch.equal(batches[0][0], batches[1][0])
    assert {tuple(batch[0].shape) for batch in batches} == {(2, 4)}


def test_shapes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidOption, match="--qat-inputs"):
        as_case(nn.Linear(4, 2), source="zoo:build", shapes="2xfour")


@pytest.mark.parametrize("own", [lambda: torch.ones(2, 4), lambda: (torch.ones(2, 4),)])
@pytest.mark.parametrize("called", [True, False])
def test_a_model_may_bring_its_own_inputs_as_attribute_or_method(own: Any, called: bool) -> None:
    model = nn.Linear(4, 2)
    model.example_inputs = own if called else own()
    made = as_case(model, source="zoo:build")
    assert torch.equal(made.example_inputs[0], torch.ones(2, 4))
    assert len(made.example_inputs) == 1
    assert made.calibration_data is None


def test_given_shapes_win_over_a_model_s_own_inputs() -> None:
    model = nn.Linear(4, 2)
    model.example_inputs = (torch.ones(2, 4),)
    assert as_case(model, source="zoo:build", shapes="5x4").example_inputs[0].shape == (5, 4)


@pytest.mark.parametrize("inputs", [torch.ones(2, 4), (torch.ones(2, 4),), [torch.ones(2, 4)]])
def test_a_pair_brings_its_inputs(inputs: Any) -> None:
    made = as_case((nn.Linear(4, 2), inputs), source="zoo:build")
    assert torch.equal(made.example_inputs[0], torch.ones(2, 4))


def test_a_case_stays_the_case_it_is() -> None:
    made = QATCase(model=nn.Linear(4, 2), example_inputs=(torch.ones(2, 4),))
    assert as_case(made, source="zoo:build", shapes="9x9") is made


# -- torchvision ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _torchvision() -> None:
    pytest.importorskip("torchvision")


@pytest.mark.usefixtures("_torchvision")
def test_a_torchvision_model_is_built_with_random_weights_and_says_so(tmp_path: Path) -> None:
    made = load_case("torchvision:squeezenet1_1", root=tmp_path, shapes="2x3x32x32")
    assert made.label == "squeezenet1_1 (random weights)"
    assert made.example_inputs[0].shape == (2, 3, 32, 32)
    assert not made.model.training


@pytest.mark.usefixtures("_torchvision")
def test_a_torchvision_model_needs_no_shapes(tmp_path: Path) -> None:
    assert load_case("torchvision:squeezenet1_1", root=tmp_path).example_inputs[0].shape == (1, 3, 224, 224)


@pytest.mark.usefixtures("_torchvision")
def test_no_backbone_s_weights_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    made = load_case("torchvision:lraspp_mobilenet_v3_large", root=tmp_path, shapes="1x3x64x64")
    assert made.name == "lraspp_mobilenet_v3_large (random weights)"


@pytest.mark.usefixtures("_torchvision")
def test_an_unknown_torchvision_model_is_answered_with_the_near_ones(tmp_path: Path) -> None:
    error = refused(ReferenceNotFound, "torchvision:resnet81", tmp_path)
    assert "'resnet81'" in error.message
    assert "resnet18" in error.hint


# -- seeds ----------------------------------------------------------------------------------------------------------


def test_one_seed_gives_the_same_weights_and_inputs_twice_and_another_seed_others(write: Writer) -> None:
    root = write("def build(): return nn.Linear(4, 2)")
    first, again, other = (load_case("zoo:build", root=root, shapes="2x4", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.model.weight, again.model.weight)
    assert torch.equal(first.example_inputs[0], again.example_inputs[0])
    assert not torch.equal(first.model.weight, other.model.weight)


def test_inputs_are_drawn_after_the_weights_and_not_from_the_same_numbers(write: Writer) -> None:
    root = write("def build():\n    model = nn.Linear(4, 2)\n    nn.init.normal_(model.weight)\n    return model")
    case = load_case("zoo:build", root=root, shapes="2x4", seed=1)
    torch.manual_seed(1)
    nn.Linear(4, 2), torch.randn(2, 4)
    assert torch.equal(case.example_inputs[0], torch.randn(2, 4))


@pytest.mark.parametrize("ending", ["return nn.Linear(4, 2)", "raise ValueError"])
def test_the_generators_of_the_process_are_left_as_they_were(write: Writer, ending: str) -> None:
    root = write(f"import random, numpy\ndef build():\n    random.random(); numpy.random.rand()\n    {ending}")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    if ending.startswith("raise"):
        refused(InvalidCase, "zoo:build", root)
    else:
        load_case("zoo:build", root=root, shapes="2x4", seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("reference", ["zoo:build", "zoo.py:build"])
def test_a_script_that_ends_python_when_it_is_imported_is_named(write: Writer, reference: str) -> None:
    error = refused(ReferenceNotFound, reference, write("import argparse\nparser = argparse.ArgumentParser()\n"
                                                        "parser.add_argument('--lr', required=True)\n"
                                                        "parser.parse_args([])\n"))
    assert "raised SystemExit: 2 (zoo.py:7)" in error.message


def test_a_function_that_ends_python_is_named(write: Writer) -> None:
    assert "zoo:build raised SystemExit" in refused(
        InvalidCase, "zoo:build", write("def build():\n    raise SystemExit")).message
