"""A plan from headers: what happens to each tensor, and what is refused before a weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eigenmerge.core.errors import BudgetError, CheckpointError, EigenmergeError, RecipeError, ShapeError
from eigenmerge.core.numerics.registry import built_in_methods

SWUDI = "merge_method: swudi\nbase_model: base\n"
TIES = "merge_method: ties\nbase_model: base\n"
Q = "model.layers.0.self_attn.q_proj.weight"


def refused(kind: type[EigenmergeError], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_spectral_method_merges_matrices_and_averages_the_rest(
    model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    names = llama_tensors()
    plan = plan_of(SWUDI + "models: [a, b]", *(model(name, names) for name in ("base", "a", "b")))
    found = tensors_of(plan)
    assert set(found) == set(names)
    assert {found[name].action for name in names if "proj" in name} == {"merge"}
    assert {found[name].action for name in names if "proj" not in name} == {"mean"}
    assert found[Q].reason == "2-D weight"
    assert found["model.norm.weight"].reason == "1-D: mean delta"
    assert found["lm_head.weight"].reason == "lm_head: mean delta"
    assert found[Q].spectrum_key.startswith("spectra/")
    assert found["model.norm.weight"].spectrum_key is None
    assert len({tensor.spectrum_key for tensor in found.values()}) == 14 + 1
    assert plan.warnings == ()


def test_a_direct_method_merges_everything(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    plan = plan_of(TIES + "models: [a, b]", *(model(name, llama_tensors()) for name in ("base", "a", "b")))
    assert {tensor.action for tensor in tensors_of(plan).values()} == {"merge"}
    assert {tensor.method for tensor in tensors_of(plan).values()} == {"ties"}


@pytest.mark.parametrize("choice", ["base", "mean", "merge"])
def test_embeddings_and_lm_head_by_choice(
    choice: str, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    text = SWUDI + f"models: [a]\nembeddings: {choice}\nlm_head: {choice}"
    found = tensors_of(plan_of(text, model("base", llama_tensors()), model("a", llama_tensors())))
    action = {"base": "copy"}.get(choice, choice)
    assert found["model.embed_tokens.weight"].action == action
    assert found["lm_head.weight"].action == action


def test_buffers_empty_tensors_and_convolutions(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"position_ids": (1, 8), "rotary_emb.inv_freq": (4,), "none.weight": (0, 4), "conv.weight": (6, 3, 2, 2)}
    models = [model(name, names, dtype={"position_ids": "I64"}) for name in ("base", "a")]
    found = tensors_of(plan_of(SWUDI + "models: [a]", *models))
    assert [found[name].action for name in names] == ["copy", "copy", "copy", "mean"]
    assert found["position_ids"].out_dtype == "I64"
    found = tensors_of(plan_of(SWUDI + "models: [a]\nconv: matrix", *models))
    assert found["conv.weight"].matrix_shape == (6, 12)
    assert found["conv.weight"].spectrum_key is not None
    assert tensors_of(plan_of(SWUDI + "models: [a]\nconv: base", *models))["conv.weight"].action == "copy"


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


class TestRules:
    def test_the_first_rule_decides(self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
        rules = (
            "rules:\n"
            "  - {match: 'model.layers.0.*', action: keep_base}\n"
            "  - {match: ['*.mlp.*', 're:o_proj'], method: iso_c, parameters: {scale: 1.3}}\n"
            "  - {match: '*', parameters: {exp_time: 7}}\n"
        )
        models = [model(name, llama_tensors()) for name in ("base", "a", "b")]
        found = tensors_of(plan_of(SWUDI + "models: [a, b]\nparameters: {exp_time: 9, scale: 2}\n" + rules, *models))
        assert found[Q].action == "copy"
        assert found[Q].reason == "rule 'model.layers.0.*': base kept"
        iso = found["model.layers.1.mlp.up_proj.weight"]
        assert (iso.method, iso.parameters["scale"]) == ("iso_c", 1.3)  # a rule's method has only the rule's parameters
        assert found["model.layers.1.self_attn.o_proj.weight"].method == "iso_c"
        swudi = found["model.layers.1.self_attn.q_proj.weight"]
        assert (swudi.method, swudi.parameters["exp_time"], swudi.parameters["scale"]) == ("swudi", 7, 2)
        assert found["model.layers.1.input_layernorm.weight"].action == "mean"

    def test_a_direct_method_for_some_tensors(
        self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
    ) -> None:
        text = SWUDI + "models: [{model: a, parameters: {weight: 0.3}}]\nrules: [{match: '*norm*', method: ties}]"
        found = tensors_of(plan_of(text, model("base", llama_tensors()), model("a", llama_tensors())))
        norm = found["model.norm.weight"]
        assert (norm.action, norm.method) == ("merge", "ties")
        assert norm.experts[0].parameters["weight"] == 0.3

    def test_merge_forces_the_embeddings(self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
        text = (
            SWUDI
            + "models: [a]\nrules: [{match: '*embed_tokens*', action: merge}, {match: lm_head.weight, action: mean}]"
        )
        found = tensors_of(plan_of(text, model("base", llama_tensors()), model("a", llama_tensors())))
        assert found["model.embed_tokens.weight"].action == "merge"
        assert found["lm_head.weight"].action == "mean"

    @pytest.mark.parametrize(
        ("pattern", "hint"),
        [
            ("lm_haed.weight", "; did you mean"),
            ("mlp", "'*mlp*' matches 6"),
            ("model.layers.0", "'model.layers.0.*' matches 9"),
            ("re:self_atn", "did you mean 'self_attn'"),
            ("embed_tokens.weight", "matches 1"),
        ],
    )
    def test_a_pattern_that_matches_nothing(
        self, pattern: str, hint: str, model: Any, llama_tensors: Any, plan_of: Any
    ) -> None:
        text = SWUDI + f"models: [a]\nrules: [{{match: '{pattern}', action: keep_base}}]"
        models = [model(name, llama_tensors()) for name in ("base", "a")]
        message = refused(RecipeError, lambda: plan_of(text, *models))
        assert message.startswith(f"rules[0].match: {pattern!r} matches no tensor")
        assert hint in message

    def test_a_rule_in_the_shadow_of_another(self, model: Any, llama_tensors: Any, plan_of: Any) -> None:
        text = SWUDI + "models: [a]\nrules: [{match: '*', action: mean}, {match: '*norm*', action: keep_base}]"
        plan = plan_of(text, *(model(name, llama_tensors()) for name in ("base", "a")))
        assert any("rules[1] (*norm*) decides nothing" in warning for warning in plan.warnings)


class TestFilters:
    def test_a_filter_that_is_in_no_name(self, model: Any, llama_tensors: Any, plan_of: Any) -> None:
        text = TIES + "models: [{model: a, parameters: {weight: [{filter: self_atn, value: 1}, {value: 0}]}}]"
        models = [model(name, llama_tensors()) for name in ("base", "a")]
        message = refused(RecipeError, lambda: plan_of(text, *models))
        assert (
            "models[0].parameters.weight: filter 'self_atn' is in no tensor name; did you mean 'self_attn'?" in message
        )

    def test_lm_head_of_a_tied_model_is_a_warning(self, model: Any, llama_tensors: Any, plan_of: Any) -> None:
        text = TIES + "models: [a]\nparameters: {weight: [{filter: lm_head, value: 1}, {value: 0}]}"
        plan = plan_of(text, *(model(name, llama_tensors(lm_head=False)) for name in ("base", "a")))
        assert any("filter 'lm_head'" in warning for warning in plan.warnings)


def test_gradients_and_filters_reach_the_tensors(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    text = TIES + (
        "models:\n"
        "  - model: a\n"
        "    parameters: {weight: [{filter: mlp, value: [0, 1]}, {value: 0.25}]}\n"
        "  - model: b\n"
        "parameters: {weight: 0.5, density: [1, 0.5]}\n"
    )
    found = tensors_of(plan_of(text, *(model(name, llama_tensors(5)) for name in ("base", "a", "b"))))
    weights = [
        [e.parameters["weight"] for e in found[f"model.layers.{i}.mlp.up_proj.weight"].experts] for i in range(5)
    ]
    assert weights == [[0, 0.5], [0.25, 0.5], [0.5, 0.5], [0.75, 0.5], [1, 0.5]]
    norm = found["model.layers.1.input_layernorm.weight"].experts
    assert [expert.parameters["weight"] for expert in norm] == [0.25, 0.5]
    assert [expert.parameters["density"] for expert in norm] == [0.875, 0.875]
    assert [expert.parameters["density"] for expert in found["model.norm.weight"].experts] == [1, 1]


class TestModelsThatDoNotFit:
    def test_another_shape(self, model: Any, llama_tensors: Any, plan_of: Any) -> None:
        message = refused(
            ShapeError,
            lambda: plan_of(
                SWUDI + "models: [a, b]",
                model("base", llama_tensors()),
                model("a", llama_tensors()),
                model("b", llama_tensors(kv=4)),
            ),
        )
        assert message.startswith("model.layers.0.self_attn.k_proj.weight: b has shape [4, 8], the base has [8, 8]")

    def test_a_transposed_weight_is_said_to_be(self, model: Any, plan_of: Any) -> None:
        models = [model("base", {"w.weight": (3, 5)}), model("a", {"w.weight": (5, 3)})]
        assert "it is stored transposed" in refused(ShapeError, lambda: plan_of(SWUDI + "models: [a]", *models))

    def test_a_tensor_that_some_experts_lack(
        self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
    ) -> None:
        less = {name: shape for name, shape in llama_tensors().items() if name != Q}
        models = [model("base", llama_tensors()), model("a", llama_tensors()), model("b", less)]
        message = refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a, b]", *models))
        assert message.startswith(f"{Q}: b does not have it")
        assert "missing: base" in message
        tensor = tensors_of(plan_of(SWUDI + "models: [a, b]\nmissing: base", *models))[Q]
        assert sorted(expert.full is None for expert in tensor.experts) == [False, True]
        text = "merge_method: linear\nmodels: [a, b]\nmissing: base"
        message = refused(CheckpointError, lambda: plan_of(text, *models))
        assert "b does not have it, other models do; give base_model" in message
        rule = f"rules: [{{match: '{Q}', action: keep_base}}]"
        assert tensors_of(plan_of(SWUDI + f"models: [a, b]\n{rule}", *models))[Q].action == "copy"

    def test_a_tensor_that_no_expert_has_stays(
        self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
    ) -> None:
        base = {**llama_tensors(), "score.weight": (2, 8)}
        plan = plan_of(SWUDI + "models: [a]", model("base", base), model("a", llama_tensors()))
        assert tensors_of(plan)["score.weight"].action == "copy"
        assert "tensors in no expert stay the base's: 1, the first score.weight" in plan.warnings

    def test_a_tensor_that_the_base_lacks_is_left_out(
        self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
    ) -> None:
        more = {**llama_tensors(), "score.weight": (2, 8)}
        plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), model("a", more))
        assert "score.weight" not in tensors_of(plan)
        assert any("left out: score.weight" in warning for warning in plan.warnings)

    def test_a_missing_lm_head_is_the_embedding(
        self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
    ) -> None:
        tied = model("a", llama_tensors(lm_head=False), config={"tie_word_embeddings": True})
        plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), tied)
        head = tensors_of(plan)["lm_head.weight"]
        assert head.experts[0].full == tied.tensors["model.embed_tokens.weight"]
        untied = replace(tied, config={"tie_word_embeddings": False})
        plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors()), untied)
        assert tensors_of(plan)["lm_head.weight"].action == "copy"

    def test_prefixes(self, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
        bare = model("a", llama_tensors(prefix="", lm_head=False))
        plan = plan_of(SWUDI + "models: [a]", model("base", llama_tensors(lm_head=False)), bare)
        assert tensors_of(plan)[Q].experts[0].full == bare.tensors[Q.removeprefix("model.")]
        assert any("names matched with prefix" in warning for warning in plan.warnings)

    def test_quantized_weights(self, model: Any, plan_of: Any) -> None:
        config = {"quantization_config": {"quant_method": "gptq"}}
        models = [model("base", {"w.weight": (4, 4)}, config=config), model("a", {"w.weight": (4, 4)})]
        assert "quantized (gptq)" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))
        models = [model("base", {"w.weight": (4, 4)}), model("a", {"w.weight": (4, 4)}, dtype="U8")]
        assert "stores it as U8" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))

    @pytest.mark.parametrize(
        "name", ["a\nb.weight", "../../etc/passwd", "/abs.weight", "x" * 1001, "", "a\\b", "\x1b[31m"]
    )
    def test_names_from_outside(self, name: str, model: Any, plan_of: Any) -> None:
        models = [model("base", {name: (4, 4)}), model("a", {name: (4, 4)})]
        assert "is refused" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))

    def test_nothing_in_it(self, model: Any, plan_of: Any) -> None:
        models = [model("base", {}), model("a", {})]
        assert "holds no tensors" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))


class TestTheBase:
    def test_a_task_vector_method_needs_one(self, model: Any, plan_of: Any) -> None:
        for method in ("swudi", "ties"):
            models = [model(name, {"w.weight": (4, 4)}) for name in ("a", "b")]
            message = refused(
                RecipeError, lambda m=method, ms=models: plan_of(f"merge_method: {m}\nmodels: [a, b]", *ms)
            )
            assert message.startswith("base_model: is missing")

    def test_linear_does_not(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        names = {"w.weight": (4, 4), "ids": (3,)}
        models = [model(name, names, dtype={"ids": "I64"}) for name in ("a", "b")]
        found = tensors_of(plan_of("merge_method: linear\nmodels: [a, b]", *models))
        assert found["w.weight"].base is None
        assert found["ids"].base == models[0].tensors["ids"]

    def test_listed_among_the_models_it_is_dropped(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
        plan = plan_of(TIES + "models: [base, a]", *models)
        assert [expert.expert for expert in tensors_of(plan)["w.weight"].experts] == [1]
        assert any("base is listed among the models" in warning for warning in plan.warnings)

    def test_linear_keeps_it(self, model: Any, plan_of: Any, tensors_of: Any) -> None:
        models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
        plan = plan_of("merge_method: linear\nbase_model: base\nmodels: [base, a]", *models)
        assert {expert.expert: expert.is_base for expert in tensors_of(plan)["w.weight"].experts} == {0: True, 1: False}

    def test_linear_with_a_global_weight_averages_it_as_mergekit_does(
        self, model: Any, plan_of: Any, tensors_of: Any
    ) -> None:
        models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
        text = "merge_method: linear\nbase_model: base\nmodels: [{model: a, parameters: {weight: 3}}]\n"
        plan = plan_of(text + "parameters: {weight: 1}", *models)
        found = {e.is_base: e.parameters["weight"] for e in tensors_of(plan)["w.weight"].experts}
        assert found == {False: 3, True: 1}
        assert len(tensors_of(plan_of(text, *models))["w.weight"].experts) == 1

    def test_an_adapter_as_base(self, model: Any, adapter: Any, plan_of: Any) -> None:
        models = [adapter("base", {"x.lora_A.weight": (2, 4)}), model("a", {"w.weight": (4, 4)})]
        assert "is a LoRA adapter" in refused(CheckpointError, lambda: plan_of(SWUDI + "models: [a]", *models))


def test_the_number_of_models(model: Any, plan_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a", "b", "c")]
    slerp = "merge_method: slerp\nbase_model: base\nparameters: {t: 0.5}\nmodels: [a, b, c]"
    assert "slerp takes at most 2 models; found 3" in refused(RecipeError, lambda: plan_of(slerp, *models))
    two = slerp.replace("a, b, c", "a, b")
    assert "slerp merges exactly 1 model beside the base; found 2" in refused(
        RecipeError, lambda: plan_of(two, *models)
    )
    stock = "merge_method: model_stock\nbase_model: base\nmodels: [a]"
    assert "model_stock needs at least 2 models; found 1" in refused(RecipeError, lambda: plan_of(stock, *models))


def test_a_required_parameter(model: Any, plan_of: Any) -> None:
    models = [model(name, {"w.weight": (4, 4)}) for name in ("base", "a")]
    text = "merge_method: slerp\nbase_model: base\nmodels: [a]"
    assert "t: at tensor w.weight: Field required" in refused(RecipeError, lambda: plan_of(text, *models))


def test_identical_experts_are_a_warning(model: Any, plan_of: Any) -> None:
    names = {"w.weight": (4, 4)}
    models = [model("base", names), model("a", names, fingerprint="x"), model("b", names, fingerprint="x")]
    plan = plan_of(SWUDI + "models: [a, b]", *models)
    assert any("identical experts: a and b" in warning for warning in plan.warnings)
    same = model("c", names, fingerprint=models[0].fingerprint)
    plan = plan_of(SWUDI + "models: [c]", models[0], same)
    assert any("c has the same weights as the base" in warning for warning in plan.warnings)


def test_the_budget_names_the_tensor_and_both_numbers(model: Any, llama_tensors: Any, plan_of: Any) -> None:
    models = [model(name, llama_tensors(vocabulary=8)) for name in ("base", "a")]
    message = refused(BudgetError, lambda: plan_of(SWUDI + "models: [a]\nmax_memory: 1kB", *models))
    assert message.startswith("tensor model.layers.0.mlp.down_proj.weight [8, 16] needs ")
    assert "max_memory is 1000" in message
    assert plan_of(SWUDI + "models: [a]\nmax_memory: 1kB", *models, max_memory=10**9).peak_bytes > 1000


def test_output_dtypes(model: Any, plan_of: Any, tensors_of: Any) -> None:
    names = {"w.weight": (4, 4), "n.weight": (4,), "ids": (2,), "f.weight": (4, 4)}
    stored = {"w.weight": "BF16", "n.weight": "F32", "ids": "I64", "f.weight": "F8_E4M3"}
    models = [model(name, names, dtype=stored) for name in ("base", "a")]

    def dtypes(extra: str) -> list[str]:
        found = tensors_of(plan_of(SWUDI + f"models: [a]\n{extra}", *models))
        return [found[name].out_dtype for name in names]

    assert dtypes("") == ["BF16", "F32", "I64", "BF16"]
    assert dtypes("dtype: float16") == ["F16", "F16", "I64", "F16"]
    assert dtypes("dtype: float16\nout_dtype: float32") == ["F32", "F32", "I64", "F32"]


def test_config_and_tokenizer_files(model: Any, plan_of: Any) -> None:
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}
    sides = ("tokenizer.json", "tokenizer_config.json", "README.md")
    base = model("base", {"w.weight": (4, 4)}, config=config, side_files=sides, dtype="F8_E4M3")
    plan = plan_of(SWUDI + "models: [a]\ndtype: float32\nchat_template: chatml", base, model("a", {"w.weight": (4, 4)}))
    files = {side.name: side for side in plan.side_files}
    assert set(files) == {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert json.loads(files["config.json"].content) == {"model_type": "llama", "torch_dtype": "float32"}
    assert files["tokenizer.json"].source_uri == "/models/base/tokenizer.json"
    text = SWUDI + "models: [a]\nchat_template: alpaca"
    assert "chat_template: 'alpaca'" in refused(
        RecipeError, lambda: plan_of(text, base, model("a", {"w.weight": (4, 4)}))
    )


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


@pytest.mark.parametrize("method", sorted(built_in_methods()))
def test_every_method_can_be_planned(
    method: str, model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any
) -> None:
    chosen = built_in_methods()[method]
    count = chosen.max_experts - 1 if chosen.max_experts and chosen.max_experts > 1 else 1 if chosen.max_experts else 3
    needed = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.1}, "ram": {}}.get(method, {})
    experts = [f"e{index}" for index in range(count)]
    text = f"merge_method: {method}\nbase_model: base\nmodels: [{', '.join(experts)}]\nparameters: {json.dumps(needed)}"
    plan = plan_of(text, *(model(name, llama_tensors()) for name in ("base", *experts)))
    tensor = tensors_of(plan)[Q]
    assert (tensor.action, tensor.method) == ("merge", method)
    assert tensor.flops > 0
    assert tensor.peak_bytes > 3 * 4 * 8 * 8
    assert tensor.bytes_read >= (count + 1) * 4 * 8 * 8
    chosen.Parameters.model_validate(dict(tensor.parameters))  # what a worker does
    chosen.Expert.model_validate(dict(tensor.experts[0].parameters))


def test_a_thousand_experts(model: Any, llama_tensors: Any, plan_of: Any, tensors_of: Any) -> None:
    experts = [model(f"e{index}", llama_tensors()) for index in range(1000)]
    lines = "".join(f"  - model: e{i}\n    parameters: {{weight: {i}}}\n" for i in range(1000))
    plan = plan_of(TIES + "models:\n" + lines, model("base", llama_tensors()), *experts)
    found = tensors_of(plan)[Q]
    assert [expert.parameters["weight"] for expert in found.experts] == list(range(1000))
    assert len(plan.experts) == 1000
