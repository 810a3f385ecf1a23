"""The model card: metadata as the Hub's own reader parses it, and the facts in its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from eigenmerge.core.cache.reports import ShardReport
from eigenmerge.core.output.card_rules import is_hub_id, metadata_problems
from eigenmerge.core.output.input_cards import InputCard
from eigenmerge.core.output.model_card import SWEEP_DATA, build_model_card
from eigenmerge.core.planning.plan import Plan, RunSettings, TensorPlan

from .examples import adapter, buffer, make_checkpoint, model, norm, report, small_plan, weight


def card_of(plan: Plan, reports: Sequence[ShardReport] | None = None, *states: dict[str, Any]) -> str:
    """The card of a plan whose models are on the Hub where their name has that form; `states` are their metadata."""
    models = [*((plan.base,) if plan.base else ()), *plan.experts]
    cards = [
        InputCard(one.name, one.name if is_hub_id(one.name) else None, state)
        for one, state in zip(models, states or [{}] * len(models), strict=True)
    ]
    return build_model_card(plan, reports or make_checkpoint(plan).reports, cards).decode()


def stated(*states: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a merge whose base and two experts state this."""
    card = card_of(small_plan(), None, *states)
    assert metadata_problems(card) == []
    return metadata_of(card)


def card_with(*tensors: TensorPlan, **keys: Any) -> str:
    """The card of a checkpoint of these tensors; `keys` are fields of their reports."""
    plan = small_plan([tensors])
    (shard,) = make_checkpoint(plan).reports
    return card_of(plan, [replace(shard, tensors=tuple(report(tensor, **keys) for tensor in tensors))])


def metadata_of(card: str) -> dict[str, Any]:
    return ModelCard(card).data.to_dict()


def test_the_metadata_lists_all_models_of_a_merge() -> None:
    assert metadata_of(card_of(small_plan())) == {
        "base_model": ["org/base", "org/a", "org/b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["eigenmerge", "merge", "swudi"],
    }


def test_an_adapter_belongs_to_its_base() -> None:
    found = metadata_of(card_with(adapter("w")))
    assert (found["base_model"], found["library_name"]) == ("org/base", "peft")
    assert found["base_model_relation"] == "adapter"


def test_without_a_base_the_experts_are_the_models() -> None:
    card = card_of(small_plan(base=False))
    assert metadata_of(card)["base_model"] == ["org/a", "org/b"]
    assert "2 experts of `org/a` merged with" in card


def test_models_that_are_not_on_the_hub_are_no_base_model() -> None:
    """The Hub refuses a card whose base_model is a path."""
    plan = small_plan(experts=(model("/home/me/models/a"), model("org/b"), model("./b"), model("s3://bucket/c")))
    card = card_of(plan)
    assert metadata_of(card)["base_model"] == ["org/base", "org/b"] and metadata_problems(card) == []
    nowhere = metadata_of(card_of(small_plan(base=False, experts=(model("a"), model("b")))))
    assert "base_model" not in nowhere and "base_model_relation" not in nowhere


@pytest.mark.parametrize("name", ["on", "1e3", "a: b", "- a", "Grüße", "模型", "x # y", "@org/model", "'quoted'", "~"])
def test_values_that_yaml_could_misread(name: str) -> None:
    card = card_of(small_plan(), None, *[{"datasets": [name]}] * 3)
    assert metadata_of(card)["datasets"] == [name] and metadata_problems(card) == []
    assert card.isascii() == name.isascii(), "characters outside ASCII are not escaped"


def test_a_license_on_which_all_inputs_agree() -> None:
    assert stated(*[{"license": "apache-2.0"}] * 3)["license"] == "apache-2.0"
    assert stated(*[{"license": ["mit"]}] * 2, {"license": "mit"})["license"] == "mit"
    named = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    assert named.items() <= stated(*[named] * 3).items()


@pytest.mark.parametrize(
    "states",
    [
        [{"license": "mit"}, {"license": "mit"}, {"license": "llama3"}],
        [{"license": "mit"}, {"license": "mit"}, {}],
        [{"license": "my own license"}] * 3,
        [{"license": "other"}] * 3,
        [{"license": ["mit", "apache-2.0"]}] * 3,
        [{"license": {"name": "mit"}}] * 3,
    ],
)
def test_no_license_where_the_inputs_do_not_agree(states: list[dict[str, Any]]) -> None:
    assert "license" not in stated(*states)


def test_the_licenses_of_the_inputs_are_in_the_text() -> None:
    card = card_of(small_plan(), None, {"license": "llama3"}, {"license": "mit"}, {})
    assert "The inputs state these licenses: llama3, mit; 1 of 3 state none." in card


def test_languages_data_sets_and_library() -> None:
    state = {
        "language": ["en", "no", False, "English"],
        "datasets": ["a/b", "c"],
        "library_name": "sentence-transformers",
    }
    found = stated(*[state] * 3)
    assert (found["language"], found["datasets"]) == (["en", "no"], ["a/b", "c"])
    assert found["library_name"] == "sentence-transformers"
    other = stated(state, state, {"language": "de", "datasets": ["c"]})
    assert "language" not in other and "datasets" not in other and other["library_name"] == "transformers"


def test_measured_results_are_a_model_index() -> None:
    plan = small_plan()
    results = {"wikitext": {"perplexity": 8.5, "bits": 1.25}, SWEEP_DATA: {"norm_of_all": 0.5}}
    card = build_model_card(plan, make_checkpoint(plan).reports, (), results).decode()
    assert metadata_problems(card) == []
    found = ModelCard(card).data.eval_results
    assert found is not None
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in found] == [
        ("wikitext", "perplexity", 8.5),
        ("wikitext", "bits", 1.25),
        ("sweep", "norm_of_all", 0.5),
    ]
    assert (
        "| wikitext | perplexity | 8.5 |" in card and "\nsweep: the items that the parameters were chosen with" in card
    )
    assert "sweep" not in card_of(plan) and "| data |" not in card_of(plan)


