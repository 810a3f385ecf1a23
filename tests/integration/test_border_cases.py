"""Inputs of public bug reports on merging tools: each is merged right, or refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge import merge_task_vectors
from eigenmerge.core.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0"
KEY, FC1 = f"{LAYER}.self_attn.k_proj.weight", f"{LAYER}.mlp.fc1.weight"
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8}


def random(seed: int, *shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def merge(tmp_path: Path, pipeline: Any, save_model: Callable[..., Path], load_checkpoint: Any) -> Callable[..., Any]:
    """Save the base and the experts, (tensors, config) each, merge them with one store, and return the tensors."""

    def run(models: list[tuple[Tensors, Any]], method: str = "swudi_a", **keys: Any) -> Tensors:
        number = len(list(tmp_path.glob("out*")))
        places = [save_model(tmp_path / f"m{number}-{i}", *model) for i, model in enumerate(models)]
        for place in places:  # as reproducible archives and whole-second file systems have it
            os.utime(place / "model.safetensors", (1, 1))
        recipe = {"merge_method": method, "base_model": str(places[0]), "models": [str(p) for p in places[1:]], **keys}
        pipeline(recipe, tmp_path / f"out{number}", store=str(tmp_path / "store"))
        return load_checkpoint(tmp_path / f"out{number}")

    return run


def test_models_with_files_of_equal_size_and_time(merge: Any) -> None:
    base = ({KEY: torch.zeros(8, 8)}, LLAMA)
    for value in (3.0, -3.0):
        found = merge([base, ({KEY: value * torch.eye(8)}, LLAMA)], "linear")
        assert torch.equal(found[KEY], value * torch.eye(8))
    one, two = ({KEY: torch.eye(8)}, LLAMA), ({KEY: 5 * torch.eye(8)}, LLAMA)
    assert torch.equal(merge([base, one, one], "linear")[KEY], torch.eye(8))
    assert torch.equal(merge([base, one, two], "linear")[KEY], 3 * torch.eye(8))


def test_adapters_with_files_of_equal_size_and_time(merge: Any, tmp_path: Path, pipeline: Any, save_model: Any) -> None:
    base = save_model(tmp_path / "base", {KEY: torch.zeros(8, 8)}, LLAMA)
    module = "base_model.model." + KEY.removesuffix(".weight")
    for number, value in enumerate((1.0, -1.0)):
        folder = tmp_path / f"adapter{number}"
        folder.mkdir()
        factors = {f"{module}.lora_A.weight": torch.ones(1, 8), f"{module}.lora_B.weight": value * torch.ones(8, 1)}
        save_file(factors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
        for file in folder.iterdir():
            os.utime(file, (1, 1))
        recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": [str(folder)]}
        pipeline(recipe, tmp_path / f"out{number}", store=str(tmp_path / "store"))
        from safetensors.torch import load_file

        merged = load_file(tmp_path / f"out{number}" / "model.safetensors")
        assert torch.allclose(merged[KEY], value * torch.ones(8, 8))


def test_nothing_in_common(merge: Any) -> None:
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors has a place in .*; it stores|none of its 1"):
        merge([({KEY: random(0, 8, 8)}, LLAMA), ({"tower.1.weight": random(1, 8, 8)}, LLAMA)])


@pytest.mark.parametrize("prefix", ["0.auto_model.", "module.0.auto_model.", "_orig_mod.module."])
def test_a_long_prefix_is_a_wrapper(merge: Any, prefix: str) -> None:
    tensors = {KEY: random(1, 8, 8), FC1: random(2, 16, 8)}
    base = ({KEY: random(3, 8, 8), FC1: random(4, 16, 8)}, LLAMA)
    found = merge([base, ({prefix + name: value for name, value in tensors.items()}, LLAMA)], "linear")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("packed_base", [True, False])
@pytest.mark.parametrize("form", ["nvfp4", "mlx", "gptq"])
def test_packed_weights(merge: Any, form: str, packed_base: bool) -> None:
    """Without a config that says so."""
    stem = FC1.removesuffix("weight")
    packed = {
        "nvfp4": {
            FC1: torch.randint(0, 256, (16, 4), dtype=torch.uint8),
            stem + "weight_scale": torch.ones(16, 1).to(torch.float8_e4m3fn),
            stem + "weight_scale_2": torch.tensor(0.5),
        },
        "mlx": {
            FC1: torch.ones(16, 1, dtype=torch.int32),
            stem + "scales": torch.ones(16, 1),
            stem + "biases": torch.ones(16, 1),
        },
        "gptq": {
            stem + "qweight": torch.ones(1, 16, dtype=torch.int32),
            stem + "qzeros": torch.ones(1, 2, dtype=torch.int32),
            stem + "scales": torch.ones(1, 16),
        },
    }[form]
    models = [({KEY: random(0, 8, 8), **packed}, LLAMA), ({KEY: random(1, 8, 8), FC1: random(2, 16, 8)}, LLAMA)]
    with pytest.raises(CheckpointError, match=r"mlp\.fc1\..*give the unquantized model") as caught:
        merge(models if packed_base else models[::-1], "linear")
    assert "\n" not in str(caught.value)


def test_a_quantization_entry_of_plain_weights_is_left_out(merge: Any, tmp_path: Path) -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    models = [({KEY: random(seed, 8, 8).bfloat16()}, config) for seed in (0, 1)]
    assert torch.equal(merge(models, "linear")[KEY], models[1][0][KEY])
    assert json.loads((tmp_path / "out0/config.json").read_text()) == LLAMA


def test_weights_stored_in_out_are_solved_over_their_inputs(merge: Any) -> None:
    names = {"transformer.h.0.attn.c_attn.weight": (8, 24), "transformer.h.0.mlp.c_proj.weight": (32, 8)}
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    models = [
        ({name: random(9 * seed + len(name), *shape) for name, shape in names.items()}, config) for seed in range(3)
    ]
    found = merge(models)
    for name in names:
        base, *experts = (tensors[name].T.contiguous() for tensors, _ in models)
        expected = base + merge_task_vectors([one - base for one in experts], method="swudi_a")
        torch.testing.assert_close(found[name].T, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["lm_head", "embed_out", "output_projection"])
def test_a_tied_head_that_only_the_base_stores_follows_the_embedding(merge: Any, head: str) -> None:
    embedding, fc1 = random(0, 10, 8), random(1, 16, 8)
    config = {"tie_word_embeddings": True, "model_type": "x", "vocab_size": 10}
    base = ({"model.embed_tokens.weight": embedding, f"{head}.weight": embedding.clone(), FC1: fc1}, config)
    expert = ({"model.embed_tokens.weight": embedding + 1, FC1: fc1 + 1}, config)
    found = merge([base, expert])
    assert torch.equal(found[f"{head}.weight"], found["model.embed_tokens.weight"])
    assert torch.allclose(found[f"{head}.weight"], embedding + 1)


def test_a_head_of_another_task_does_not_reach_the_bases_head(merge: Any) -> None:
    layer = "deberta.encoder.layer.0.intermediate.dense.weight"
    head = {"lm_predictions.lm_head.dense.weight": random(1, 8, 8), "lm_predictions.lm_head.dense.bias": random(2, 8)}
    config = {"model_type": "deberta-v2"}
    other = {
        "pooler.dense.weight": random(3, 8, 8),
        "pooler.dense.bias": random(4, 8),
        "classifier.weight": random(5, 2, 8),
    }
    found = merge([({layer: random(0, 16, 8), **head}, config), ({layer: random(6, 16, 8), **other}, config)], "linear")
    assert set(found) == {layer, *head}
    assert all(torch.equal(found[name], value) for name, value in head.items())
    assert torch.equal(found[layer], random(6, 16, 8))


def test_stacks_of_any_name_are_merged_expert_by_expert(merge: Any) -> None:
    names = {f"{LAYER}.moe.gate_proj.weight": (3, 12, 8), f"{LAYER}.moe.down_proj.weight": (3, 8, 12)}
    config = {"model_type": "x", "num_experts": 3}
    models = [
        ({name: random(7 * seed + len(name), *shape) for name, shape in names.items()}, config) for seed in range(3)
    ]
    found = merge(models)
    for name in names:
        for expert in range(3):
            base, *others = (tensors[name][expert] for tensors, _ in models)
            expected = base + merge_task_vectors([one - base for one in others], method="swudi_a")
            torch.testing.assert_close(found[name][expert], expected, rtol=1e-4, atol=1e-6)


def test_a_split_base_and_a_stacked_expert_are_one_name_space(merge: Any) -> None:
    place = f"{LAYER}.mlp.experts"
    shapes = {"gate_proj": (4, 8), "up_proj": (4, 8), "down_proj": (8, 4)}
    config = {"model_type": "qwen3_moe", "num_experts": 3}
    base, tuned = (
        {f"{place}.{e}.{n}.weight": random(50 * s + 3 * e + len(n), *shapes[n]) for e in range(3) for n in shapes}
        for s in (0, 1)
    )

    def stack(name: str) -> torch.Tensor:
        return torch.stack([tuned[f"{place}.{expert}.{name}.weight"] for expert in range(3)])

    stacked = {
        f"{place}.gate_up_proj": torch.cat([stack("gate_proj"), stack("up_proj")], 1),
        f"{place}.down_proj": stack("down_proj"),
    }
    found, expected = (merge([(base, config), (one, config)], "linear") for one in (stacked, tuned))
    assert set(found) == set(expected) and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("key", ["hidden_act", "num_attention_heads", "rope_theta", "model_type"])
def test_another_architecture_names_both_values(merge: Any, key: str) -> None:
    values = {"hidden_act": ("silu", "gelu"), "num_attention_heads": (2, 4), "model_type": ("llama", "mistral")}
    one, other = values.get(key, (10000.0, 500000.0))
    models = [({KEY: random(seed, 8, 8)}, {**LLAMA, key: value}) for seed, value in enumerate((one, other))]
    with pytest.raises(CheckpointError, match=rf"{key} is .*{one}.* and .*{other}.*allow_mixed_architectures"):
        merge(models)
    assert KEY in merge(models, allow_mixed_architectures=True)


def test_an_expert_that_storage_rounded_has_no_task_vector(merge: Any) -> None:
    base = random(0, 16, 16)
    models = [({KEY: base}, LLAMA), ({KEY: base.bfloat16()}, LLAMA), ({KEY: base.half()}, LLAMA)]
    assert torch.equal(merge(models, "iso_c")[KEY], base)


def test_float64_models_keep_differences_below_float32(merge: Any) -> None:
    base, delta = random(0, 16, 16).double(), 1e-11 * random(1, 16, 16).double()
    found = merge([({KEY: base}, LLAMA), ({KEY: base + delta}, LLAMA)], "task_arithmetic")[KEY]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found - base, delta, rtol=1e-3, atol=1e-15)


def test_a_second_file_beside_an_adapter(merge: Any, tmp_path: Path, pipeline: Any, save_model: Any) -> None:
    base = save_model(tmp_path / "base", {KEY: torch.zeros(8, 8)}, LLAMA)
    folder = tmp_path / "adapter"
    folder.mkdir()
    module = "base_model.model." + KEY.removesuffix(".weight")
    factors = {f"{module}.lora_A.weight": torch.ones(1, 8), f"{module}.lora_B.weight": torch.ones(8, 1)}
    save_file(factors, folder / "adapter_model.safetensors")
    save_file({"score.weight": torch.ones(1, 8)}, folder / "reward_head.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
    pipeline({"merge_method": "task_arithmetic", "base_model": str(base), "models": [str(folder)]}, tmp_path / "out")
    from safetensors.torch import load_file

    assert torch.allclose(load_file(tmp_path / "out/model.safetensors")[KEY], 2 * torch.ones(8, 8))


def test_the_output_has_one_chat_template(tmp_path: Path, pipeline: Any, save_model: Any) -> None:
    places = [save_model(tmp_path / f"m{seed}", {KEY: random(seed, 8, 8)}, LLAMA) for seed in (0, 1)]
    for place in places:
        (place / "tokenizer_config.json").write_text('{"chat_template": "old", "tokenizer_class": "X"}')
    recipe = {"merge_method": "linear", "base_model": str(places[0]), "models": [str(places[1])]}
    pipeline({**recipe, "chat_template": "new {{ messages }}"}, tmp_path / "out")
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config.get("chat_template", "new {{ messages }}") == "new {{ messages }}"
    assert (tmp_path / "out/chat_template.jinja").read_text() == "new {{ messages }}"
