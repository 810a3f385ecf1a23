"""Names across checkpoints."""

from __future__ import annotations

from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.planning.inputs.names.matching import match_names

BERT = {
    "embeddings.word_embeddings.weight": (30, 4),
    **{f"encoder.layer.{i}.attention.self.query.weight": (4, 4) for i in range(3)},
    **{f"encoder.layer.{i}.output.dense.weight": (4, 8) for i in range(3)},
    "pooler.dense.weight": (4, 4),
}


def prefixed(names: dict[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in names.items()}


def test_equal_names_need_no_replacement() -> None:
    found = match_names(BERT, {**BERT, "classifier.weight": (2, 4)})
    assert found.replacements == ()
    assert found.stored == {name: name for name in BERT}


def test_an_expert_with_a_prefix() -> None:
    found = match_names(BERT, {**prefixed(BERT, "bert."), "classifier.weight": (2, 4)})
    assert found.stored == {name: f"bert.{name}" for name in BERT}
    assert found.replacements == (("", "bert."),)
    assert "'bert.'" in found.describe()


def test_a_base_with_a_prefix() -> None:
    base = {**prefixed(BERT, "bert."), "cls.predictions.bias": (30,)}
    found = match_names(base, BERT)
    assert found.stored == {f"bert.{name}": name for name in BERT}


def test_two_prefixes_in_one_model() -> None:
    text = {f"layers.{i}.w": (4, 4) for i in range(4)}
    tower = {f"blocks.{i}.w": (6, 6) for i in range(3)}
    base = prefixed(text, "model.language_model.") | prefixed(tower, "model.visual.")
    expert = prefixed(text, "language_model.model.") | prefixed(tower, "visual.")
    found = match_names(base, expert)
    assert len(found.stored) == 7
    assert found.stored["model.language_model.layers.2.w"] == "language_model.model.layers.2.w"
    assert found.stored["model.visual.blocks.1.w"] == "visual.blocks.1.w"


def test_encoder_weights_are_not_used_for_the_decoder() -> None:
    encoder = {f"encoder.block.{i}.w": (4, 4) for i in range(3)}
    base = encoder | {f"decoder.block.{i}.w": (4, 4) for i in range(3)}
    assert match_names(base, encoder).stored == {name: name for name in encoder}


def test_a_prefix_with_other_shapes_is_not_used() -> None:
    other = {f"bert.{name}": (5, 5) for name in BERT}
    assert match_names(BERT, other).stored == {}


def test_a_resized_vocabulary_does_not_hide_the_prefix() -> None:
    names = {f"encoder.layer.{i}.w": (4, 4) for i in range(12)} | {"embeddings.word_embeddings.weight": (30, 4)}
    resized = prefixed(names, "bert.") | {"bert.embeddings.word_embeddings.weight": (32, 4)}
    assert len(match_names(names, resized).stored) == 13


def block(at: str, *names: str, layers: int = 2, size: int = 4) -> dict[str, tuple[int, ...]]:
    return {f"{at}.{layer}.{name}.weight": (size, size) for layer in range(layers) for name in names}


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "fc1", "fc2")
Q = "layers.1.self_attn.q_proj.weight"


def renamed(names: dict[str, tuple[int, ...]], *pairs: tuple[str, str]) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, shape in names.items():
        old, new = next(((old, new) for old, new in pairs if name.startswith(old)), ("", ""))
        found[new + name[len(old) :]] = shape
    return found


@pytest.mark.parametrize("prefix", ["0.auto_model.", "model.0.auto_model.", "module._orig_mod.", "base_model.model."])
@pytest.mark.parametrize("own", ["", "bert."])
def test_wrappers_of_several_parts(prefix: str, own: str) -> None:
    base = prefixed(BERT, own)
    assert match_names(base, prefixed(BERT, prefix)).stored == {own + name: prefix + name for name in BERT}
    assert len(match_names(prefixed(BERT, prefix), base).stored) == len(BERT)


def test_modules_that_a_tool_puts_inside_a_model() -> None:
    wrapped = {name.replace("encoder.layer.1.", "encoder.layer.1._fsdp_wrapped_module."): s for name, s in BERT.items()}
    wrapped = prefixed(wrapped, "_orig_mod.")
    found = match_names(BERT, wrapped)
    assert sorted(found.stored.values()) == sorted(wrapped)
    assert found.find("encoder.layer.1.output.dense.weight", wrapped) in wrapped
    assert len(match_names(wrapped, BERT).stored) == len(BERT)


