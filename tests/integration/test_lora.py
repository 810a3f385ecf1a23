"""LoRA experts of a tiny Llama and a tiny GPT-2, created by PEFT and compared with its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenmerge.core.cache.result import EXACT_BELOW

from ..quiet_libraries import suppress_messages

Pipeline = Callable[..., Any]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Family:
    """A base, adapters on it, and the same experts as full models."""

    root: Path
    base: Path
    adapters: list[Path]
    full: list[Path]
    make_model: Callable[[], Any]  # loads the base with transformers

    def recipe(self, experts: list[Path], method: str = "swudi_a", **keys: Any) -> dict[str, Any]:
        return {
            "merge_method": method,
            "base_model": str(self.base),
            "models": [str(path) for path in experts],
            **keys,
        }


def make_family(root: Path, make_base: Callable[[], Any], load: Callable[[str], Any], configs: list[Any]) -> Family:
    from peft import get_peft_model

    with suppress_messages():
        torch.manual_seed(0)
        make_base().save_pretrained(root / "base")
        adapters, full = [], []
        for index, config in enumerate(configs):
            torch.manual_seed(index + 1)
            model = get_peft_model(load(str(root / "base")), config)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_" in name:
                        torch.nn.init.normal_(parameter, std=0.1)
                    elif "modules_to_save" in name:
                        parameter.add_(0.05 * torch.randn(parameter.shape))
            model.save_pretrained(root / f"adapter{index}", save_embedding_layers=False)
            # float64: in float32 the rounding of base + delta would add directions to `full - base`
            merged = model.double().merge_and_unload(safe_merge=True)
            adapters.append(root / f"adapter{index}")
            full.append(root / f"full{index}")
            merged.save_pretrained(full[-1])
    return Family(root, root / "base", adapters, full, lambda: load(str(root / "base")))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Adapters: plain; rsLoRA; with rank and alpha patterns, also on an embedding; with lm_head saved whole."""
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    kind = {"task_type": "CAUSAL_LM"}
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"q_proj": 7, "down_proj": 1}}
    experts = [
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], **kind),
        LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "k_proj"], **kind),
        LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj", "embed_tokens"], **patterns, **kind),
        LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], modules_to_save=["lm_head"], **kind),
    ]
    root = tmp_path_factory.mktemp("llama")
    return make_family(root, lambda: LlamaForCausalLM(config), LlamaForCausalLM.from_pretrained, experts)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Conv1D layers, stored (in, out). The second config has fan_in_fan_out: false, which is wrong for them."""
    from peft import LoraConfig
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 8}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False)
    kind = {"task_type": "CAUSAL_LM"}
    experts = [
        LoraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, **kind),
        LoraConfig(r=2, target_modules=["c_attn", "c_proj", "lm_head"], **kind),
    ]
    root = tmp_path_factory.mktemp("gpt2")
    family = make_family(root, lambda: GPT2LMHeadModel(config), GPT2LMHeadModel.from_pretrained, experts)
    switches = [json.loads((path / "adapter_config.json").read_text())["fan_in_fan_out"] for path in family.adapters]
    assert switches == [True, False], (
        "PEFT no longer stores fan_in_fan_out: false here; write the second config by hand"
    )
    return family


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], base: Any) -> None:
    """Compare to 1e-5 of the largest change of each weight."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        size = (tensor - base[name]).abs().max().item() or 1.0
        error = (found[name] - tensor).abs().max().item()
        assert error <= TOLERANCE * max(size, 1e-3), f"{name}: off by {error}, change {size}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


