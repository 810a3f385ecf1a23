"""How much of an expert arrives, and mismatches of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.planning.summary import summarize_plan

TEXT = "merge_method: swudi\nbase_model: base\nmodels: [a]\n"
Shapes = Mapping[str, tuple[int, ...]]


@pytest.fixture
def plan_two(model: Any, plan_of: Any) -> Callable[..., Any]:
    def plan(base: Shapes, expert: Shapes, extra: str = "", /, **configs: Any) -> Any:
        models = model("base", base, config=configs.get("base")), model("a", expert, config=configs.get("a"))
        return plan_of(TEXT + extra, *models)

    return plan


def layers(at: str, count: int = 2, **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{at}.{i}.{name}.weight": shape for i in range(count) for name, shape in shapes.items()}


BODY = layers("model.layers", q_proj=(4, 4), up=(8, 4))


def test_an_expert_that_gives_nothing_is_an_error(plan_two: Any) -> None:
    other = {"encoder.0.w": (4, 4)}
    for extra in ("", "missing: base\n"):
        with pytest.raises(CheckpointError, match=r"a: none of its 1 tensors has a place in base: .*encoder\.0\.w"):
            plan_two(BODY, other, extra)


@pytest.mark.parametrize(
    "other",
    [
        layers("model.layers", 1, q_proj=(4, 4), up=(8, 4))
        | layers("blocks", q_proj=(4, 4)),  # another name of a layer
        layers("model.layers", q_proj=(4, 4), fc=(8, 4)),  # another name inside the layers
        layers("model.layers", q_proj=(4, 4), gate_up=(16, 4)),  # another layout
        layers("model.layers", 1, q_proj=(4, 4), up=(8, 4)) | layers("gpt.h", wq=(4, 4), w1=(8, 4)),
    ],
)
def test_weights_on_both_sides_without_counterpart(plan_two: Any, other: Shapes) -> None:
    with pytest.raises(CheckpointError, match=r"of its weights have no place in base.*missing: base"):
        plan_two(BODY, other)
    assert plan_two(BODY, other, "missing: base\n").experts[0].arrival.num_left_out > 0


def test_another_name_of_the_positions(plan_two: Any) -> None:
    with pytest.raises(CheckpointError, match=r"such as position_embeddings.weight \[9, 4\].*wpe.weight"):
        plan_two(BODY | {"wpe.weight": (9, 4)}, BODY | {"position_embeddings.weight": (9, 4)})


def test_another_name_of_a_projector_in_models_of_one_class(plan_two: Any) -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"]}
    base, own = (BODY | {f"{name}.weight": (4, 6)} for name in ("projector.linear_1", "mm_projector.fc"))
    with pytest.raises(CheckpointError, match="mm_projector"):
        plan_two(base, own, base=config, a=config)


VISION = layers("vision_tower.layers", qkv=(12, 6))


@pytest.mark.parametrize(
    ("base", "own", "num_left_out"),
    [
        (VISION | BODY, BODY, 0),  # a text expert on a vision-language base
        (BODY, VISION | BODY, 2),
        (VISION | BODY, BODY | layers("mtp.layers", q_proj=(4, 4)), 2),
        (BODY | {"lm_head.dense.weight": (4, 4)}, BODY | {"classifier.dense.weight": (4, 4)}, 1),
        (BODY | {"lm_head.weight": (9, 4)}, BODY | {"score.weight": (2, 4)}, 1),
        (BODY | {"lm_head.weight": (9, 4)}, BODY | {"v_head.summary.weight": (1, 4)}, 1),
        (BODY | {"pooler.dense.weight": (4, 4)}, BODY | {"cls.transform.dense.weight": (4, 4)}, 1),
        (BODY, BODY | {"model.layers.0.rotary_emb.inv_freq": (2,), "model.layers.0.attn.bias": (1, 1, 9, 9)}, 2),
    ],
)
def test_what_only_one_side_has(plan_two: Any, base: Shapes, own: Shapes, num_left_out: int) -> None:
    configs = {"base": {"architectures": ["AForMaskedLM"]}, "a": {"architectures": ["AForSequenceClassification"]}}
    assert plan_two(base, own, **configs).experts[0].arrival.num_left_out == num_left_out


def test_the_share_that_arrives(plan_two: Any, model: Any, adapter: Any, plan_of: Any) -> None:
    summary = summarize_plan(plan_two(BODY, BODY | {"score.weight": (2, 48)}))
    row = summary["experts"][0]
    assert (row["tensors_placed"], row["share_placed"], row["num_left_out"]) == (4, 0.5, 1)
    assert row["left_out"] == ["score.weight"]
    at = "base_model.model.model.layers.0.q_proj"
    factors = {f"{at}.lora_A.weight": (2, 4), f"{at}.lora_B.weight": (4, 2), "base_model.model.score.weight": (4, 4)}
    arrival = plan_of(TEXT, model("base", BODY), adapter("a", factors)).experts[0].arrival
    assert (arrival.num_tensors, arrival.share, arrival.left_out) == (1, 0.5, ("adapter: score.weight",))
    alone = adapter("a", {"base_model.model.score.weight": (4, 4)})
    with pytest.raises(CheckpointError, match="a: none of its 1 tensors has a place"):
        plan_of(TEXT, model("base", BODY), alone)


def test_slices_leave_layers_out(model: Any, plan_of: Any) -> None:
    text = (
        "merge_method: passthrough\nbase_model: base\nslices: [{sources: [{model: a, layer_range: [1, 2]}]},"
        " {sources: [{model: base, layer_range: [0, 1]}]}]\n"
    )
    deep = layers("model.layers", 4, q_proj=(4, 4), up=(8, 4))
    config = {"num_hidden_layers": 2}
    plan = plan_of(text, model("base", BODY, config=config), model("a", deep, config={"num_hidden_layers": 4}))
    assert plan.experts[0].arrival.num_left_out == 4
