"""PEFT adapters: names, scalings, and variants that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError, EigenmergeError, RecipeError, ShapeError
from eigenmerge.core.planning.inputs.adapters.read_adapter import correct_orientation, read_adapter

SWUDI = "merge_method: swudi\nbase_model: base\n"
AT = "base_model.model.model.layers.0.self_attn.q_proj"
WEIGHT = "model.layers.0.self_attn.q_proj.weight"
FACTORS = {f"{AT}.lora_A.weight": (2, 8), f"{AT}.lora_B.weight": (8, 2)}


def scaling_of(adapter: Any, config: dict[str, Any], module: str = "model.layers.0.self_attn.q_proj") -> float:
    names = {f"base_model.model.{module}.lora_A.weight": (2, 8), f"base_model.model.{module}.lora_B.weight": (8, 2)}
    return read_adapter(adapter("a", names, {"r": 2, **config}).adapter).lora[f"{module}.weight"].scaling


def test_an_adapter_expert_is_planned_as_factors(
    adapter: Any, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    lora = adapter("a", FACTORS)
    plan = plan_of(SWUDI + "models: [a, b]", model("base", llama_tensors()), lora, adapter("b", FACTORS))
    found = tensors_of(plan)
    expert = next(expert for expert in found[WEIGHT].experts if expert.expert == 0)
    assert expert.full is None
    assert expert.lora.up.shape == (8, 2)
    assert expert.lora.down == lora.adapter.tensors[f"{AT}.lora_A.weight"]
    assert expert.lora.scaling == 2.0
    assert {name for name, tensor in found.items() if tensor.action != "copy"} == {WEIGHT}
    assert found["model.norm.weight"].reason == "no expert changes it: base kept"


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"lora_alpha": 4}, 2.0),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / math.sqrt(2)),
        ({"lora_alpha": 4, "alpha_pattern": {"q_proj": 8}}, 4.0),
        ({"lora_alpha": 4, "alpha_pattern": {"layers.0.self_attn.q_proj": 8}}, 4.0),
        ({"lora_alpha": 4, "alpha_pattern": {r".*\.q_proj": 8, "q_proj": 16}}, 4.0),
        ({"lora_alpha": 4, "alpha_pattern": {"proj": 8}}, 2.0),  # a whole last component, as PEFT matches
        ({"lora_alpha": 4, "r": 8, "rank_pattern": {"q_proj": 2}}, 2.0),
        ({"lora_alpha": 4, "r": 8, "rank_pattern": {"q_proj": 2}, "use_rslora": True}, 4 / math.sqrt(2)),
        ({}, 2.0),
    ],
)
def test_scaling(config: dict[str, Any], scaling: float, adapter: Any) -> None:
    assert scaling_of(adapter, config) == pytest.approx(scaling, rel=1e-15)


def test_scaling_is_what_peft_computes(adapter: Any) -> None:
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential()
    net.add_module("q_proj", torch.nn.Linear(8, 8))
    net.add_module("v_proj", torch.nn.Linear(8, 8))
    settings = {
        "r": 2,
        "lora_alpha": 6,
        "rank_pattern": {"v_proj": 4},
        "alpha_pattern": {"^q_proj": 3},
        "use_rslora": True,
    }
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], **settings)
    wrapped = peft.get_peft_model(net, config)
    names = {name: tuple(value.shape) for name, value in peft.get_peft_model_state_dict(wrapped).items()}
    found = read_adapter(adapter("a", names, config.to_dict()).adapter)
    for module in ("q_proj", "v_proj"):
        layer = wrapped.base_model.model.get_submodule(module)
        assert found.lora[f"{module}.weight"].scaling == pytest.approx(layer.scaling["default"], rel=1e-12)


@pytest.mark.parametrize(
    "names",
    [
        {f"{AT}.lora_A.default.weight": (2, 8), f"{AT}.lora_B.default.weight": (8, 2)},
        {
            f"{AT.removeprefix('base_model.model.')}.lora_{part}.weight": FACTORS[f"{AT}.lora_{part}.weight"]
            for part in "AB"
        },
    ],
)
def test_other_forms_of_adapter_names(names: dict[str, tuple[int, int]], adapter: Any) -> None:
    assert list(read_adapter(adapter("a", names).adapter).lora) == [WEIGHT]


def test_embeddings_and_fan_in_fan_out_are_transposed(adapter: Any) -> None:
    names = {
        "base_model.model.model.embed_tokens.lora_embedding_A": (2, 32),
        "base_model.model.model.embed_tokens.lora_embedding_B": (8, 2),
    }
    found = read_adapter(adapter("a", names).adapter)
    assert found.target_shapes() == {"model.embed_tokens.weight": (32, 8)}
    assert found.lora["model.embed_tokens.weight"].fan_in_fan_out
    conv1d = {"base_model.model.h.0.c_attn.lora_A.weight": (2, 8), "base_model.model.h.0.c_attn.lora_B.weight": (24, 2)}
    found = read_adapter(adapter("a", conv1d, {"fan_in_fan_out": True}).adapter)
    assert found.target_shapes() == {"h.0.c_attn.weight": (8, 24)}


def test_modules_to_save_are_whole_tensors(
    adapter: Any, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    for inner in ("", ".modules_to_save", ".modules_to_save.default"):
        names = {**FACTORS, f"base_model.model.lm_head{inner}.weight": (32, 8)}
        plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), adapter("a", names))
        head = tensors_of(plan)["lm_head.weight"]
        assert head.action == "mean"
        assert head.experts[0].full is not None
        assert head.experts[0].lora is None


def test_an_adapter_on_the_base_stays_factors_and_on_another_model_does_not(
    adapter: Any, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    lora = adapter("x", FACTORS).adapter
    base = model("base", llama_tensors())
    on_base = model("base+x", llama_tensors(), adapter=lora, uri=base.uri)
    expert = tensors_of(plan_of(SWUDI + "models: [base+x]", base, on_base))[WEIGHT].experts[0]
    assert expert.full is None
    assert expert.lora is not None
    on_other = model("other+x", llama_tensors(), adapter=lora)
    found = tensors_of(plan_of(SWUDI + "models: [other+x]", base, on_other))
    assert found[WEIGHT].experts[0].full is not None
    assert found[WEIGHT].experts[0].lora is not None
    assert found["model.norm.weight"].action == "mean"


def test_a_prefix_between_adapter_and_base(adapter: Any, model: Any, plan_of: Any, tensors_of: Any) -> None:
    base = model("base", {f"bert.encoder.layer.{i}.w.weight": (8, 8) for i in range(3)})
    names = {
        f"base_model.model.encoder.layer.{i}.w.lora_{part}.weight": shape
        for i in range(3)
        for part, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    found = tensors_of(plan_of(SWUDI + "models: [a]", base, adapter("a", names)))
    assert all(tensor.experts[0].lora is not None for tensor in found.values())


@pytest.mark.parametrize(
    ("config", "names", "kind", "says"),
    [
        ({"use_dora": True}, FACTORS, CheckpointError, "DoRA"),
        ({}, {**FACTORS, f"{AT}.lora_magnitude_vector": (8,)}, CheckpointError, "DoRA"),
        ({"peft_type": "LOHA"}, FACTORS, CheckpointError, "peft_type is LOHA, expected LORA"),
        ({"lora_bias": True}, FACTORS, CheckpointError, "lora_bias"),
        ({}, {**FACTORS, f"{AT}.lora_B.bias": (8,)}, CheckpointError, "is not a LoRA factor"),
        ({"layer_replication": [[0, 1]]}, FACTORS, CheckpointError, "layer_replication"),
        ({"use_xlora": True}, FACTORS, CheckpointError, "use_xlora, a variant of LoRA that is not known here"),
        ({"foo_config": {"x": 1}}, FACTORS, CheckpointError, "foo_config"),
        ({"init_lora_weights": "a_new_one"}, FACTORS, CheckpointError, "a_new_one"),
        ({"init_lora_weights": "pissa_niter_4"}, FACTORS, CheckpointError, "pissa_niter_4"),
        ({"init_lora_weights": "gaussian", "r": 3}, FACTORS, ShapeError, "adapter_config.json has rank 3"),
        ({"r": 0}, FACTORS, CheckpointError, "r = 0"),
        ({"lora_alpha": "x"}, FACTORS, CheckpointError, "lora_alpha = 'x'"),
        ({"alpha_pattern": {"(": 2}}, FACTORS, CheckpointError, "not a regular expression"),
        ({"alpha_pattern": {"q_proj": True}}, FACTORS, CheckpointError, "alpha_pattern['q_proj'] = True"),
        ({}, {f"{AT}.lora_A.weight": (2, 8)}, CheckpointError, "lora_A and no lora_B"),
        ({}, {f"{AT}.lora_A.weight": (2, 8, 1, 1), f"{AT}.lora_B.weight": (8, 2, 1, 1)}, ShapeError, "convolution"),
        ({}, {}, CheckpointError, "contains no LoRA factors"),
        (
            {},
            {f"{AT}.lora_{p}.{n}.weight": s for n in ("x", "y") for p, s in (("A", (2, 8)), ("B", (8, 2)))},
            CheckpointError,
            "several adapters (x, y)",
        ),
    ],
)
def test_other_adapters_than_plain_lora_are_refused(
    config: dict[str, Any], names: dict[str, tuple[int, ...]], kind: type[EigenmergeError], says: str, adapter: Any
) -> None:
    with pytest.raises(kind) as caught:
        read_adapter(adapter("a", names, config).adapter)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_does_not_fit_the_base(adapter: Any, model: Any, llama_tensors: Any, plan_of: Any) -> None:
    base = model("base", llama_tensors(hidden=16))
    with pytest.raises(ShapeError, match=r"a adapts a weight of \[8, 8\], the base has \[16, 16\]"):
        plan_of(SWUDI + "models: [a]", base, adapter("a", FACTORS))
    names = {name.replace("layers.0", "layers.9"): shape for name, shape in FACTORS.items()}
    with pytest.raises(
        CheckpointError, match=r"adapter targets model\.layers\.9\.self_attn\.q_proj\.weight, which the"
    ):
        plan_of(SWUDI + "models: [a]", base, adapter("a", names))


def test_a_bare_adapter_needs_a_base(adapter: Any, model: Any, llama_tensors: Any, plan_of: Any) -> None:
    models = [model("m", llama_tensors()), adapter("a", FACTORS)]
    with pytest.raises(RecipeError, match="a is a LoRA adapter; set base_model"):
        plan_of("merge_method: linear\nmodels: [m, a]", *models)
    with pytest.raises(CheckpointError, match="a is a LoRA adapter and is the first model"):
        plan_of("merge_method: linear\nmodels: [a, m]", *models)


def test_low_rank_experts_cost_less(
    adapter: Any, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    names = {f"{AT}.lora_A.weight": (2, 512), f"{AT}.lora_B.weight": (512, 2)}
    base = model("base", llama_tensors(1, hidden=512))
    lora = tensors_of(plan_of(SWUDI + "models: [a]", base, adapter("a", names)))[WEIGHT]
    full = tensors_of(plan_of(SWUDI + "models: [a]", base, model("a", llama_tensors(1, hidden=512))))[WEIGHT]
    assert lora.flops < full.flops / 20
    assert lora.spectrum_bytes < full.spectrum_bytes / 100
    assert lora.bytes_read < full.bytes_read


class TestOrientation:
    """PEFT's one fan_in_fan_out against the shapes of the base's weights."""

    C_ATTN, C_PROJ, HEAD = "h.0.attn.c_attn", "h.0.attn.c_proj", "lm_head"

    def turned(self, adapter: Any, switch: bool) -> dict[str, bool]:
        shapes = {self.C_ATTN: (24, 8), self.C_PROJ: (8, 8), self.HEAD: (30, 8)}  # (out, in) of the layers
        tensors = {}
        for name, (rows, columns) in shapes.items():
            tensors |= {f"{name}.lora_A.weight": (2, columns), f"{name}.lora_B.weight": (rows, 2)}
        read = read_adapter(adapter("a", tensors, {"fan_in_fan_out": switch}).adapter)
        stored = {
            f"{self.C_ATTN}.weight": (8, 24),
            f"{self.C_PROJ}.weight": (8, 8),
            f"{self.HEAD}.weight": (30, 8),
        }
        found = correct_orientation(read.lora, stored)
        return {name: found[f"{name}.weight"].fan_in_fan_out for name in shapes}

    @pytest.mark.parametrize("switch", [False, True])
    def test_orientation_follows_the_shape_and_for_square_weights_the_module_name(
        self, adapter: Any, switch: bool
    ) -> None:
        assert self.turned(adapter, switch) == {self.C_ATTN: True, self.C_PROJ: True, self.HEAD: False}


@pytest.mark.parametrize("switch", ["use_bdlora", "kasa_config", "arrow_config", "monteclora_config"])
def test_newer_variants_are_refused_by_name(adapter: Any, switch: str) -> None:
    listing = adapter("a", {"w.lora_A.weight": (2, 4), "w.lora_B.weight": (4, 2)}, {switch: {"x": 1}})
    with pytest.raises(CheckpointError, match=switch):
        read_adapter(listing.adapter)


@pytest.mark.parametrize(
    "factor",
    [
        "base_model.model.w.lora_A.weight",
        "unet.down.attn1.to_q.lora.down.weight",
        "lora_unet_down_blocks_0_attn1_to_q.lora_down.weight",
        "transformer.blocks.0.to_k.lora_B.weight",
        "model.layers.0.q_proj.lora_a",
        "lora_te_layer.hada_w1_a",
    ],
)
def test_factors_in_a_full_model_are_refused(factor: str, model: Any, plan_of: Any) -> None:
    base = model("base", {"w.weight": (8, 8)})
    expert = model("a", {"w.weight": (8, 8), factor: (2, 8)})
    with pytest.raises(CheckpointError, match=r"is a LoRA factor, expected a merged model"):
        plan_of(SWUDI + "models: [a]", base, expert)
    with pytest.raises(CheckpointError, match=r"is a LoRA factor"):
        plan_of("merge_method: linear\nmodels: [x]", model("x", {factor: (2, 8)}))


def test_a_model_whose_own_layers_are_named_like_factors(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"q.base_layer.weight": (8, 8), "q.lora_A.vision.weight": (2, 8), "q.lora_B.vision.weight": (8, 2)}
    found = tensors_of(plan_of(SWUDI + "models: [a]", model("base", names), model("a", names)))
    assert {tensor.action for tensor in found.values()} == {"merge"}


def test_tensors_of_an_adapter_that_are_not_in_the_base(
    adapter: Any, model: Any, llama_tensors: Any, plan_of: Any
) -> None:
    base = model("base", llama_tensors())
    plan = plan_of(SWUDI + "models: [a]", base, adapter("a", {**FACTORS, "v_head.summary.weight": (1, 8)}))
    assert any("are left out, the first v_head.summary.weight" in warning for warning in plan.warnings)
    for last in ("vera_lambda_b", "oft_R.default", "token_adapter.trainable_tokens_delta"):
        with pytest.raises(CheckpointError, match=r"which is no LoRA factor and no tensor of the base"):
            plan_of(SWUDI + "models: [a]", base, adapter("a", {**FACTORS, f"{AT}.{last}": (8,)}))


def test_other_weight_files_beside_an_adapter_are_said(
    adapter: Any, model: Any, llama_tensors: Any, plan_of: Any
) -> None:
    lora = adapter("a", FACTORS)
    lora = replace(lora, adapter=replace(lora.adapter, unused_files=("value_head.safetensors",)))
    plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), lora)
    assert "a: value_head.safetensors beside the adapter is not part of it and is not used" in plan.warnings


def test_packed_factors_are_refused(adapter: Any) -> None:
    names = {f"{AT}.lora_A.weight": (2, 8), f"{AT}.lora_B.weight": (8, 2)}
    with pytest.raises(CheckpointError, match="quantized weights"):
        read_adapter(adapter("a", names, dtype="U8").adapter)
    with pytest.raises(CheckpointError, match="is F8_E4M3, expected float32"):
        read_adapter(adapter("a", names, dtype="F8_E4M3").adapter)
