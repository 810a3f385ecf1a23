"""Matrices, keys and costs of tensors that a spectral method merges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eigenmerge.core.errors import EigenmergeError, RecipeError

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
    assert tensor.matrix_shape == (12, 5)
    assert [(view.label, view.start, view.stop) for view in tensor.views][1] == ("expert 1", 4, 8)
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
