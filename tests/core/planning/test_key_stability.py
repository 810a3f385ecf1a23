"""Keys of built-in methods are frozen: a store that an earlier version wrote is reused, not computed again.

A key may change only together with the numbers it stands for (`algorithm_version`, `PART_VERSION`); update its line
here in the same commit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from eigenmerge.core.formats.digest import hash_json
from eigenmerge.core.listing import ModelListing
from eigenmerge.core.numerics.registry import built_in_methods
from eigenmerge.core.planning.plan import MatrixView, Plan, TensorPlan, spectrum_keys

NEEDED = {"slerp": {"t": 0.5}, "nearswap": {"t": 0.1}}
KEYS: dict[str, str] = {
    "ace": "a00820b9095a3916",
    "arcee_fusion": "16de888ffb1bdb68",
    "average": "70f301d76b48a33c",
    "breadcrumbs": "c4ab74bc65dc87d6",
    "breadcrumbs_ties": "acd6fffdc9ee4c73",
    "cart": "238eb31f9e849e25",
    "core_space": "a06b5b6575b3567d",
    "dare_linear": "dbbabfa869e04ab8",
    "dare_ties": "f48f8f2cabba4e75",
    "dc_merge": "f99ddae869e46a91",
    "della": "d5310be11ff07ef0",
    "della_linear": "2907510ca5321925",
    "iso_c": "b60d4bd248a5b447",
    "iso_cts": "b140787a385981ac",
    "karcher": "5de165a96b7d8b2d",
    "knots": "e10d0622814f4b12",
    "linear": "44fa52ddeef916b8",
    "model_stock": "3803abf57515cfbd",
    "multislerp": "2241d808fa9b2278",
    "nearswap": "61a2e05a66d68511",
    "nuslerp": "ed9b1905f7efad87",
    "optmerge": "540792e7302ee8c0",
    "passthrough": "211ba4738ba5391f",
    "ram": "f8fd6ac9091e2ed5",
    "ramplus_tl": "dc21f06d9dea422b",
    "sce": "39472eb8a7782edb",
    "slerp": "22c2b910295f5887",
    "star": "4c2e4b43f63e0926",
    "subspace_boosting": "53a8c8c58ad702ae",
    "swudi": "b2b27bc36e5975b2",
    "swudi_a": "5b5738e192a068aa",
    "swudi_soft": "84aa2b4bb2001191",
    "task_arithmetic": "70578b9084cfd174",
    "ties": "e584c36696858039",
    "tsv_m": "f7c96c0abbe9e199",
    "wudi": "8afee2e1a8be08a3",
    "wudi_pinv": "4b59abc21a28c1cc",
}


@pytest.mark.parametrize("method", sorted(built_in_methods()))
def test_keys_of_built_in_methods_are_frozen(method: str, model: Any, llama_tensors: Any, plan_of: Any) -> None:
    chosen = built_in_methods()[method]
    experts = [f"e{index}" for index in range(chosen.other_experts or chosen.max_experts or 3)]
    needed = json.dumps(NEEDED.get(method, {}))
    text = f"merge_method: {method}\nbase_model: base\nmodels: [{', '.join(experts)}]\nparameters: {needed}"
    plan = plan_of(text, *(model(name, llama_tensors()) for name in ("base", *experts)))
    keys = [[shard.part_key, [spectrum_keys(tensor) for tensor in shard.tensors]] for shard in plan.shards]
    assert hash_json([plan.run_key, keys])[:16] == KEYS[method]


@dataclass(frozen=True)
class FrozenKeys:
    """The keys of one plan, each list hashed: run key, part keys, spectrum keys (views included), other keys."""

    run: str
    parts: str
    spectra: str
    others: str  # of sums, calibrations and alignments


def frozen_keys(plan: Plan) -> FrozenKeys:
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors]
    matrices: list[TensorPlan | MatrixView] = [matrix for tensor in tensors for matrix in (tensor, *tensor.views)]
    others = [[matrix.sums_key, matrix.calibration_key] for matrix in matrices]
    return FrozenKeys(
        plan.run_key[:16],
        hash_json([shard.part_key for shard in plan.shards])[:16],
        hash_json([spectrum_keys(tensor) for tensor in tensors])[:16],
        hash_json([others, [tensor.alignment_key for tensor in tensors]])[:16],
    )


def make_models(form: str, model: Any, adapter: Any, llama_tensors: Any) -> list[ModelListing]:
    """base, a and b in one of the forms that keys depend on."""
    names = ("base", "a", "b")
    at = "layers.0"
    if form == "llama":
        return [model(name, llama_tensors(), config={"vocab_size": 32, "num_hidden_layers": 2}) for name in names]
    if form == "lora":
        factors = {f"base_model.model.{at}.w.lora_A.weight": (2, 6), f"base_model.model.{at}.w.lora_B.weight": (8, 2)}
        base = model("base", {f"{at}.w.weight": (8, 6), f"{at}.norm.weight": (6,)})
        return [base, *(adapter(name, factors) for name in names[1:])]
    if form == "mixture":
        tensors = {
            f"{at}.mlp.experts.gate_up_proj": (3, 4, 5),
            f"{at}.attn.qkv.weight": (12, 4),
            f"{at}.conv.weight": (3, 2, 2, 2),
            f"{at}.steps": (1,),
        }
        return [model(name, tensors, dtype={f"{at}.steps": "I64", f"{at}.attn.qkv.weight": "BF16"}) for name in names]
    assert form == "vocabularies"
    rows = {"base": 2, "a": 3, "b": 4}
    return [model(name, {"embed_tokens.weight": (rows[name], 4), "w.weight": (4, 4)}) for name in names]


def tokenizer(*tokens: str) -> bytes:
    vocab = {token: row for row, token in enumerate(tokens)}
    return json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []}).encode()


TOKENIZERS = {
    "/models/base/tokenizer.json": tokenizer("x", "y"),
    "/models/a/tokenizer.json": tokenizer("x", "y", "z"),
    "/models/b/tokenizer.json": tokenizer("y", "x", "u", "z"),
}
PLANS: dict[str, tuple[str, str, FrozenKeys]] = {
    "swudi_a": (
        "llama",
        "merge_method: swudi_a",
        FrozenKeys("405ad63b35c05910", "f87ffab780833573", "0ff51b7fae3fa557", "a438d70c4a7d436b"),
    ),
    "ties": (
        "llama",
        "merge_method: ties\nparameters: {density: 0.5, weight: [0, 1]}",
        FrozenKeys("4d05391daaea2a74", "2c179d0fa3083d12", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "average": (
        "llama",
        "merge_method: average\nparameters: {scale: 0.5}",
        FrozenKeys("949dd85ff9193e48", "1bc8bb40cdb268c5", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "calibration": (
        "llama",
        "merge_method: swudi\ncalibration: {svc: {alpha: 1}}",
        FrozenKeys("568c241bca53958f", "14f2cd1b5b8faf2a", "0ff51b7fae3fa557", "fe4d938b2ce900fc"),
    ),
    "kept sums": (
        "llama",
        "merge_method: swudi\nkeep_sums: true",
        FrozenKeys("88fdd6ead285d66c", "f03dd4287aef8003", "196246f57a69110d", "083577b26d85626d"),
    ),
    "alignment": (
        "llama",
        "merge_method: swudi\nparameters: {alignment_rho: 1}\ncalibration: {svc: }",
        FrozenKeys("ef88dbbf45665ced", "b298a15c3c948581", "0ff51b7fae3fa557", "cddd12b8f38b2c88"),
    ),
    "rules": (
        "llama",
        "merge_method: tsv_m\nembeddings: merge\nvectors: base\nrules:\n"
        "  - {match: 're:layers.0.mlp', method: ties, parameters: {density: 0.2}}\n"
        "  - {match: '*.q_proj.weight', action: mean}\n  - {match: '*.k_proj.weight', action: keep_base}",
        FrozenKeys("923a72bf82e69ea9", "7251685979e795bd", "51bf2190d75be1f8", "a438d70c4a7d436b"),
    ),
    "slices": (
        "llama",
        "merge_method: linear\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2], parameters: {weight: 3}}]\n"
        "  - sources: [{model: b, layer_range: [1, 2]}, {model: a, layer_range: [0, 1]}]",
        FrozenKeys("fe79b72e33c82541", "489d72680439c4b9", "96bb5fe26d6e7f3a", "709682b2cb914096"),
    ),
    "bfloat16, seed": (
        "llama",
        "merge_method: dare_ties\ndtype: bfloat16\nseed: 7",
        FrozenKeys("02d80a3f3343a4a2", "95762c5f4fbc1267", "bb45d92a89f3927d", "a438d70c4a7d436b"),
    ),
    "LoRA": (
        "lora",
        "merge_method: swudi",
        FrozenKeys("c125f55654896f7d", "063455232ec42793", "ee2f3be845e451f2", "cc7b6fd7f8207928"),
    ),
    "LoRA, task_arithmetic": (
        "lora",
        "merge_method: task_arithmetic",
        FrozenKeys("ce77dda1514431f5", "68c01346a6f95e8e", "643d5437104296e2", "cc7b6fd7f8207928"),
    ),
    "adapter output": (
        "lora",
        "merge_method: swudi\noutput: {format: adapter, rank: 3}",
        FrozenKeys("7607467e627cdbd9", "8467feb1e55de24d", "924763f43269a9d8", "65e0bf31d7a820be"),
    ),
    "mixture, qkv, convolution": (
        "mixture",
        "merge_method: swudi\nqkv: split\nconv: matrix",
        FrozenKeys("f8b978940eea0e77", "d320ebf7da20e3fa", "62ff295e046dd0c2", "68e23d9a8278b21e"),
    ),
    "mixture, kept sums": (
        "mixture",
        "merge_method: swudi\nkeep_sums: true\narithmetic: float64",
        FrozenKeys("d6a610389e6ce22b", "6b6f234ea9629276", "9a99c0b5d5fcf666", "510e50f03dc261e3"),
    ),
    "union": (
        "vocabularies",
        "merge_method: swudi\ntokenizer_source: union",
        FrozenKeys("51cadd043c5c16bd", "e9459688fa53eb01", "f02d2cec0c6f57aa", "cc7b6fd7f8207928"),
    ),
    "base vocabulary": (
        "vocabularies",
        "merge_method: ties\ntokenizer_source: base",
        FrozenKeys("1fb399d18adafdec", "042d638630a1af56", "643d5437104296e2", "cc7b6fd7f8207928"),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_keys_of_plans_are_frozen(name: str, model: Any, adapter: Any, llama_tensors: Any, plan_of: Any) -> None:
    form, recipe, expected = PLANS[name]
    models = make_models(form, model, adapter, llama_tensors)
    experts = "" if "slices:" in recipe else "models: [a, b]\n"
    plan = plan_of(f"base_model: base\n{experts}{recipe}", *models, side_file_contents=TOKENIZERS)
    assert frozen_keys(plan) == expected
