"""Factors of the experts of a mixture: which parameter they belong to, and where the base stores it."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, ShapeError
from eigenmerge.core.listing import Selection, StackedLora
from eigenmerge.core.planning.inputs.adapters.read_adapter import read_adapter
from eigenmerge.core.views import stored_tensors

AT = "model.layers.0.mlp.experts"
TARGETS = {"r": 2, "lora_alpha": 4, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
STACKED = {f"{AT}.gate_up_proj": (3, 24, 16), f"{AT}.down_proj": (3, 16, 12)}  # (experts, out, in)
SPLIT = {
    f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight": shape
    for expert in range(3)
    for part, shape in (("w1", (12, 16)), ("w3", (12, 16)), ("w2", (16, 12)))
}
# Two parameters of one module, in the order of PEFT's names: the inner one is gate_up_proj.
NESTED = {
    f"base_model.model.{AT}.base_layer.lora_A.weight": (6, 16),
    f"base_model.model.{AT}.base_layer.lora_B.weight": (24, 6),
    f"base_model.model.{AT}.lora_A.weight": (6, 12),
    f"base_model.model.{AT}.lora_B.weight": (16, 6),
}


def read(adapter: Any, names: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]], **config: Any) -> Any:
    return read_adapter(adapter("a", names, {**TARGETS, **config}).adapter, base).lora


def test_a_stacked_base(adapter: Any) -> None:
    found = read(adapter, NESTED, STACKED)
    assert {name: factors.shape for name, factors in found.items()} == STACKED
    stack = found[f"{AT}.gate_up_proj"]
    assert isinstance(stack, StackedLora) and len(stack.parts) == 3
    last = stack.parts[2]
    assert (last.index, last.start, last.stop, last.lora.scaling, last.lora.down.shape) == (2, 0, 24, 2.0, (2, 16))
    assert isinstance(last.lora.up.view, Selection) and (last.lora.up.view.start, last.lora.up.view.step) == (2, 3)
    row_bytes = 16 * 4
    assert last.lora.down.start - stack.parts[0].lora.down.start == 4 * row_bytes


def test_a_stack_stored_in_out(adapter: Any) -> None:
    base = {f"{AT}.gate_up_proj": (3, 16, 24), f"{AT}.down_proj": (3, 12, 16)}
    found = read(adapter, NESTED, base)
    assert {name: factors.shape for name, factors in found.items()} == base
    assert all(part.lora.fan_in_fan_out for part in found[f"{AT}.down_proj"].parts)


def test_a_base_that_stores_its_experts_one_by_one_in_another_module(adapter: Any) -> None:
    found = read(adapter, NESTED, SPLIT)
    assert {name: factors.shape for name, factors in found.items()} == SPLIT
    stem = "model.layers.0.block_sparse_moe.experts.1"
    gate, up = found[f"{stem}.w1.weight"], found[f"{stem}.w3.weight"]
    assert gate.down == up.down
    rows = [next(stored_tensors(one.up)) for one in (gate, up)]
    assert rows[1].start - rows[0].start == 12 * 6 * 4  # the rows of up follow those of gate


def test_stacks_of_other_names(adapter: Any) -> None:
    """In memory Transformers calls Granite's stacks as everyone's."""
    place = "model.layers.0.block_sparse_moe"
    base = {f"{place}.input_linear.weight": (3, 24, 16), f"{place}.output_linear.weight": (3, 16, 12)}
    base[f"{place}.router.layer.weight"] = (3, 16)
    found = read(adapter, NESTED, base)
    assert {name: factors.shape for name, factors in found.items()} == {k: v for k, v in base.items() if len(v) == 3}


def test_a_router_of_another_name(adapter: Any, model: Any, plan_of: Any, tensors_of: Any) -> None:
    """In memory Transformers calls the routers of Mixtral and Phi `mlp.gate` and `mlp.router`."""
    stored = "model.layers.0.block_sparse_moe.gate.weight"
    recipe = "merge_method: linear\nbase_model: base\nmodels: [a]\n"
    for name in ("mlp.gate", "mlp.router"):
        module = f"base_model.model.model.layers.0.{name}"
        factors = {f"{module}.lora_A.weight": (2, 16), f"{module}.lora_B.weight": (3, 2)}
        plan = plan_of(recipe, model("base", {**SPLIT, stored: (3, 16)}), adapter("a", factors))
        assert tensors_of(plan)[stored].experts[0].lora.shape == (3, 16)
    module = "base_model.model.model.layers.0.mlp.other"
    factors = {f"{module}.lora_A.weight": (2, 16), f"{module}.lora_B.weight": (3, 2)}
    with pytest.raises(CheckpointError, match=r"adapter targets model.layers.0.mlp.other.weight, which the base does"):
        plan_of(recipe, model("base", {**SPLIT, stored: (3, 16)}), adapter("a", factors))


def test_factors_that_call_the_outputs_the_input(adapter: Any) -> None:
    """Earlier versions of PEFT take every stack as (experts, in, out)."""
    names = {
        f"{AT}.base_layer.lora_A.weight": (6, 24),
        f"{AT}.base_layer.lora_B.weight": (16, 6),
        f"{AT}.lora_A.weight": (6, 16),
        f"{AT}.lora_B.weight": (12, 6),
    }
    assert {name: factors.shape for name, factors in read(adapter, names, STACKED).items()} == STACKED
    assert {name: factors.shape for name, factors in read(adapter, names, SPLIT).items()} == SPLIT


def test_ranks_by_parameter(adapter: Any) -> None:
    names = {**NESTED, f"base_model.model.{AT}.lora_A.weight": (9, 12), f"base_model.model.{AT}.lora_B.weight": (16, 9)}
    found = read(adapter, names, STACKED, rank_pattern={r".*\.down_proj": 3})
    ranks = [found[f"{AT}.{name}"].parts[0].lora.down.shape[0] for name in ("down_proj", "gate_up_proj")]
    assert ranks == [3, 2]
    with pytest.raises(ShapeError, match="fit none of the base's parameters"):
        read(adapter, names, STACKED)


def test_a_matrix_that_is_a_parameter(adapter: Any) -> None:
    names = {"model.layers.0.mlp.gate.lora_A.weight": (2, 16), "model.layers.0.mlp.gate.lora_B.weight": (3, 2)}
    base = {"model.layers.0.mlp.gate.weight": (3, 16)}
    found = read(adapter, names, base, target_parameters=["gate.weight"])
    assert found["model.layers.0.mlp.gate.weight"].shape == (3, 16)


def test_square_experts_take_the_orientation_of_their_module(adapter: Any) -> None:
    base = {f"{AT}.gate_up_proj": (3, 16, 16), f"{AT}.down_proj": (3, 16, 8)}
    square = {f"{AT}.base_layer.lora_A.weight": (6, 16), f"{AT}.base_layer.lora_B.weight": (16, 6)}
    down = {f"{AT}.lora_A.weight": (6, 8), f"{AT}.lora_B.weight": (16, 6)}
    found = read(adapter, square | down, base)
    assert not any(part.lora.fan_in_fan_out for part in found[f"{AT}.gate_up_proj"].parts)
    alone = {name.replace(".base_layer", ""): shape for name, shape in square.items()}
    with pytest.raises(ShapeError, match="is square"):
        read(adapter, alone, base, target_parameters=["gate_up_proj"])


def test_factors_of_two_equal_parameters_are_ambiguous(adapter: Any) -> None:
    base = {f"{AT}.w1": (3, 24, 16), f"{AT}.w3": (3, 24, 16)}
    names = {f"{AT}.lora_A.weight": (6, 16), f"{AT}.lora_B.weight": (24, 6)}
    with pytest.raises(ShapeError, match="could belong to each of"):
        read(adapter, names, base, target_parameters=["experts.w1", "experts.w3"])


def test_parameters_that_the_base_does_not_have(adapter: Any) -> None:
    with pytest.raises(CheckpointError, match=r"has factors of 2 parameters .* that the base does not have"):
        read(adapter, NESTED, {"model.layers.0.mlp.up_proj.weight": (24, 16)})


def test_output_as_an_adapter_is_refused(adapter: Any, model: Any, plan_of: Any) -> None:
    for base in (STACKED, SPLIT):
        text = "merge_method: average\nbase_model: base\nmodels: [a]\noutput: adapter"
        with pytest.raises(Exception, match=r"stacked, or adapted together \(target_parameters\); write a checkpoint"):
            plan_of(text, model("base", base), adapter("a", NESTED, TARGETS))
