"""`--qat-model` on a healthy model: items, outcomes, selection, record."""

from __future__ import annotations

import json
import re

from conftest import Project

CHECKS = ["prepare", "convert", "coverage", "parity", "accuracy", "size", "speedup", "roundtrip"]


def test_every_check_is_an_item_in_the_documented_order(project: Project) -> None:
    result = project.run("--qat-model=models:good", "--collect-only", "-q")
    ids = [line for line in result.outlines if "::" in line]
    assert ids == [f"qat-model:models:good[fx-x86]::{check}" for check in CHECKS]


def test_a_healthy_model_passes_all_checks(project: Project) -> None:
    result = project.run("--qat-model=models:good")
    result.assert_outcomes(passed=8)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*Net [[]fx-x86[]]*", "accuracy *passed*", "latency *", "size *", "energy/sample*",
                                 "throughput/W*"])


def test_a_healthy_model_passes_in_eager_mode_too(project: Project) -> None:
    project.run("--qat-model=models:good", "--qat-recipe=eager-x86").assert_outcomes(passed=8)


def test_the_models_alone_run_when_no_path_is_given(project: Project) -> None:
    project.pytester.makepyfile(test_other="def test_other(): assert False")
    project.run("--qat-model=models:good", "-k", "prepare").assert_outcomes(passed=1, deselected=7)


def test_files_and_models_run_together_when_both_are_given(project: Project) -> None:
    path = project.pytester.makepyfile(test_other="def test_other(): pass")
    project.run("--qat-model=models:good", "-k", "prepare or other", str(path)).assert_outcomes(passed=2, deselected=7)


def test_deselect_removes_a_single_check(project: Project) -> None:
    result = project.run("--qat-model=models:good", "--deselect=qat-model:models:good[fx-x86]::speedup")
    result.assert_outcomes(passed=7, deselected=1)


def test_last_failed_runs_only_the_check_that_failed(project: Project) -> None:
    arguments = ("--qat-model=models:good", "--qat-min-size-reduction=100")
    project.run(*arguments).assert_outcomes(passed=7, failed=1)
    result = project.run(*arguments, "--lf", "-v")
    result.assert_outcomes(failed=1, deselected=7)
    result.stdout.fnmatch_lines(["*::size FAILED*"])


def test_junit_names_the_checks(project: Project) -> None:
    project.run("--qat-model=models:good", "-k", "prepare", "--junitxml=junit.xml")
    assert 'name="prepare"' in (project.path / "junit.xml").read_text()


def test_json_holds_what_the_design_promises(project: Project) -> None:
    project.run("--qat-model=models:good", "--qat-json=qat.json")
    document = json.loads((project.path / "qat.json").read_text())
    assert document["schema_version"] == 2
    assert document["environment"]["packages"]["torch"]
    (run,) = document["runs"]
    assert (run["model"], run["recipe"], run["workflow"], run["runtime"]) == ("models:good", "fx-x86", "fx", "torch")
    assert list(run["checks"]) == CHECKS
    assert {entry["outcome"] for entry in run["checks"].values()} == {"passed"}
    metrics = run["metrics"]
    assert metrics["accuracy"]["kind"] == "metric"
    assert metrics["accuracy"]["samples"] == 64
    assert metrics["accuracy"]["drop"] == metrics["accuracy"]["fp32"] - metrics["accuracy"]["int8"]
    assert metrics["speedup"]["ci"][0] <= metrics["speedup"]["estimate"] <= metrics["speedup"]["ci"][1]
    assert set(metrics["latency_s"]) == {"fp32", "int8", "ptq", "fp32_eager"}
    assert metrics["latency_s"]["ptq"] is metrics["size_bytes"]["ptq"] is metrics["operations"] is None
    assert run["diagnosis"] is None
    assert metrics["size_reduction"] == metrics["size_bytes"]["fp32"] / metrics["size_bytes"]["int8"]
    assert metrics["coverage"]["mac_share"] == 1.0


def test_results_do_not_depend_on_which_checks_run(project: Project) -> None:
    project.run("--qat-model=models:good", "--qat-json=all.json")
    project.run("--qat-model=models:good", "--qat-json=one.json", "-k", "accuracy")
    accuracy = [json.loads((project.path / name).read_text())["runs"][0]["metrics"]["accuracy"]
                for name in ("all.json", "one.json")]
    assert accuracy[0] == accuracy[1]


def test_two_models_and_two_recipes_give_four_tables(project: Project) -> None:
    project.add("def other():\n    return case(name='Other')\n")
    result = project.run("--qat-model=models:good", "--qat-model=models:other", "--qat-recipe=fx-x86",
                         "--qat-recipe=eager-x86", "-k", "coverage")
    result.assert_outcomes(passed=4, deselected=28)
    titles = [line for line in result.outlines if re.match(r"(Net|Other) \[", line)]
    assert [title.split("  ")[0] for title in titles] == [
        "Net [fx-x86]", "Net [eager-x86]", "Other [fx-x86]", "Other [eager-x86]"]


def test_the_users_model_and_torchs_state_are_left_as_they_were(project: Project) -> None:
    project.add('''
        import atexit, copy
        KEPT = good()
        BEFORE = copy.deepcopy(KEPT.model.state_dict())
        KEPT.model.train()

        def kept():
            return KEPT
    ''')
    path = project.pytester.makepyfile(test_after='''
        import torch, models
        STATE = (torch.backends.quantized.engine, torch.get_num_threads(), torch.initial_seed(),
                 torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_rng_state().tolist())

        def test_untouched():
            now = (torch.backends.quantized.engine, torch.get_num_threads(), torch.initial_seed(),
                   torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_rng_state().tolist())
            assert now == STATE
            assert models.KEPT.model.training
            after = models.KEPT.model.state_dict()
            assert all(torch.equal(after[name], value) for name, value in models.BEFORE.items())
            assert not any(hasattr(m, "qconfig") or m._forward_hooks for m in models.KEPT.model.modules())
    ''')
    project.pytester.makeconftest('''
        def pytest_collection_modifyitems(items):
            items.sort(key=lambda item: item.name == "test_untouched")
    ''')
    result = project.run("-p", "no:cacheprovider", "--qat-model=models:kept", "--qat-recipe=fx-qnnpack",
                         "--qat-recipe=eager-qnnpack", "--qat-threads=1", "-v", str(path))
    result.assert_outcomes(passed=17)
    result.stdout.fnmatch_lines(["*roundtrip PASSED*", "*test_untouched PASSED*"])
    assert "note the model came in train mode" in " ".join(result.outlines)
