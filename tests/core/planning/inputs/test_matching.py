"""Names across checkpoints."""

from __future__ import annotations

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.planning.inputs.matching import find_tied_weight, match_names

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


def stored(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorSource]:
    return {name: TensorSource("x", 0, 0, "F32", shape) for name, shape in shapes.items()}


def test_tied_weights_are_found_under_their_other_name() -> None:
    tensors = stored({"model.embed_tokens.weight": (30, 4), "model.norm.weight": (4,)})
    assert find_tied_weight("lm_head.weight", (30, 4), tensors) == "model.embed_tokens.weight"
    assert find_tied_weight("lm_head.weight", (30, 8), tensors) is None
    assert find_tied_weight("model.layers.0.w", (30, 4), tensors) is None
    t5 = stored({"shared.weight": (30, 4)})
    assert find_tied_weight("decoder.embed_tokens.weight", (30, 4), t5) == "shared.weight"
    bert = stored({"cls.predictions.bias": (30,)})
    assert find_tied_weight("cls.predictions.decoder.bias", (30,), bert) == "cls.predictions.bias"
