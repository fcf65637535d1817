"""The named recipes."""

from __future__ import annotations

import importlib.util

import pytest

from pytest_qat.errors import UnknownRecipe
from pytest_qat.recipe import DEFAULT_RECIPE, RECIPES, get_recipe


@pytest.mark.parametrize(("name", "workflow", "engine"), [
    ("fx-x86", "fx", "x86"), ("fx-fbgemm", "fx", "fbgemm"), ("fx-onednn", "fx", "onednn"),
    ("fx-qnnpack", "fx", "qnnpack"), ("eager-x86", "eager", "x86"), ("eager-fbgemm", "eager", "fbgemm"),
    ("eager-onednn", "eager", "onednn"), ("eager-qnnpack", "eager", "qnnpack"),
])
def test_a_recipe_names_workflow_engine_and_runtime(name: str, workflow: str, engine: str) -> None:
    recipe = get_recipe(name)
    assert (recipe.name, recipe.workflow, recipe.engine, recipe.runtime) == (name, workflow, engine, "torch")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_stands_on_modules_that_exist(name: str) -> None:
    recipe = get_recipe(name)
    assert importlib.util.find_spec(f"pytest_qat.workflows.{recipe.workflow}") is not None
    assert importlib.util.find_spec(f"pytest_qat.runtimes.{recipe.runtime}") is not None


def test_the_key_of_every_recipe_is_its_name() -> None:
    assert [recipe.name for recipe in RECIPES.values()] == list(RECIPES)


def test_the_default_needs_no_compiler_and_no_extra() -> None:
    assert DEFAULT_RECIPE == "fx-x86"
    assert DEFAULT_RECIPE in RECIPES


def test_the_table_of_recipes_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        RECIPES["mine"] = get_recipe(DEFAULT_RECIPE)  # type: ignore[index]


def test_a_misspelled_recipe_is_answered_with_the_near_one() -> None:
    with pytest.raises(UnknownRecipe) as caught:
        get_recipe("fx-x68")
    assert "'fx-x68'" in caught.value.message
    assert caught.value.hint == "Did you mean fx-x86?"


def test_a_recipe_like_no_other_is_answered_with_the_whole_list() -> None:
    with pytest.raises(UnknownRecipe) as caught:
        get_recipe("???")
    assert all(name in caught.value.message for name in RECIPES)
    assert "Did you mean" not in caught.value.hint