METHODS = ["swudi", "swudi_a", "wudi_pinv", "optmerge", "iso_c", "tsv_m", "ties", "average"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_merge_as_their_full_models(
    request: pytest.FixtureRequest, pipeline: Pipeline, tmp_path: Path, family: str, method: str
) -> None:
    made: Family = request.getfixturevalue(family)
    keys: dict[str, Any] = {"arithmetic": "float64"}
    if method == "optmerge":  # 300 steps of Adam at 1e-5 amplify rounding; the closed form does not
        keys["parameters"] = {"solver": "closed_form"}
    if (
        method == "tsv_m"
    ):  # by default an unchanged weight of a full model counts as an expert, as in the published code
        keys["parameters"] = {"zero_experts": "nothing"}
    pipeline(made.recipe(made.adapters, method, **keys), tmp_path / "adapters")
    pipeline(made.recipe(made.full, method, **keys), tmp_path / "full")
    assert_close(weights(tmp_path / "adapters"), weights(tmp_path / "full"), weights(made.base))


def test_a_base_with_an_adapter_on_top_is_the_same_expert(llama: Family, pipeline: Pipeline, tmp_path: Path) -> None:
    bare = llama.recipe(llama.adapters[:2])
    named = bare | {"models": [f"{llama.base}+{path}" for path in llama.adapters[:2]]}
    pipeline(bare, tmp_path / "bare")
    pipeline(named, tmp_path / "named", tmp_path / "other-store")
    assert_close(weights(tmp_path / "named"), weights(tmp_path / "bare"), weights(llama.base))


def test_an_adapter_on_another_model_includes_the_delta_of_that_model(
    llama: Family, pipeline: Pipeline, tmp_path: Path
) -> None:
    """full0 + adapter1: the delta of the adapter is added to that of full0."""
    pipeline(llama.recipe([Path(f"{llama.full[0]}+{llama.adapters[1]}")], "average"), tmp_path / "out")
    base, first, second = weights(llama.base), weights(llama.full[0]), weights(llama.full[1])
    expected = {name: first[name] + (second[name] - base[name]) for name in base}
    assert_close(weights(tmp_path / "out"), expected, base)


def load_with_peft(family: Family, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    with suppress_messages():
        model = PeftModel.from_pretrained(family.make_model(), str(adapter))
        return {name: tensor.detach() for name, tensor in model.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("swudi_a", {}),
        ("swudi", {"parameters": {"rank_ratio": 0.65, "scale": 0.3, "exp_time": 1300}}),
        ("swudi", {"parameters": {"alignment_rho": 0.5}}),
        ("wudi_pinv", {"calibration": {"svc": {"alpha": 0.5}}}),
        ("iso_c", {}),
        ("tsv_m", {"calibration": {"svc": {}}}),
        ("knots", {}),
        ("core_space", {}),
        ("ace", {}),
        ("task_arithmetic", {"parameters": {"weight": 0.3}}),
        ("average", {}),
        ("linear", {}),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_adapter_equals_the_dense_merge(
    request: pytest.FixtureRequest, pipeline: Pipeline, tmp_path: Path, family: str, method: str, keys: dict[str, Any]
) -> None:
    made: Family = request.getfixturevalue(family)
    recipe = made.recipe(made.adapters, method, **keys)
    pipeline(recipe, tmp_path / "dense")
    result = pipeline({**recipe, "output": "adapter"}, tmp_path / "adapter")
    assert result.decompositions_computed == 0, "both outputs use the same spectra"
    assert result.truncation_error < EXACT_BELOW
    expected = weights(tmp_path / "dense")
    found = load_with_peft(made, tmp_path / "adapter")
    assert_close({name: found[name] for name in expected}, expected, weights(made.base))


def test_aligned_layers_of_a_merged_adapter(llama: Family, pipeline: Any, tmp_path: Path) -> None:
    from eigenmerge.core.recipe.recipe import recipe_from_mapping

    recipe = llama.recipe(llama.adapters, "swudi", parameters={"alignment_rho": 0.5}, output="adapter")
    pipeline(recipe_from_mapping(recipe), tmp_path / "out", store=str(tmp_path / "store"))
    dense = {key: value for key, value in recipe.items() if key != "output"}
    pipeline(recipe_from_mapping(dense), tmp_path / "dense", store=str(tmp_path / "store"))
    expected = weights(tmp_path / "dense")
    found = load_with_peft(llama, tmp_path / "out")
    assert_close({name: found[name] for name in expected}, expected, weights(llama.base))


def test_files_of_a_merged_adapter(llama: Family, command: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"  # JSON is YAML
    recipe.write_text(json.dumps(llama.recipe(llama.adapters, output={"format": "adapter", "rank": 4})))
    out = tmp_path / "out"
    ran = command("merge", recipe, out)
    assert ran.code == 0, ran.err
    names = {path.name for path in out.iterdir()}
    ours = {"README.md", "eigenmerge_manifest.json", "eigenmerge_report.html"}
    assert names == {"adapter_model.safetensors", "adapter_config.json", *ours}
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert config["r"] == config["lora_alpha"] and config["rank_pattern"] == config["alpha_pattern"]
    assert config["base_model_name_or_path"] == str(llama.base)
    assert config["modules_to_save"] == ["lm_head"]
    stored = load_file(out / "adapter_model.safetensors")
    assert stored[f"base_model.model.{Q_PROJ.replace('.weight', '')}.lora_A.weight"].shape == (4, 32)
    assert "base_model.model.lm_head.weight" in stored
    assert not any("norm" in name for name in stored), "tensors that no adapter changes are not stored"

    manifest = json.loads((out / "eigenmerge_manifest.json").read_text())
    rows = {row["name"]: row for row in manifest["tensors"]}
    assert rows[Q_PROJ]["stored_rank"] == 4 and 0.0 < rows[Q_PROJ]["truncation_error"] < 1.0
    k_proj = rows["model.layers.0.self_attn.k_proj.weight"]
    assert k_proj["stored_rank"] == 3 and k_proj["truncation_error"] == 0.0
    worst = max(row.get("truncation_error", 0.0) for row in rows.values())
    assert f"largest error of its rank: {worst:.2%} of the merged delta of " in ran.out
    assert f"leaves out at most {worst:.2%}" in (out / "README.md").read_text()

    # the factors are the best approximation of that rank, and the manifest has its error
    dense = tmp_path / "dense.json"
    dense.write_text(json.dumps(llama.recipe(llama.adapters)))
    assert command("merge", dense, tmp_path / "dense").code == 0
    delta = weights(tmp_path / "dense")[Q_PROJ].double() - weights(llama.base)[Q_PROJ].double()
    left, right = (stored[name].double() for name in reversed(rows[Q_PROJ]["stored_as"]))
    best = torch.linalg.svdvals(delta)[4:].norm()
    assert torch.isclose((left @ right - delta).norm(), best, rtol=1e-4)
    assert rows[Q_PROJ]["truncation_error"] == pytest.approx(float(best / delta.norm()), rel=1e-4)


def test_dependent_factors_are_padded_with_zeros(llama: Family, pipeline: Pipeline, tmp_path: Path) -> None:
    """The same adapter twice: the planned rank is the sum of both ranks, and half of it is padding."""
    twice = tmp_path / "twice"
    twice.mkdir()
    for path in llama.adapters[0].iterdir():
        (twice / path.name).write_bytes(path.read_bytes())
    pipeline(llama.recipe([llama.adapters[0], twice], output="adapter"), tmp_path / "out")
    stored = load_file(tmp_path / "out/adapter_model.safetensors")
    down = stored[f"base_model.model.{Q_PROJ.replace('.weight', '')}.lora_A.weight"]
    assert down.shape[0] == 8
    sizes = down.norm(dim=1)
    assert (sizes[:4] > 0).all() and (sizes[4:] < 1e-3 * sizes[0]).all()


def test_bfloat16_factors(llama: Family, pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline(llama.recipe(llama.adapters[:2], output="adapter", dtype="bfloat16"), tmp_path / "out")
    stored = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    pipeline(llama.recipe(llama.adapters[:2]), tmp_path / "dense")
    expected = weights(tmp_path / "dense")[Q_PROJ]
    found = load_with_peft(llama, tmp_path / "out")[Q_PROJ]
    change = (expected - weights(llama.base)[Q_PROJ]).norm()
    assert (found - expected).norm() < 0.01 * change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda recipe, family: recipe["models"].append(str(family.full[0])), "full0 is a full model"),
        (lambda recipe, family: recipe.update(merge_method="ties"), "ties does not give a low-rank delta"),
        (lambda recipe, family: recipe.update(merge_method="nuslerp"), "nuslerp does not give a low-rank delta"),
    ],
)
def test_the_plan_refuses_what_cannot_be_an_adapter(
    llama: Family, command: Any, tmp_path: Path, change: Any, words: str
) -> None:
    recipe = llama.recipe(llama.adapters[:2], output="adapter")
    change(recipe, llama)
    place = tmp_path / "recipe.json"
    place.write_text(json.dumps(recipe))
    ran = command("plan", place)
    assert ran.code == 2 and words in ran.err and "\n" not in ran.err.strip()


def test_factors_that_are_not_finite_are_replaced_by_zeros(llama: Family, pipeline: Pipeline, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in llama.adapters[1].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "adapter_model.safetensors")
    name = f"base_model.model.{Q_PROJ.replace('.weight', '')}.lora_A.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors", {"format": "pt"})
    recipe = llama.recipe([llama.adapters[0], broken], output="adapter")
    result = pipeline(recipe, tmp_path / "out", allow_nonfinite=True)
    assert any("kept the base" in warning and Q_PROJ in warning for warning in result.warnings)
    assert not load_file(tmp_path / "out/adapter_model.safetensors")[name].any()


def test_the_plan_of_an_adapter_reads_no_base(llama: Family) -> None:
    """The projected bytes are those of the factors alone."""
    from eigenmerge.core.recipe.recipe import recipe_from_mapping
    from eigenmerge.core.steps.make_plan import make_plan

    plan = make_plan(recipe_from_mapping(llama.recipe(llama.adapters[:2], output="adapter")))
    sizes = [path.stat().st_size for adapter in llama.adapters[:2] for path in adapter.glob("*.safetensors")]
    assert plan.bytes_read < sum(sizes)
