"""Recipes of mergekit run as they are: every form is planned, and what is new in them is merged and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eigenmerge.core.cache.result import MergeResult
from eigenmerge.core.planning.plan import Plan
from eigenmerge.core.recipe.recipe import recipe_from_mapping
from eigenmerge.core.steps.make_plan import make_plan
from eigenmerge.core.steps.read_recipe import read_stages

from ..cpu_unit import cpu_seconds
from ..mergekit.forms import FORMS, Form
from ..mergekit.models import TEMPLATE, make_models
from ..mergekit.table import BEGIN, PAGE, make_tables, outcome, recipe_text
from ..stages import merge_stages

Merge = Callable[[str], dict[str, torch.Tensor]]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


def tensors(places: Mapping[str, str], name: str) -> dict[str, torch.Tensor]:
    return load_file(Path(places[name]) / "model.safetensors")


@pytest.fixture
def merge(places: dict[str, str], tmp_path: Path) -> Merge:
    def run(text: str) -> dict[str, torch.Tensor]:
        stages = read_stages(recipe_text(Form("", "", text), places), str(tmp_path / "out"))
        merge_stages(stages, store=str(tmp_path / "store"))
        return load_file(tmp_path / "out" / "model.safetensors")

    return run


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.topic}: {form.name}")
def test_a_form_runs_or_is_refused_with_a_reason(form: Form, places: dict[str, str]) -> None:
    found = outcome(form, places)
    if form.refused is not None:
        assert found.startswith("refused: ") and form.refused in found
    else:
        assert found == ("runs" if form.warns is None else f"runs, with a warning: {form.warns}")


def test_the_page_states_what_is_found(places: dict[str, str]) -> None:
    assert PAGE.read_text().partition(BEGIN)[2].strip() == make_tables(places).strip(), (
        "run python -m tests.mergekit.table"
    )


def test_each_module_has_its_own_weights(merge: Merge, places: dict[str, str]) -> None:
    form = next(form for form in FORMS if form.name == "encoder and decoder")
    merged, one, two = merge(form.text), tensors(places, "t5"), tensors(places, "t5b")
    for name, weight in (
        ("encoder.block.1.layer.0.SelfAttention.q.weight", 0.8),
        ("decoder.final_layer_norm.weight", 0.3),
        ("shared.weight", 0.5),
        ("lm_head.weight", 0.5),
    ):
        torch.testing.assert_close(merged[name], weight * one[name] + (1 - weight) * two[name])


def test_a_slice_is_merged_over_its_own_base(merge: Merge, places: dict[str, str]) -> None:
    form = next(form for form in FORMS if form.name == "another base in one slice")
    merged = merge(form.text)
    a, b, c, base = (tensors(places, name) for name in ("a", "b", "c", "base"))
    own = c[Q_PROJ] + 0.5 * (a[Q_PROJ] - c[Q_PROJ]) + 0.5 * (b[Q_PROJ] - c[Q_PROJ])
    torch.testing.assert_close(merged[Q_PROJ], own)
    last = Q_PROJ.replace(".1.", ".2.")
    torch.testing.assert_close(merged[last], base[last] + 0.5 * (a[last] - base[last]))


def test_an_adapter_on_the_base_is_merged_into_it(merge: Merge, places: dict[str, str]) -> None:
    factors = load_file(Path(places["lora"]) / "adapter_model.safetensors")
    name = "base_model.model." + Q_PROJ.removesuffix(".weight")
    base, a = tensors(places, "base"), tensors(places, "a")
    adapted = base[Q_PROJ] + 2 * factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
    text = "merge_method: task_arithmetic\nbase_model: {base}+{lora}\nmodels: [{a}]\nparameters: {weight: 0.25}\n"
    merged = merge(text)
    torch.testing.assert_close(merged[Q_PROJ], adapted + 0.25 * (a[Q_PROJ] - adapted))
    other = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(merged[other], base[other] + 0.25 * (a[other] - base[other]))


def test_a_kept_base_has_its_adapter(merge: Merge, places: dict[str, str]) -> None:
    text = "merge_method: swudi\nbase_model: {base}+{lora}\nmodels: [{a}]\ndtype: bfloat16\n"
    kept = merge(text + "rules: [{match: 're:.', action: keep_base}]\n")
    factors = load_file(Path(places["lora"]) / "adapter_model.safetensors")
    name = "base_model.model." + Q_PROJ.removesuffix(".weight")
    delta = 2 * factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
    torch.testing.assert_close(kept[Q_PROJ], (tensors(places, "base")[Q_PROJ] + delta).bfloat16())


def test_an_unlisted_base_is_a_point_of_the_karcher_mean(merge: Merge, tmp_path: Path) -> None:
    unlisted = merge("merge_method: karcher\nbase_model: {base}\nmodels: [{a}, {b}]\n")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    listed = merge("merge_method: karcher\nmodels: [{a}, {b}, {base}]\n")
    torch.testing.assert_close(unlisted[Q_PROJ], listed[Q_PROJ])


def test_documents_use_each_others_results_and_resume(places: dict[str, str], tmp_path: Path) -> None:
    text = (
        "merge_method: linear\nmodels: [{model: half, parameters: {weight: 3}}, {model: {c}}]\n"
        "---\nname: half\nmerge_method: linear\nmodels: [{a}, {b}]\nchat_template: chatml\n---\n"
    )
    stages = read_stages(recipe_text(Form("", "", text), places), str(tmp_path / "out"))
    assert [stage.label for stage in stages] == ["'half'", "document 1"]

    def run() -> MergeResult:
        return merge_stages(stages, store=str(tmp_path / "store"))

    run()
    merged = load_file(tmp_path / "out" / "model.safetensors")[Q_PROJ]
    a, b, c = (tensors(places, name)[Q_PROJ] for name in "abc")
    torch.testing.assert_close(merged, 0.75 * (a + b) / 2 + 0.25 * c)
    half = tmp_path / "out.stages" / "half" / "model.safetensors"
    before = half.stat().st_mtime_ns
    assert run().already_complete
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert run().shards_done == 0 and half.stat().st_mtime_ns == before
    assert "im_start" in (tmp_path / "out" / "chat_template.jinja").read_text()


def test_the_template_of_most_models_is_taken(places: dict[str, str]) -> None:
    models = [places[name] for name in ("a", "b", "c")]
    plan = make_plan(recipe_from_mapping({"merge_method": "linear", "models": models, "chat_template": "auto"}))
    content = {side.name: side.content for side in plan.side_files}
    assert content["chat_template.jinja"] == TEMPLATE.encode()


def test_the_time_of_a_plan_is_linear_in_the_number_of_slices(places: dict[str, str]) -> None:
    def seconds(count: int) -> float:
        slices = [{"sources": [{"model": places["a"], "layer_range": [i % 3, i % 3 + 1]}]} for i in range(count)]
        recipe = recipe_from_mapping({"merge_method": "passthrough", "slices": slices})
        plans: list[Plan] = []
        taken = cpu_seconds(lambda: plans.append(make_plan(recipe)))
        assert plans[0].num_tensors == 9 * count + 3
        return taken

    seconds(10)
    assert seconds(240) < 12 * seconds(60), "4 times the slices"


def test_named_templates_render(places: dict[str, str]) -> None:
    jinja2 = pytest.importorskip("jinja2")
    from eigenmerge.core.planning.inputs.chat_templates import NAMED_TEMPLATES

    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    expected = {
        "chatml": "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages),
        "llama3": "<s>"
        + "".join(f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}<|eot_id|>" for m in messages),
        "mistral": "<s> [INST] S\n\nU [/INST] A</s>",
        "alpaca": "S\n\n### Instruction:\nU\n\n### Response:\nA\n\n",
        "exaone": "[|system|]S[|endofturn|]\n[|user|]U\n[|assistant|]A[|endofturn|]\n",
    }
    assert set(expected) == set(NAMED_TEMPLATES)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    for name, text in expected.items():
        template = environment.from_string(NAMED_TEMPLATES[name])
        assert template.render(messages=messages, bos_token="<s>", eos_token="</s>") == text, name
        asked = template.render(messages=messages[:2], bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
        assert re.search(r"(assistant|Response|INST)\S*\s*$", asked), name


def test_a_template_list_in_the_tokenizer_config(tmp_path: Path, places: dict[str, str]) -> None:
    config = Path(places["c"]) / "tokenizer_config.json"
    before = config.read_text()
    entries = [{"name": "tool_use", "template": "T {{ m }}"}, {"name": "default", "template": " D {{ m }} "}]
    config.write_text(json.dumps({"chat_template": entries}))
    try:
        recipe: dict[str, Any] = {"merge_method": "linear", "models": [places["c"]], "chat_template": "auto"}
        plan = make_plan(recipe_from_mapping(recipe))
    finally:
        config.write_text(before)
    assert {side.name: side.content for side in plan.side_files}["chat_template.jinja"] == b"D {{ m }}"
