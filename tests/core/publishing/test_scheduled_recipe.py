"""A recipe without experts, completed from a registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from eigenmerge.core.errors import RecipeError
from eigenmerge.core.publishing.expert_registry import RegisteredExpert, RegistryScan
from eigenmerge.core.publishing.scheduled_recipe import complete_recipe, template_digest
from eigenmerge.core.steps.read_recipe import read_recipe_mapping

TEXT = "merge_method: task_arithmetic\nbase_model: /models/base\nparameters:\n  scale: 0.5\n"


def make_scan(*names: str) -> RegistryScan:
    return RegistryScan("/r", tuple(RegisteredExpert(name, f"/r/{name}", name) for name in names), {})


def test_the_registry_supplies_the_experts(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TEXT)
    template = read_recipe_mapping(str(tmp_path / "recipe.yaml"))
    assert template == read_recipe_mapping(TEXT)
    recipe = complete_recipe(template, make_scan("a", "b"))
    assert recipe.expert_references == ["/r/a", "/r/b"]
    assert recipe.keep_sums


def test_experts_of_the_template_come_first_and_its_word_counts() -> None:
    template = read_recipe_mapping(TEXT + "keep_sums: false\nmodels:\n  - model: /models/own\n")
    recipe = complete_recipe(template, make_scan("a"))
    assert recipe.expert_references == ["/models/own", "/r/a"]
    assert not recipe.keep_sums


def test_the_digest_is_of_the_template_alone() -> None:
    template = read_recipe_mapping(TEXT)

    def digest(text: str, *names: str) -> str:
        template = read_recipe_mapping(text)
        return template_digest(template, complete_recipe(template, make_scan(*names)))

    first = template_digest(template, complete_recipe(template, make_scan("a")))
    assert digest(TEXT, "a", "b") == first
    assert digest("# a comment\n" + TEXT + "store: /elsewhere\n", "a") == first
    assert digest(TEXT + "storage_options: {profile: merging}\n", "a") == first
    assert digest(TEXT.replace("0.5", "0.6"), "a") != first
    assert digest(TEXT + "models:\n  - model: /models/own\n", "a") != first


def test_what_cannot_be_scheduled(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: recipe cannot be read: No such file"):
        read_recipe_mapping(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_recipe_mapping(str(tmp_path / "binary.yaml"))
    sliced = "merge_method: linear\nslices:\n  - sources:\n      - {model: /a, layer_range: [0, 1]}\n"
    with pytest.raises(RecipeError, match="slices"):
        complete_recipe(read_recipe_mapping(sliced), make_scan("a"))
    with pytest.raises(RecipeError, match="scheduled recipe"):
        complete_recipe(read_recipe_mapping(TEXT + "parameterz: {}\n"), make_scan("a"))