@pytest.mark.parametrize(
    ("base_head", "own_head"),
    [
        ({"lm_head.dense.weight": (4, 4)}, {"classifier.dense.weight": (4, 4)}),
        ({"cls.predictions.transform.dense.weight": (4, 4)}, {"bert.pooler.dense.weight": (4, 4)}),
        ({"bert.pooler.dense.weight": (4, 4)}, {"classifier.dense.weight": (4, 4)}),
        ({"qa_outputs.weight": (2, 4)}, {"classifier.weight": (2, 4)}),
        ({"classifier.weight": (2, 4)}, {"score.weight": (2, 4)}),
        ({"lm_head.dense.weight": (4, 4)}, {"dense.weight": (4, 4)}),
        ({"score.0.weight": (4, 4)}, {"classifier.0.weight": (4, 4)}),
    ],
)
def test_a_head_is_never_used_for_another(base_head: dict[str, Any], own_head: dict[str, Any]) -> None:
    body = block("bert.encoder.layer", "attention.self.query")
    assert match_names(body | base_head, body | own_head).stored == {name: name for name in body}
    bare = renamed(body, ("bert.", ""))
    assert len(match_names(body | base_head, bare | own_head).stored) == len(body)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("encoder.layers", "decoder.layers"),
        ("model.encoder.layers", "decoder.layers"),
        ("vision_model.encoder.layers", "text_model.encoder.layers"),
        ("vision_tower.layers", "model.language_model.layers"),
        ("mtp.layers", "draft_model.layers"),
        ("roberta.encoder.layer", "bert.encoder.layer"),
    ],
)
def test_towers_do_not_swap(one: str, other: str) -> None:
    for names in (ATTENTION, ("self_attn.q_proj",)):
        assert match_names(block(one, *ATTENTION), block(other, *names)).stored == {}


def test_an_adapter_on_one_module_goes_where_its_path_points() -> None:
    seq2seq = block("model.encoder.layers", *ATTENTION) | block("model.decoder.layers", *ATTENTION)
    assert match_names(seq2seq, {"encoder." + Q: (4, 4)}).stored == {"model.encoder." + Q: "encoder." + Q}
    assert match_names(seq2seq, {"decoder." + Q: (4, 4)}).stored == {"model.decoder." + Q: "decoder." + Q}
    with pytest.raises(CheckpointError, match="two prefixes equally well"):
        match_names(seq2seq, {Q: (4, 4)})
    vision = block("model.vision_tower.vision_model.encoder.layers", *ATTENTION)
    both = block("model.language_model.layers", *ATTENTION) | vision
    assert match_names(both, {"model." + Q: (4, 4)}).stored == {"model.language_model." + Q: "model." + Q}
    with_draft = block("model.layers", *ATTENTION) | block("mtp.layers", *ATTENTION)
    assert match_names(with_draft, {Q: (4, 4)}).stored == {"model." + Q: Q}


def test_two_copies_of_a_model_are_ambiguous() -> None:
    copies = prefixed(BERT, "student.") | prefixed(BERT, "teacher.")
    with pytest.raises(CheckpointError, match=r"'(student|teacher)\.' for '\(none\)' and"):
        match_names(BERT, copies)
    averaged = prefixed(BERT, "model.") | prefixed(BERT, "model_ema.")
    assert match_names(BERT, averaged).replacements == (("", "model."),)


def test_a_body_alone_of_a_model_with_two() -> None:
    attends = block("model.decoder.layers", *ATTENTION, "encoder_attn.q_proj")
    whisper = block("model.encoder.layers", *ATTENTION) | attends | {"model.encoder.conv1.weight": (4, 2, 3)}
    encoder = block("layers", *ATTENTION) | {"conv1.weight": (4, 2, 3)}
    assert match_names(whisper, encoder).replacements == (("model.encoder.", ""),)
    assert match_names(whisper, renamed(attends, ("model.decoder.", ""))).replacements == (("model.decoder.", ""),)


NEW_VLM = (
    block("model.language_model.layers", *ATTENTION)
    | block("model.vision_tower.encoder.layers", *ATTENTION)
    | {"model.multi_modal_projector.linear.weight": (4, 4), "lm_head.weight": (9, 4)}
    | {"model.language_model.embed_tokens.weight": (9, 4)}
)
LLAVA = (
    ("model.language_model.", "language_model.model."),
    ("lm_head", "language_model.lm_head"),
    ("model.", ""),
)
QWEN = (("model.language_model.", "model."), ("model.", ""))
TEXT = {name: shape for name, shape in renamed(NEW_VLM, *QWEN).items() if name.startswith(("model.", "lm_head"))}


@pytest.mark.parametrize("pairs", [LLAVA, QWEN])
def test_old_and_new_names_of_vision_language_models(pairs: tuple[tuple[str, str], ...]) -> None:
    old = renamed(NEW_VLM, *pairs)
    for base, expert in ((NEW_VLM, old), (old, NEW_VLM)):
        forward = {name: renamed({name: ()}, *pairs) for name in NEW_VLM}
        pairs_found = match_names(base, expert).stored.items()
        expected = {(name, next(iter(other))) for name, other in forward.items()}
        assert {pair if base is NEW_VLM else pair[::-1] for pair in pairs_found} == expected


@pytest.mark.parametrize("pairs", [(), LLAVA, QWEN])
def test_a_text_model_is_the_language_model_of_a_vision_language_model(pairs: tuple[tuple[str, str], ...]) -> None:
    base = renamed(NEW_VLM, *pairs) if pairs else NEW_VLM
    found = match_names(base, TEXT).stored
    assert sorted(found.values()) == sorted(TEXT)
    assert not any("vision" in name or "projector" in name for name in found)
    assert sorted(match_names(TEXT, base).stored) == sorted(TEXT)
