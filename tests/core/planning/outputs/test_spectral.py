"""Matrices, keys and costs of tensors that a spectral method merges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError
from eigenmerge.core.planning.cost.simulate import split_work
from eigenmerge.core.planning.outputs.spectral import add_alignment, alignment_keys
from eigenmerge.core.planning.plan import spectrum_keys

SWUDI = "merge_method: swudi\nbase_model: base\n"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_mixture_of_experts(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"layers.0.mlp.experts.down_proj": (3, 4, 5)}
    plan = plan_of(SWUDI + "models: [a, b]", *(model(name, names) for name in ("base", "a", "b")))
    tensor = tensors_of(plan)["layers.0.mlp.experts.down_proj"]
    assert tensor.matrix_shape is None
    assert [(view.label, view.index, view.start, view.stop) for view in tensor.views][1] == ("expert 1", 1, 0, 4)
    assert len({view.spectrum_key for view in tensor.views}) == 3
    assert tensor.spectrum_key is None


def test_fused_qkv_as_stored_or_split(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"blocks.0.attn.qkv.weight": (24, 8), "blocks.0.mlp.fc1.weight": (8, 8)}
    models = [model(name, names) for name in ("base", "a")]
    stored = tensors_of(plan_of(SWUDI + "models: [a]", *models))["blocks.0.attn.qkv.weight"]
    split = tensors_of(plan_of(SWUDI + "models: [a]\nqkv: split", *models))["blocks.0.attn.qkv.weight"]
    assert stored.views == ()
    assert [view.label for view in split.views] == ["q", "k", "v"]
    message = refused(
        RecipeError,
        lambda: plan_of(
            SWUDI + "models: [a]\nqkv: split", *(model(name, {"w.weight": (4, 4)}) for name in ("base", "a"))
        ),
    )
    assert "no fused QKV weight" in message
    text = SWUDI + "models: [a]\nrules: [{match: '*', qkv: split}]"
    plain = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    assert "no fused QKV weight" in refused(RecipeError, lambda: plan_of(text, *plain))
    assert len(tensors_of(plan_of(text, *models))["blocks.0.attn.qkv.weight"].views) == 3


def test_calibration_is_part_of_the_plan(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4), "n.weight": (4,)}) for name in ("base", "a", "b")]
    found = tensors_of(plan_of(SWUDI + "models: [a, b]\ncalibration: {svc: {alpha: 0.5}}", *models))
    assert found["w.weight"].calibration == {"svc": {"alpha": 0.5}}
    assert found["w.weight"].calibration_key.startswith("spectra/")
    assert found["n.weight"].calibration == {}
    text = "merge_method: iso_c\nbase_model: base\nmodels: [a, b]\ncalibration: {svc: }"
    plan = plan_of(text, *models)
    assert tensors_of(plan)["w.weight"].calibration == {"svc": {}}
    assert any("svc after iso_c is ill-posed" in warning for warning in plan.warnings)


def test_layers_of_one_method_with_alignment_share_a_key(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {f"layers.{index}.w.weight": (4, 4) for index in range(3)} | {"norm.weight": (4,)}
    models = [model(name, names) for name in ("base", "a", "b")]
    found = tensors_of(plan_of(SWUDI + "models: [a, b]\nparameters: {alignment_rho: 1}", *models))
    keys = alignment_keys(found.values())
    assert set(keys) == set(names) - {"norm.weight"}
    assert len(set(keys.values())) == 1
    assert keys == alignment_keys(reversed(found.values()))
    assert alignment_keys(tensors_of(plan_of(SWUDI + "models: [a, b]", *models)).values()) == {}


def test_alignment_changes_calibrations_and_not_decompositions(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, {"layers.0.mlp.experts.down_proj": (2, 4, 4)}) for name in ("base", "a")]
    (tensor,) = tensors_of(plan_of(SWUDI + "models: [a]\ncalibration: {svc: }", *models)).values()
    aligned = add_alignment(tensor, ("alignments/x.json", None))
    assert aligned.alignment_key == "alignments/x.json"
    assert spectrum_keys(aligned) == spectrum_keys(tensor)
    before, after = ([view.calibration_key for view in one.views] for one in (tensor, aligned))
    assert len({*before, *after}) == 4


def test_kept_sums_and_calibration_add_to_the_costs(model: Any, plan_of: Any, tensors_of: Any) -> None:
    models = [model(name, {"w.weight": (32, 16)}) for name in ("base", "a", "b")]
    plain, sums, svc = (
        tensors_of(plan_of(SWUDI + f"models: [a, b]\n{keys}", *models))["w.weight"]
        for keys in ("", "keep_sums: true", "calibration: {svc: }")
    )
    assert (plain.sums_key, plain.sums_bytes, plain.members) == (None, 0, ())
    assert sums.sums_bytes >= 4 * (2 * 16 * 16 + 16)  # at least C and D, (K, K) each
    assert len(sums.members) == len(sums.experts) == 2
    assert svc.bytes_read > plain.bytes_read  # the experts are read once more
    assert svc.flops > plain.flops
    assert svc.spectrum_bytes > plain.spectrum_bytes


def test_low_rank_experts_cost_less_than_dense_ones(model: Any, adapter: Any, plan_of: Any, tensors_of: Any) -> None:
    at = "base_model.model.w"
    factors = {f"{at}.lora_A.weight": (2, 256), f"{at}.lora_B.weight": (256, 2)}
    base = model("base", {"w.weight": (256, 256)})
    low = tensors_of(plan_of(SWUDI + "models: [a]", base, adapter("a", factors)))["w.weight"]
    dense = tensors_of(plan_of(SWUDI + "models: [a]", base, model("a", {"w.weight": (256, 256)})))["w.weight"]
    assert low.flops < dense.flops / 100
    assert low.spectrum_bytes < dense.spectrum_bytes / 50


class TestSides:
    """Plans of `side`: over outputs a weight is planned as its transpose over inputs, and both as the two of them."""

    WIDE, TALL = (8, 24), (24, 8)

    def plan(self, model: Any, plan_of: Any, tensors_of: Any, shape: tuple[int, int], side: str, **keys: Any) -> Any:
        models = [model(name, {"layers.0.w.weight": shape}) for name in ("base", "a", "b")]
        text = "merge_method: swudi_a\nbase_model: base\nmodels: [a, b]\n" + f"parameters: {{side: {side}}}\n"
        text += "".join(f"{name}: {value}\n" for name, value in keys.items())
        (tensor,) = tensors_of(plan_of(text, *models)).values()
        return tensor

    def test_outputs_cost_as_the_inputs_of_the_transpose(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        def plan(shape: tuple[int, int], side: str) -> Any:
            return self.plan(model, plan_of, tensors_of, shape, side)

        for shape, other in ((self.WIDE, self.TALL), (self.TALL, self.WIDE)):
            found, expected = plan(shape, "outputs"), plan(other, "inputs")
            costs = ("flops", "peak_bytes", "spectrum_bytes", "bytes_read")
            assert [getattr(found, name) for name in costs] == [getattr(expected, name) for name in costs]
            assert split_work(found) == split_work(expected)
        assert split_work(plan(self.WIDE, "inputs")).eigh_rows == 0  # 8 + 8 rows < 24 columns: the row-space route
        assert split_work(plan(self.WIDE, "outputs")).eigh_rows == 8

    def test_smaller_has_the_keys_and_costs_of_the_side(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        for shape, side in ((self.WIDE, "outputs"), (self.TALL, "inputs"), ((9, 9), "inputs")):
            found, named = (self.plan(model, plan_of, tensors_of, shape, one) for one in ("smaller", side))
            assert replace(found, parameters=named.parameters) == named

    def test_both_has_the_keys_and_the_costs_of_each(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        both, inputs, outputs = (
            self.plan(model, plan_of, tensors_of, self.WIDE, side, keep_sums="true")
            for side in ("both", "inputs", "outputs")
        )
        assert spectrum_keys(both) == spectrum_keys(inputs) + spectrum_keys(outputs)
        assert len(set(spectrum_keys(both))) == 2
        assert (both.sums_key, both.outputs.sums_key) == (inputs.sums_key, outputs.sums_key)
        assert both.sums_key != both.outputs.sums_key
        for name in ("flops", "spectrum_bytes", "sums_bytes"):
            assert getattr(both, name) == getattr(inputs, name) + getattr(outputs, name)
        # in addition to the larger of the two: the delta of one side, while the other is decomposed
        assert both.peak_bytes == max(inputs.peak_bytes, outputs.peak_bytes) + 4 * 8 * 24
        model_bytes = inputs.bytes_read // 3
        assert both.bytes_read == 5 * model_bytes  # the base once, two experts twice
        work, parts = split_work(both), [split_work(inputs), split_work(outputs)]
        assert work.eigh == sum(part.eigh for part in parts) and work.eigh_rows == sum(p.eigh_rows for p in parts)

    def test_calibration_keys_of_all_sides_differ(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        found = [
            self.plan(model, plan_of, tensors_of, self.WIDE, side, calibration="{svc: }").calibration_key
            for side in ("inputs", "outputs", "both", "both, outputs_share: 0.3")
        ]
        assert len(set(found)) == 4
