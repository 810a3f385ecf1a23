"""Loading checkpoints: intact ones pass every check, and each defect is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.steps.loading import model_class
from eigenmerge.core.steps.loading.check_loading import check_loading
from eigenmerge.core.steps.loading.load_check import LoadCheck, LoadOptions
from eigenmerge.core.storage.store import Store

from ....small_models import Models, add_tokenizer

Check = Callable[..., dict[str, LoadCheck]]


def change_weights(path: Path, change: Any) -> None:
    """Apply a function to the dictionary of a file's tensors."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def change_json(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.fixture
def loadable(make_models: Callable[..., Models]) -> Models:
    models = make_models(num_experts=2, layers=2)
    for folder in (models.base, *models.experts):
        add_tokenizer(folder)
    return models


@pytest.fixture
def check(loadable: Models) -> Check:
    """Load the base of the models, as a checkpoint that was merged from two experts."""

    def run(place: Path | str = loadable.base, perplexity: bool | None = False, **load: Any) -> dict[str, LoadCheck]:
        experts = [str(path) for path in loadable.experts]
        base = str(loadable.root / "base")
        found = check_loading(str(place), None, LoadOptions(perplexity=perplexity, **load), base=base, experts=experts)
        return {one.name: one for one in found}

    return run


def problem(found: dict[str, LoadCheck], name: str) -> str:
    assert found[name].outcome == "failed", found
    return "\n".join(found[name].problems)


