"""Vocabularies from tokenizer files."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.planning.inputs.tokenizers import Vocabulary, add_tokens, read_vocabulary, vocabulary_files


def read(model: Any, **files: bytes) -> Vocabulary | None:
    contents = {name.replace("_json", ".json").replace("_txt", ".txt"): content for name, content in files.items()}
    listing = model("m", {}, side_files=tuple(contents))
    return read_vocabulary(listing, {listing.side_files[name]: content for name, content in contents.items()})


def test_bpe_unigram_and_added_tokens_of_tokenizer_json(model: Any) -> None:
    added = [{"id": 2, "content": "<s>"}]
    bpe = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added}
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": added}
    for tokenizer in (bpe, unigram):
        assert read(model, tokenizer_json=json.dumps(tokenizer).encode()) == {"a": 0, "b": 1, "<s>": 2}


def test_vocab_files_are_read_where_tokenizer_json_is_missing(model: Any) -> None:
    assert read(model, vocab_json=b'{"a": 0, "b": 1}', added_tokens_json=b'{"<s>": 2}') == {"a": 0, "b": 1, "<s>": 2}
    assert read(model, vocab_txt=b"[PAD]\nthe\n") == {"[PAD]": 0, "the": 1}
    both = read(model, tokenizer_json=b'{"model": {"vocab": {"x": 0}}}', vocab_txt=b"[PAD]\nthe\n")
    assert both == {"x": 0}


def test_an_unknown_vocabulary(model: Any) -> None:
    sentencepiece = model("m", {}, side_files=("tokenizer.model",))
    assert vocabulary_files(sentencepiece) == []
    assert read_vocabulary(sentencepiece, {}) is None
    assert read_vocabulary(model("m", {}), {}) is None  # the file is known and was not needed


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"model": {"vocab": {"a": "x"}}}', b'{"model": {"vocab": {"a": -1}}}',
     b'{"model": {"vocab": {"a": 10000000}}}', b'{"model": {"vocab": [["a"], 3]}}'],
)  # fmt: skip
def test_a_malformed_file_is_named(model: Any, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^/models/m/tokenizer\.json: .*repair"):
        read(model, tokenizer_json=content)


def test_added_tokens_keep_the_options_of_the_donor() -> None:
    own = json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "<s>"}]}).encode()
    donor = json.dumps({"model": {}, "added_tokens": [{"id": 7, "content": "<e>", "special": True}]}).encode()
    found = json.loads(add_tokens(own, [("<e>", 2), ("b", 3)], [donor]))["added_tokens"]
    assert [(entry["id"], entry["content"]) for entry in found] == [(1, "<s>"), (2, "<e>"), (3, "b")]
    assert [entry.get("special") for entry in found] == [None, True, False]
