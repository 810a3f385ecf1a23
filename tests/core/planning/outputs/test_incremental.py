"""For which tensors sums over experts can be kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eigenmerge.core.planning.outputs.incremental import can_keep_sums, incremental_warnings

SWUDI = "merge_method: swudi\nbase_model: base\nmodels: [a, b]\nkeep_sums: true\n"
NAMES = {"w.weight": (4, 4), "n.weight": (4,)}


def test_sums_need_a_base_and_rows_in_their_place(model: Any, plan_of: Any, tensors_of: Any) -> None:
    tensor = tensors_of(plan_of(SWUDI, *(model(name, NAMES) for name in ("base", "a", "b"))))["w.weight"]
    assert can_keep_sums(tensor)
    assert not can_keep_sums(replace(tensor, base=None))
    assert not can_keep_sums(replace(tensor, base_rows=((0, 0, 3),)))
    first = replace(tensor.experts[0], rows=((0, 0, 3),))
    assert not can_keep_sums(replace(tensor, experts=(first, *tensor.experts[1:])))


def test_a_plan_that_needs_only_sums_has_no_warning(model: Any, plan_of: Any) -> None:
    models = [model(name, NAMES) for name in ("base", "a", "b")]
    assert not any("keep_sums" in warning for warning in plan_of(SWUDI, *models).warnings)


def test_direct_methods_and_second_passes_are_warned_about(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, NAMES) for name in ("base", "a", "b")]
    ties = plan_of(SWUDI + "rules: [{match: n.weight, method: ties}]", *models)
    assert any("1 tensors are merged by ties without sums over experts" in warning for warning in ties.warnings)
    for keys in ("calibration: {svc: }", "parameters: {consensus_power: 1}"):
        plan = plan_of(SWUDI + keys, *models)
        assert any("1 tensors need a second pass over all experts" in warning for warning in plan.warnings)
    assert incremental_warnings(tensors_of(plan_of(SWUDI.replace("keep_sums: true", ""), *models)).values()) == [
        "keep_sums: 1 tensors are merged by swudi without sums over experts; an expert that is added later costs a pass"
        " over all of them there"
    ]


def test_adapters_need_no_second_pass_over_weights(model: Any, adapter: Any, plan_of: Any) -> None:
    at = "base_model.model.layers.0.w"
    factors = {f"{at}.lora_A.weight": (2, 4), f"{at}.lora_B.weight": (4, 2)}
    models = [model("base", {"layers.0.w.weight": (4, 4)}), adapter("a", factors), adapter("b", factors)]
    plan = plan_of(SWUDI + "parameters: {consensus_power: 1}", *models)
    assert not any("second pass" in warning for warning in plan.warnings)
