"""Which files of a directory are the weights, and which go with them. Only names and sizes matter here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.storage.checkpoints.folder import NoModelError, choose_weights, open_folder

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"


def folder_of(path: Path, *names: str, index: dict[str, str] | None = None):
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_bytes(b"x")
    if index is not None:
        (path / INDEX).write_text(json.dumps({"weight_map": index}))
    return open_folder(str(path), None)


def shards(count: int, stem: str = "model") -> list[str]:
    return [f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]


def enumerate_tensors(names: list[str]) -> list[tuple[str, str]]:
    return [(f"t{number}", name) for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([MODEL, "config.json"], [MODEL]),
        ([MODEL, "pytorch_model.bin"], [MODEL]),
        (["other.safetensors"], ["other.safetensors"]),
        ([MODEL, "other.safetensors"], [MODEL]),
        (["m-00002-of-00002.safetensors", "m-00001-of-00002.safetensors"],
         ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]),
    ],
)  # fmt: skip
def test_without_an_index(tmp_path: Path, names: list[str], chosen: list[str]) -> None:
    assert choose_weights(folder_of(tmp_path, *names)) == (chosen, None)


def test_the_index_decides(tmp_path: Path) -> None:
    index = {"a": "y.safetensors", "b": "x.safetensors"}
    folder = folder_of(tmp_path, "x.safetensors", "y.safetensors", "stale.safetensors", index=index)
    assert choose_weights(folder) == (["x.safetensors", "y.safetensors"], index)


@pytest.mark.parametrize(
    ("names", "index", "message"),
    [
        ([], {"a": "x.safetensors"}, "1 missing files, the first is 'x.safetensors'"),
        ([MODEL, "x.safetensors"], {"a": "x.safetensors"}, "remove the stale one"),
        ([], {"a": "../x.safetensors"}, "refused"),
        (["pytorch_model.bin"], {"a": "pytorch_model.bin"}, "is a pickle"),
        (["a.safetensors", "b.safetensors"], None, "name the file to use"),
        (["m-00001-of-00003.safetensors"], None, "1 of 3 weight files"),
        (["m-00001-of-00001.safetensors", "n-00001-of-00001.safetensors"], None, "name the file to use"),
        (["adapter_model.safetensors"], None, "has adapter_model.safetensors and no adapter_config.json"),
        (["config.json"], None, "has no safetensors file"),
        ([*shards(2), *shards(3)], dict(enumerate_tensors(shards(2))), "files of two models, model-00001-of-00002"),
        ([*shards(2), *shards(3)], dict(enumerate_tensors([*shards(2), *shards(3)])), "files of two models"),
        ([*shards(2), shards(3)[0]], dict(enumerate_tensors(shards(2))), "remove the stale ones"),
        ([MODEL, *shards(2)], None, "files of two models, model.safetensors and model-00001-of-00002"),
        ([MODEL, *shards(2)], {"a": MODEL}, "files of two models"),
        (["m-00001-of-000002.safetensors"], None, "1 of 2 weight files"),  # six digits, as DeepSeek's
    ],
)
def test_ambiguous_and_incomplete_directories(
    tmp_path: Path, names: list[str], index: dict[str, str] | None, message: str
) -> None:
    folder = folder_of(tmp_path, *names, index=index)
    with pytest.raises(CheckpointError, match=message):
        choose_weights(folder)


@pytest.mark.parametrize(
    "others",
    [
        ["consolidated.safetensors"],  # Mistral's own format beside that of transformers
        [*shards(4, "consolidated"), "consolidated.safetensors.index.json"],
        ["model.fp16.safetensors", "optimizer.safetensors", "adapter_model.safetensors"],
        [*shards(3, "model.fp16"), *shards(3, "pytorch_model")],
    ],
)
def test_variants_beside_the_model(tmp_path: Path, others: list[str]) -> None:
    assert choose_weights(folder_of(tmp_path / "one", MODEL, *others)) == ([MODEL], None)
    index = dict(enumerate_tensors(shards(2)))
    assert choose_weights(folder_of(tmp_path / "two", *shards(2), *others, index=index)) == (shards(2), index)


def test_a_named_index_chooses_one_of_two_models(tmp_path: Path) -> None:
    index = dict(enumerate_tensors(shards(2)))
    folder_of(tmp_path, MODEL, *shards(2), *shards(3), index=index)
    assert choose_weights(open_folder(f"{tmp_path}/{INDEX}", None)) == (shards(2), index)
    (tmp_path / INDEX).rename(tmp_path / "old.safetensors.index.json")
    assert choose_weights(open_folder(f"{tmp_path}/old.safetensors.index.json", None)) == (shards(2), index)
    with pytest.raises(NoModelError, match="does not exist"):
        open_folder(f"{tmp_path}/{INDEX}", None)


@pytest.mark.parametrize("reference", ["", "/model.safetensors"])
def test_an_unfinished_merge_is_no_model(tmp_path: Path, reference: str) -> None:
    folder_of(tmp_path, MODEL, "config.json")
    (tmp_path / ".eigenmerge-incomplete.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an unfinished merge .* run that merge again") as caught:
        open_folder(f"{tmp_path}{reference}", None)
    assert not isinstance(caught.value, NoModelError)  # the reference has no other meaning


def test_a_named_file_is_the_only_one(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.safetensors", "b.safetensors", "config.json")
    folder = open_folder(f"{tmp_path}/b.safetensors", None)
    assert choose_weights(folder) == (["b.safetensors"], None)
    assert "config.json" in folder.files
    with pytest.raises(NoModelError, match=r"c\.safetensors does not exist"):
        open_folder(f"{tmp_path}/c.safetensors", None)


def test_a_directory_may_be_named_like_a_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model.safetensors", MODEL)
    assert choose_weights(folder) == ([MODEL], None)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NoModelError, match=r"does not exist; .* exists, and has no 'none'"):
        open_folder(f"{tmp_path}/none", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"expected a directory or a \.safetensors file"):
        open_folder(f"{tmp_path}/model.gguf", None)


def test_side_files(tmp_path: Path) -> None:
    wanted = ["tokenizer.json", "vocab.txt", "tokenizer.model", "chat_template.jinja"]
    others = [MODEL, "config.json", "README.md", "LICENSE.txt", "modeling_x.py", "eval_results.json", INDEX]
    folder = folder_of(tmp_path, *wanted, *others)
    assert sorted(folder.side_files()) == sorted(wanted)
    assert folder.side_files()["vocab.txt"] == f"{tmp_path}/vocab.txt"
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(256 * 2**20 + 1)
    assert "tokenizer.model" not in open_folder(str(tmp_path), None).side_files()


def test_json_of_a_folder_is_limited(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, MODEL)
    (tmp_path / "config.json").write_text('{"a": 1}')
    folder = open_folder(str(tmp_path), None)
    assert folder.read_json("config.json", 8) == {"a": 1}
    with pytest.raises(CheckpointError, match=r"config\.json: 8 bytes, expected at most 7"):
        folder.read_json("config.json", 7)
