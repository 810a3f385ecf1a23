"""Adapters of several families, read as PEFT writes them and written as PEFT reads them: stacks, embeddings, biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ..quiet_libraries import suppress_messages

Pipeline = Callable[..., Any]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 20,
}
CAUSAL = {"task_type": "CAUSAL_LM"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with suppress_messages():
        yield


def make_adapters(root: Path, make: Callable[[], Any], options: list[dict[str, Any]]) -> tuple[Path, list[Path]]:
    """Write a base, and for each options of LoraConfig an adapter a<i> and the same expert merged by PEFT, full<i>."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = make()
    model.save_pretrained(root / "base")
    for index, own in enumerate(options):
        torch.manual_seed(index + 1)
        adapted = get_peft_model(type(model).from_pretrained(root / "base"), LoraConfig(**own))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
                elif parameter.requires_grad:  # biases and saved modules
                    parameter.add_(0.05 * torch.randn(parameter.shape))
        adapted.save_pretrained(root / f"a{index}", save_embedding_layers=False)
        adapted.double().merge_and_unload(safe_merge=True).save_pretrained(root / f"full{index}")
    return root / "base", [root / f"a{index}" for index in range(len(options))]


def recipe(base: Path, experts: list[Path], method: str, **keys: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": [str(path) for path in experts],
        "arithmetic": "float64",
        **keys,
    }


def largest_difference(one: Path, other: Path) -> float:
    found, expected = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert set(found) == set(expected)
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    own = {"intermediate_size": 24, "moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **own, head_dim=8))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=8, num_local_experts=3, num_experts_per_tok=2))


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    own = {"intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"]}
    return GptOssForCausalLM(GptOssConfig(**SIZES, **own, head_dim=8))


@pytest.mark.parametrize(
    ("make", "method"), [(qwen3_moe, "average"), (mixtral, "ties"), (gpt_oss, "ties"), (gpt_oss, "swudi_a")]
)
def test_adapters_of_stacked_experts(make: Callable[[], Any], method: str, pipeline: Pipeline, tmp_path: Path) -> None:
    """Qwen3 and Mixtral store their experts one by one, GPT-OSS stacked and (in, out); PEFT adapts stacks of all."""
    both = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    options = [
        {**both, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], **CAUSAL},
        {**both, "target_parameters": ["down_proj"], "rank_pattern": {r".*\.down_proj": 3}, **CAUSAL},
    ]
    base, adapters = make_adapters(tmp_path, make, options)
    pipeline(recipe(base, adapters, method), tmp_path / "from-adapters")
    merged = [tmp_path / f"full{index}" for index in range(2)]
    pipeline(recipe(base, merged, method), tmp_path / "from-full", tmp_path / "other-store")
    assert largest_difference(tmp_path / "from-adapters", tmp_path / "from-full") < 1e-6
    assert largest_difference(tmp_path / "from-adapters", base) > 0.01


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8, "tie_word_embeddings": False}
    return GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0))


def opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    own = {"ffn_dim": 24, "max_position_embeddings": 16, "word_embed_proj_dim": 16, "tie_word_embeddings": False}
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    return OPTForCausalLM(OPTConfig(**sizes, **own, pad_token_id=0, bos_token_id=1, eos_token_id=2))


def t5() -> Any:
    """The encoder alone: its embedding is tied to no output projection."""
    from transformers import T5Config, T5EncoderModel

    own = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    return T5EncoderModel(T5Config(**own))


def classifier() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    own = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(**own, vocab_size=20, max_position_embeddings=8))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (gpt2, {"target_modules": ["c_attn", "wte"], "bias": "all", "fan_in_fan_out": True, **CAUSAL}),
        (opt, {"target_modules": ["q_proj", "embed_tokens"], "bias": "lora_only", **CAUSAL}),
        (t5, {"target_modules": ["q", "shared"], "task_type": "FEATURE_EXTRACTION"}),
        (classifier, {"target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}),
    ],
    ids=["gpt2", "opt", "t5", "classifier"],
)
def test_a_written_adapter_has_the_logits_of_the_dense_merge(
    make: Callable[[], Any], options: dict[str, Any], pipeline: Pipeline, tmp_path: Path
) -> None:
    from peft import PeftModel

    experts = [{"r": 2, "lora_alpha": 4, **options}, {"r": 3, "lora_alpha": 3, **options}]
    base, adapters = make_adapters(tmp_path, make, experts)
    kind = type(make())
    pipeline(recipe(base, adapters, "average"), tmp_path / "dense")
    pipeline(recipe(base, adapters, "average", output="adapter"), tmp_path / "adapter")
    inputs = {"input_ids": torch.tensor([[3, 7, 11, 2]])}

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**inputs)[0]

    plain = kind.from_pretrained(base)
    before = logits(plain)
    expected = logits(kind.from_pretrained(tmp_path / "dense"))
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    if kind.__name__.startswith("T5"):  # PEFT wraps `shared`, which T5 does not call: it calls tied copies
        loaded = loaded.merge_and_unload()
    assert float((logits(loaded) - expected).abs().max()) < 1e-5
    assert float((before - expected).abs().max()) > 1e-3
