"""The rules of the Hub for cards: right ones have no problem, and each wrong value has one line."""

from __future__ import annotations

import pytest

from eigenmerge.core.output.card_rules import is_hub_id, metadata_problems

RIGHT = """---
license: apache-2.0
language: [en, pt-BR, code]
base_model: [meta-llama/Llama-3.1-8B, me/x_1]
base_model_relation: merge
tags: [merge]
model-index:
- name: x
  results:
  - task: {type: text-generation}
    dataset: {type: wikitext, name: wikitext}
    metrics: [{type: perplexity, value: 8.5}]
---
# A card
"""


def test_a_card_without_problems() -> None:
    assert metadata_problems(RIGHT) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("me/x_1", "/models/x", "base_model '/models/x' is no id of the Hub, expected owner/name"),
        ("me/x_1", "a/b/c", "base_model 'a/b/c' is no id"),
        ("relation: merge", "relation: merged", "base_model_relation 'merged' is not one of adapter, finetune"),
        ("apache-2.0", "Apache 2", "license 'Apache 2' is no id of the Hub"),
        ("[en,", "[English,", "language 'English' is no language code"),
        ("tags: [merge]", "tags: merge", "tags: expected a list of texts"),
        ("tags: [merge]", "tags: [1]", "tags: expected a list of texts"),
        ("- task: {type: text-generation}", "- task: {}", "model-index: "),
        ("license: apache-2.0", "license: [", "the metadata of the card"),
        ("---\nlicense", "license", "there is no metadata between two lines of ---"),
    ],
)
def test_each_problem_has_one_line(old: str, new: str, line: str) -> None:
    assert old in RIGHT
    (problem,) = metadata_problems(RIGHT.replace(old, new, 1))
    assert problem.startswith(line), problem


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("owner/name", True), ("o/n.v1-2_b", True), ("name", False), ("a/b/c", False), ("./x", False), ("../x", False),
        ("/a/b", False), ("a/", False), ("a/b--c", False), ("a/b..c", False), ("a/-b", False), ("a/b.git", False),
        ("a/" + "b" * 95, False), ("a b/c", False), ("a/b\n", False), ("ä/b", False),
    ],
)  # fmt: skip
def test_ids(text: str, right: bool) -> None:
    assert is_hub_id(text) is right