def test_an_intact_checkpoint(check: Check, loadable: Models) -> None:
    found = check(loadable.experts[0], generate=5, perplexity=None)
    assert {name: one.outcome for name, one in found.items()} == dict.fromkeys(
        ("values", "keys", "tokenizer", "chat template", "generation", "perplexity"), "ok"
    )
    assert found["values"].detail == "no NaN or Inf in 21 tensors"
    assert found["keys"].detail == "LlamaForCausalLM loads all 21"
    assert found["generation"].detail.startswith("5 tokens: ")
    assert "; base " in found["perplexity"].detail and ", expert 2 " in found["perplexity"].detail
    assert "perplexity" not in check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_nan_and_inf_are_counted(check: Check, loadable: Models, dtype: torch.dtype) -> None:
    """The bad value is the last of 3 million, so that it is in another chunk than the first."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        values = torch.zeros(3_000_000)
        values[-1] = float("nan")
        if dtype != torch.float8_e4m3fn:  # has no Inf
            values[:2] = float("inf")
        tensors["model.norm.weight"] = values.to(dtype)

    change_weights(loadable.base / "model.safetensors", change)
    num_inf = 0 if dtype == torch.float8_e4m3fn else 2
    assert problem(check(), "values") == f"model.norm.weight: has 1 NaN and {num_inf} Inf"


def test_missing_unexpected_and_misshapen_tensors(check: Check, loadable: Models) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2)
        tensors["model.norm.weight"] = torch.ones(3)

    place = loadable.experts[1]
    change_weights(place / "model.safetensors", change)
    assert problem(check(place, generate=1), "keys").splitlines() == [
        "model.layers.1.mlp.up_proj.weight: LlamaForCausalLM needs it, and it is in no file",
        "model.layers.7.mlp.up_proj.weight: LlamaForCausalLM has no such weight",
        "model.norm.weight: has shape [3], LlamaForCausalLM expects [32]",
    ]
    found = check(place, generate=1)["generation"]
    assert (found.outcome, found.requested) == ("not checked", True), "a broken model is not used"


def test_a_tied_weight_may_be_absent(check: Check, loadable: Models) -> None:
    place = loadable.experts[0]
    change_weights(place / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" in problem(check(place), "keys")
    change_json(place / "config.json", tie_word_embeddings=True)
    assert check(place)["keys"].outcome == "ok"


def test_what_the_base_lacks_too_is_no_defect_of_the_merge(check: Check, loadable: Models) -> None:
    for place in (loadable.base, loadable.experts[0]):
        change_weights(place / "model.safetensors", lambda tensors: tensors.update(extra=torch.ones(2)))
    assert "where also extra: LlamaForCausalLM has no such weight" in check(loadable.experts[0])["keys"].detail
    alone = check_loading(str(loadable.base), None, LoadOptions())
    assert alone[1].problems == ("extra: LlamaForCausalLM has no such weight",)


def test_parts_of_a_mixture_that_cannot_be_joined(check: Check, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(num_hidden_layers=1, vocab_size=40, num_local_experts=2, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "mixture")
    assert check(tmp_path / "mixture")["keys"].outcome == "ok"
    part = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    change_weights(tmp_path / "mixture/model.safetensors", lambda tensors: tensors.pop(part))
    assert "model.layers.0.mlp.experts.gate_up_proj: MixtralForCausalLM cannot build it" in problem(
        check(tmp_path / "mixture"), "keys"
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{}", "tokenizer: cannot be loaded: "),
        ("not JSON", "tokenizer: cannot be loaded: "),
    ],
)
def test_a_damaged_tokenizer(check: Check, loadable: Models, content: str, line: str) -> None:
    (loadable.base / "tokenizer.json").write_text(content)
    assert problem(check(), "tokenizer").startswith(line)


def test_a_token_beyond_the_embeddings(check: Check, loadable: Models) -> None:
    path = loadable.base / "tokenizer.json"
    path.write_text(path.read_text().replace('"t": 20', '"t": 50'))
    assert problem(check(), "tokenizer") == "tokenizer: makes token 50, the embeddings have 50 rows"


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ raise_exception('no system message') }}", "chat template: cannot be rendered: no system message"),
        ("{% for m in messages %}", "chat template: cannot be rendered: Unexpected end of template"),
        ("{{ messages[0]['role'] }}", "chat template: cannot be rendered: the message is not in its result"),
    ],
)
def test_templates_that_cannot_be_rendered(check: Check, loadable: Models, template: str, line: str) -> None:
    add_tokenizer(loadable.base, template)
    assert problem(check(), "chat template").startswith(line)


def test_a_template_that_takes_lists_of_parts(check: Check, loadable: Models) -> None:
    add_tokenizer(loadable.base, "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}")
    assert check()["chat template"].outcome == "ok"


def test_a_model_with_weights_at_the_wrong_place(check: Check, loadable: Models, tmp_path: Path) -> None:
    """Keys and values of such a model are right; only using it shows the defect."""
    place = Path(shutil.copytree(loadable.base, tmp_path / "merged"))
    for factor, line in ((30, "more than 10 times the largest of its sources (base "), (1000, "perplexity: is inf")):
        change_weights(
            place / "model.safetensors",
            lambda tensors, factor=factor: tensors.update(
                {"lm_head.weight": factor * tensors["lm_head.weight"].flip(0).contiguous()}
            ),
        )
        assert line in problem(check(place, perplexity=None), "perplexity")


def test_code_of_the_model_is_executed_only_on_request(check: Check, loadable: Models, tmp_path: Path) -> None:
    place, witness = loadable.experts[0], tmp_path / "executed"
    (place / "modeling_own.py").write_text(
        f"open({str(witness)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    change_json(place / "config.json", architectures=["OwnForCausalLM"], model_type="own", auto_map=names)
    found = check(place)["keys"]
    assert found.outcome == "not checked" and "--trust-remote-code" in found.detail and not witness.exists()
    found = check(place, run_model_code=True)["keys"]
    assert found.detail == "OwnForCausalLM loads all 21" and witness.exists()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"architectures": ["UnknownForCausalLM"]}, "has no UnknownForCausalLM (model_type 'llama')"),
        ({"architectures": None}, "config.json names no architecture"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantized (gptq)"),
    ],
)
def test_what_cannot_be_checked_is_said(check: Check, loadable: Models, keys: Any, reason: str) -> None:
    change_json(loadable.base / "config.json", **keys)
    found = check()["keys"]
    assert found.outcome == "not checked" and reason in found.detail, found


def test_without_transformers_one_line_says_what_was_not_checked(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise model_class.PackageNotFoundError(name)

    monkeypatch.setattr(model_class, "version", version)
    found = check()
    assert list(found) == ["values", "keys, tokenizer, chat template"]
    last = found["keys, tokenizer, chat template"]
    assert "transformers is not installed: pip install 'eigenmerge[load]'" in last.detail and not last.requested
    assert list(check(generate=2))[1] == "keys, tokenizer, chat template, generation"


def test_a_remote_checkpoint_is_copied(check: Check, loadable: Models) -> None:
    remote = Store("memory://loading/model")
    for path in loadable.experts[0].iterdir():
        remote.write(path.name, path.read_bytes())
    found = check("memory://loading/model", perplexity=None, generate=3)
    assert found["keys"].outcome == found["generation"].outcome == "ok"
    assert "perplexity" not in found, "only on request: its sources or the model would be downloaded"


def test_an_adapter(check: Check, loadable: Models, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(loadable.base)
    place = tmp_path / "adapter"
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(place)
    found = check(place, generate=2, perplexity=True)
    assert [one.outcome for one in found.values()] == ["ok", "ok", "not checked", "ok", "ok"], found
    stem, factor = "base_model.model.model.layers", "self_attn.q_proj.lora_A.weight"
    change_weights(
        place / "adapter_model.safetensors",
        lambda tensors: tensors.update({f"{stem}.8.q.lora_A.weight": tensors.pop(f"{stem}.0.{factor}")}),
    )
    assert problem(check(place), "keys").splitlines() == [
        f"{stem}.0.{factor}: PEFT needs it, and it is in no file",
        f"{stem}.8.q.lora_A.weight: PEFT finds no module for it",
    ]


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        check_loading(str(tmp_path / "nothing"), None, LoadOptions())
