"""Keys are equal for equal computations, differ for different ones, and do not depend on locations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.cache.kinds import kind_of
from eigenmerge.core.formats.object_names import check_key
from eigenmerge.core.planning.planner import plan_merge, run_settings
from eigenmerge.core.steps.read_recipe import read_recipe

SWUDI = "merge_method: swudi\nbase_model: base\nmodels: [a, b]\n"
NAMES = {"layers.0.w.weight": (8, 8), "layers.0.n.weight": (8,)}


@pytest.fixture
def three(model: Any) -> list[Any]:
    return [model(name, NAMES) for name in ("base", "a", "b")]


def spectra(plan: Any) -> list[str]:
    return [t.spectrum_key for shard in plan.shards for t in shard.tensors if t.spectrum_key]


def parts(plan: Any) -> list[str]:
    return [shard.part_key for shard in plan.shards]


def test_planning_twice_gives_equal_plans(plan_of: Any, three: list[Any]) -> None:
    one, two = plan_of(SWUDI, *three), plan_of(SWUDI, *three)
    assert one == two


def test_keys_are_valid_object_names(plan_of: Any, three: list[Any]) -> None:
    plan = plan_of(SWUDI, *three)
    for key in (*spectra(plan), *parts(plan)):
        assert check_key(key) == key
        kind = kind_of(key)
        assert kind is not None and kind.name in ("spectrum", "part")


@pytest.mark.parametrize(
    "change",
    [
        "parameters: {exp_time: 7}",
        "parameters: {rank_ratio: 0.5, scale: 2}",
        "merge_method: swudi_a",
        "calibration: {svc: {alpha: 1}}",
        "dtype: bfloat16",
    ],
)
def test_filters_are_not_part_of_a_spectrums_key(change: str, plan_of: Any, three: list[Any]) -> None:
    plain = plan_of(SWUDI, *three)
    text = SWUDI.replace("merge_method: swudi\n", "") if change.startswith("merge_method") else SWUDI
    changed = plan_of(text + change, *three)
    assert spectra(changed) == spectra(plain)
    assert parts(changed) != parts(plain)
    assert changed.run_key != plain.run_key


@pytest.mark.parametrize(
    "change",
    [
        "arithmetic: float64",
        "parameters: {weight: 0.5}",
        "parameters: {consensus_power: 1}",
        "parameters: {exp_time: 100000}",
        "keep_sums: true",
    ],
)
def test_what_changes_the_decomposition_changes_its_key(change: str, plan_of: Any, three: list[Any]) -> None:
    assert not set(spectra(plan_of(SWUDI + change, *three))) & set(spectra(plan_of(SWUDI, *three)))


def test_other_weights_have_other_keys(plan_of: Any, model: Any, three: list[Any]) -> None:
    plain = plan_of(SWUDI, *three)
    for index in range(3):
        others = list(three)
        others[index] = replace(three[index], fingerprint="other")
        assert not set(spectra(plan_of(SWUDI, *others))) & set(spectra(plain))
        assert not set(parts(plan_of(SWUDI, *others))) & set(parts(plain))


def test_a_copy_of_the_weights_has_the_same_keys(plan_of: Any, model: Any, three: list[Any]) -> None:
    moved = [model(item.name, NAMES, uri=f"s3://bucket/{item.name}", fingerprint=item.fingerprint) for item in three]
    assert parts(plan_of(SWUDI, *moved)) == parts(plan_of(SWUDI, *three))
    assert spectra(plan_of(SWUDI, *moved)) == spectra(plan_of(SWUDI, *three))


def test_the_order_of_experts_changes_keys_only_if_it_matters_to_the_method(plan_of: Any, three: list[Any]) -> None:
    text = "merge_method: {}\nbase_model: base\nmodels: [{{model: {}, parameters: {{weight: {}}}}}, {{model: {}}}]"
    one = plan_of(text.format("swudi", "a", 2, "b"), *three)
    two = plan_of("merge_method: swudi\nbase_model: base\nmodels: [b, {model: a, parameters: {weight: 2}}]", *three)
    assert spectra(one) == spectra(two)
    assert parts(one) == parts(two)
    # ... and the experts are read in the same order, so that the sums have the same bytes
    order = [[plan.experts[e.expert].name for e in plan.shards[0].tensors[0].experts] for plan in (one, two)]
    assert order[0] == order[1]
    ties = [plan_of(f"merge_method: ties\nbase_model: base\nmodels: [{models}]", *three) for models in ("a, b", "b, a")]
    assert not set(parts(ties[0])) & set(parts(ties[1]))


def test_experts_with_one_fingerprint_and_two_weights(plan_of: Any, model: Any) -> None:
    models = [model(name, NAMES, fingerprint="x" if name != "base" else None) for name in ("base", "a", "b")]
    text = "merge_method: swudi\nbase_model: base\nmodels:\n"
    text += "  - {model: a, parameters: {weight: %d}}\n  - {model: b, parameters: {weight: %d}}\n"
    assert parts(plan_of(text % (1, 2), *models)) == parts(plan_of(text % (2, 1), *models))


def test_settings_are_part_of_the_keys_only_where_they_change_numbers(three: list[Any]) -> None:
    recipe = read_recipe(SWUDI + "\n\n")

    def key(**changes: Any) -> tuple[str, ...]:
        plan = plan_merge(recipe, three[0], three[1:], replace(run_settings(recipe), **changes))
        return tuple(shard.part_key for shard in plan.shards)

    plain = key()
    assert key(device="cuda:0") == key(spectra="none") == key(spectra_dtype="float32") == key(seed=1) == plain
    assert key(allow_tf32=True) == plain, "the CPU has no TF32"
    tf32 = key(allow_tf32=True, device="cuda:1")
    assert key(allow_tf32=True, device="cuda") == tf32
    double, rounded = key(arithmetic="float64"), key(arithmetic="float64", spectra_dtype="float32")
    assert len({plain, tf32, key(allow_nonfinite=True), double, rounded}) == 5
    assert key(arithmetic="float64", allow_tf32=True, device="cuda") == double
    assert key(arithmetic="float64", spectra_dtype="float64", spectra="values") == double


def test_the_seed_is_part_of_the_keys_where_masks_are_drawn(plan_of: Any, three: list[Any]) -> None:
    text = "merge_method: dare_ties\nbase_model: base\nmodels: [a]\nseed: {}"
    assert not set(parts(plan_of(text.format(1), *three))) & set(parts(plan_of(text.format(2), *three)))


def test_memory_does_not_change_the_parts(plan_of: Any, three: list[Any]) -> None:
    assert parts(plan_of(SWUDI, *three, max_memory=10**9)) == parts(plan_of(SWUDI, *three))


def test_aligned_layers_depend_on_each_other(plan_of: Any, model: Any) -> None:
    names = {f"layers.{i}.w.weight": (8, 8) for i in range(3)}
    text = SWUDI + "parameters: {alignment_rho: 1}\n"
    three = [model(name, names) for name in ("base", "a", "b")]
    plan = plan_of(text, *three)
    keys = {tensor.alignment_key for shard in plan.shards for tensor in shard.tensors}
    assert len(keys) == 1
    assert spectra(plan) == spectra(plan_of(SWUDI, *three))
    fewer = plan_of(text + "rules: [{match: layers.2.w.weight, action: keep_base}]", *three)
    assert not set(parts(fewer)) & set(parts(plan))
    assert all(t.alignment_key is None for shard in plan_of(SWUDI, *three).shards for t in shard.tensors)


def test_kept_sums_of_other_sets_are_in_the_same_folder(plan_of: Any, model: Any) -> None:
    models = [model(name, NAMES) for name in ("base", "a", "b", "c")]

    def tensor(names: str) -> Any:
        text = f"merge_method: swudi\nbase_model: base\nmodels: [{names}]\nkeep_sums: true"
        plan = plan_of(text, *models)
        return next(t for shard in plan.shards for t in shard.tensors if t.spectrum_key)

    two, three, again = tensor("a, b"), tensor("a, b, c"), tensor("b, a")
    assert two.sums_key == again.sums_key != three.sums_key
    assert two.sums_key.rpartition("/")[0] == three.sums_key.rpartition("/")[0]
    assert set(two.members) < set(three.members)
    assert len(three.members) == len(three.experts)


def test_direct_methods_depend_on_the_name_that_seeds_them(plan_of: Any, model: Any) -> None:
    text = "merge_method: dare_ties\nbase_model: base\nmodels: [a]"
    one = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    two = [model(name, {"v.weight": (4, 4)}) for name in ("base", "a")]
    assert parts(plan_of(text, *one)) != parts(plan_of(text, *two))
