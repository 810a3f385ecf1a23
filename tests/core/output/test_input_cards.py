"""What the cards of the inputs state, and how the ids of models are decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eigenmerge.core.output.input_cards import InputCard, hub_id, read_input_cards
from eigenmerge.core.planning.plan import ModelSummary, Plan

from .examples import model, small_plan


def local(folder: Path, config: dict[str, Any] | None = None, card: str | bytes | None = None) -> ModelSummary:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    if card is not None:
        (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    return model(str(folder), str(folder))


def read(plan: Plan) -> list[InputCard]:
    return read_input_cards(plan, None)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://owner/name", "owner/name"),
        ("hf://owner/name@0123abc/sub", "owner/name"),
        ("/home/me/.cache/huggingface/hub/models--owner--na-me/snapshots/abc", "owner/na-me"),
        ("/cache/models--owner--name/snapshots/abc/model.safetensors", "owner/name"),
        ("/home/me/owner/name", None),
        ("s3://bucket/models--owner--name/snapshots/abc", None),
        ("/cache/datasets--owner--name/snapshots/abc", None),
        ("/cache/models--gpt2/snapshots/abc", None),
    ],
)
def test_ids_from_addresses(uri: str, expected: str | None) -> None:
    assert hub_id(uri) == expected


@pytest.mark.parametrize(
    ("base", "experts", "expected"),
    [
        ("org/base", ["org/base", None], "org/base"),
        ("org/base", ["/models/base", "models"], "org/base"),
        ("org/base", ["org/other", None], None),  # then the config was not written when the base was loaded
        ("/models/base", ["org/base", "org/base"], None),
        (None, ["org/base", "org/base"], None),
        (3, [None, None], None),
    ],
)
def test_the_id_of_a_local_base_by_its_config(
    tmp_path: Path, base: Any, experts: list[str | None], expected: str | None
) -> None:
    own = local(tmp_path / "base", {"_name_or_path": base})
    others = tuple(local(tmp_path / f"e{i}", {"_name_or_path": name}) for i, name in enumerate(experts))
    cards = read(small_plan(base=False, experts=others))
    assert [card.hub_id for card in cards] == [None, None], "the config of an expert names its base"
    from dataclasses import replace

    cards = read(replace(small_plan(experts=others), base=own))
    assert [card.hub_id for card in cards] == [expected, None, None]


def test_a_relative_path_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    base = local(tmp_path / "models/base", {"_name_or_path": "models/base"})
    assert read(replace(small_plan(experts=()), base=base))[0].hub_id is None


def test_metadata_of_cards(tmp_path: Path) -> None:
    cards = read(
        small_plan(
            base=False,
            experts=(
                local(tmp_path / "a", card="---\nlicense: mit\nlanguage: [en, de]\n---\ntext"),
                local(tmp_path / "b", card="no metadata"),
                local(tmp_path / "c", card=b"---\nlicense: [\n---\n\xff"),
                local(tmp_path / "d"),
                model("e", str(tmp_path / "a" / "model.safetensors")),
            ),
        )
    )
    assert [card.texts("license") for card in cards] == [("mit",), (), (), (), ("mit",)]
    assert cards[0].texts("language") == ("de", "en")


def test_an_adapter_on_a_model_has_a_card_of_its_own(tmp_path: Path) -> None:
    from dataclasses import replace

    adapter = local(tmp_path / "adapter", card="---\nlicense: cc-by-nc-4.0\n---\n")
    base = local(tmp_path / "base", card="---\nlicense: mit\n---\n")
    both = replace(base, name=f"{base.name}+{adapter.name}", kind="full+adapter")
    cards = read(small_plan(base=False, experts=(both,)))
    assert [card.texts("license") for card in cards] == [("mit",), ("cc-by-nc-4.0",)]