def test_the_method_and_the_arithmetic() -> None:
    card = card_of(small_plan(recipe={"merge_method": "ties"}, settings=RunSettings(arithmetic="float64")))
    assert "# Merged model (ties)" in card and "method `ties`, arithmetic in float64." in card
    assert "2 experts of `org/base` merged with [Eigenmerge]" in card


def test_weights_of_the_experts() -> None:
    tensors = [weight("a", weights=(1.0, 0.25)), weight("b", weights=(1.0, 0.75)), norm("n")]
    card = card_with(*tensors)
    assert "| org/a | 1 |" in card and "| org/b | 0.25 to 0.75 |" in card
    assert "| org/a | 1 |" in card_with(norm("n")), "an expert without a weight has weight 1"


def test_the_number_of_tensors_by_what_was_done() -> None:
    card = card_with(weight("a"), weight("b", method="ties"), weight("c"), norm("n"), buffer("s"))
    (line,) = [line for line in card.splitlines() if line.startswith("What happened to the tensors")]
    assert line.endswith(": 2 swudi, 1 ties, 1 mean, 1 copy.")


def test_ranks_and_energies() -> None:
    plan = small_plan([[weight(name) for name in "abc"]])
    (shard,) = make_checkpoint(plan).reports
    tensors = [
        report(tensor, rank=rank, energy=energy)
        for tensor, rank, energy in zip(plan.shards[0].tensors, (7, 2, 4), (0.5, 0.999, 0.25), strict=True)
    ]
    card = card_of(plan, [replace(shard, tensors=tuple(tensors))])
    assert (
        "Directions kept per layer: 2 to 7, median 4; they hold 25.0% to 99.9% of each layer's eigenvalue sum." in card
    )
    assert "Directions kept" not in card_with(norm("n"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (0.25, "The adapter's rank leaves out at most 25.00% of a weight's merged delta (Frobenius norm)."),
        (0.0, "An adapter whose rank holds the merged deltas exactly."),
        (None, None),
    ],
)
def test_the_error_of_an_adapters_rank(error: float | None, line: str | None) -> None:
    lines = card_with(adapter("w"), truncation_error=error).splitlines()
    assert line in lines if line else not any("adapter" in one.lower() and "rank" in one for one in lines)


def test_the_recipe_can_be_copied_from_the_card() -> None:
    recipe = {"merge_method": "swudi", "models": [{"model": "org/a", "parameters": {"weight": [0.1, 0.9]}}], "seed": 3}
    card = card_of(small_plan(recipe=recipe))
    text = card.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(text) == recipe


def test_warnings_of_the_plan_are_quoted() -> None:
    assert card_of(small_plan(warnings=("first", "second"))).endswith("> first\n\n> second\n")
    assert not [line for line in card_of(small_plan()).splitlines() if line.startswith(">")]
