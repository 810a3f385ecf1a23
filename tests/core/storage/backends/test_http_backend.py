"""Models on web servers: with and without index pages and byte ranges, and what is said where one cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eigenmerge.core.errors import CheckpointError, StoreError
from eigenmerge.core.storage.backends import http_backend
from eigenmerge.core.storage.backends.http_index import linked_names
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.retries import RetryPolicy
from eigenmerge.core.storage.store import Store

from ....conftest import free_port
from ....web_server import serve

WEIGHTS = {"a.weight": torch.randn(40, 6), "b.weight": torch.randn(5, 5)}
FORMS = {
    "ranges and index page": {},
    "no index page": {"index": False},
    "no index page, absent files are denied": {"index": False, "absent": 403},
    "no index page, absent files are a page": {"index": False, "page": True},
    "times and no etags": {"etags": False},
    "neither times nor etags": {"etags": False, "dated": False},
    "no ranges": {"ranges": False},
    "no ranges, no index page": {"ranges": False, "index": False, "etags": False},
    "query string": {"query": "sig=a%2Fb%3D&v=1/2", "index": False},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "the model"
    folder.mkdir()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for (tensor, weights), name in zip(WEIGHTS.items(), names, strict=True):
        save_file({tensor: weights}, folder / name)
    index = {"weight_map": dict(zip(WEIGHTS, names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in ("tokenizer.json", "merges.txt", "tokenizer.model", "chat_template.jinja"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_folder(tmp_path: Path, model: Path, form: str) -> None:
    with serve(tmp_path, **FORMS[form]) as server:
        query = f"?{server.query}" if server.query else ""
        listing, reader = list_model(f"{server.url}/the%20model/{query}"), TensorReader()
        assert set(listing.tensors) == set(WEIGHTS)
        assert listing.config == {"model_type": "llama"}
        assert set(listing.side_files) == {"tokenizer.json", "merges.txt", "tokenizer.model", "chat_template.jinja"}
        for name, tensor in WEIGHTS.items():
            assert torch.equal(reader.read(listing.tensors[name]), tensor)
        assert torch.equal(reader.read(listing.tensors["a.weight"], (3, 9)), WEIGHTS["a.weight"][3:9])
    assert listing.fingerprint == list_model(str(model)).fingerprint


@pytest.mark.parametrize("form", ["", "moved/"])
def test_one_file(tmp_path: Path, model: Path, form: str) -> None:
    (model / "model.safetensors.index.json").unlink()
    with serve(tmp_path, query="download=true", index=False) as server:
        name = "model-00001-of-00002.safetensors"
        listing = list_model(f"{server.url}/{form}the model/{name}?download=true")
        assert list(listing.tensors) == ["a.weight"] and listing.config == {"model_type": "llama"}
        assert torch.equal(TensorReader().read(listing.tensors["a.weight"]), WEIGHTS["a.weight"])
        with pytest.raises(CheckpointError, match=r"none\.safetensors\?download=true: no such object$"):
            list_model(f"{server.url}/the model/none.safetensors?download=true")


@pytest.mark.parametrize("index", [True, False])
def test_an_adapter(tmp_path: Path, index: bool) -> None:
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2, 4)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    with serve(tmp_path, index=index) as server:
        assert list_model(server.url).kind == "adapter"


def test_an_unfinished_merge_is_no_model(tmp_path: Path, model: Path) -> None:
    (model / ".eigenmerge-incomplete.json").write_text("{}")
    with serve(tmp_path, index=False) as server, pytest.raises(CheckpointError, match=r"unfinished merge"):
        list_model(f"{server.url}/the model")


def test_large_files_need_ranges(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_backend, "_LARGEST_WHOLE_BYTES", 1000)
    with serve(tmp_path, ranges=False) as server, pytest.raises(StoreError, match=r"ignores Range.*download the model"):
        list_model(f"{server.url}/the model")


def test_a_file_without_ranges_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)))
    with serve(tmp_path, ranges=False) as server:
        store = Store(server.url)
        etag = store.info("x").etag
        assert [store.read_range("x", n, n + 2, etag)[0] for n in range(20)] == list(range(20))
        assert len(server.requests) <= 4


@pytest.mark.parametrize("ranges", [True, False])
def test_a_replaced_file_is_noticed(tmp_path: Path, model: Path, ranges: bool) -> None:
    with serve(tmp_path, ranges=ranges) as server:
        listing = list_model(f"{server.url}/the model")
        save_file({"b.weight": torch.zeros(5, 5)}, model / "model-00002-of-00002.safetensors")
        list_model(f"{server.url}/the model")
        with pytest.raises(CheckpointError, match=r"has changed since the plan was made"):
            TensorReader().read(listing.tensors["b.weight"])


def test_what_is_said_without_a_model(tmp_path: Path) -> None:
    with serve(tmp_path) as server, pytest.raises(CheckpointError, match=r"has no index page .*correct the address"):
        list_model(f"{server.url}/none")
    with serve(tmp_path, index=False, absent=403) as server, pytest.raises(StoreError, match=r"permission denied.*403"):
        list_model(f"{server.url}/none")
    with (
        serve(tmp_path, query="token=x") as server,
        pytest.raises(StoreError, match=r"permission denied.*403") as error,
    ):
        list_model(f"{server.url}/m/model.safetensors?token=secret")
    assert "secret" not in str(error.value)
    quick = RetryPolicy(attempts=1)
    with pytest.raises(StoreError, match=r"looking up http://127.0.0.1:\d+/x/a failed after 1 attempt .*check the net"):
        Store(f"http://127.0.0.1:{free_port()}/x", retry=quick).info("a")
    with pytest.raises(StoreError, match=r"web servers are read only"):
        Store("http://127.0.0.1:1/x").write("a", b"x")


def test_merge_with_models_on_a_web_server(models, pipeline, load_checkpoint, tmp_path: Path) -> None:
    (models.base / "tokenizer.json").write_text("{}")
    pipeline(models.recipe("linear"), tmp_path / "local", tmp_path / "store1")
    with serve(models.root, index=False, query="sig=planted/secret") as server:

        def url(folder: Path) -> str:
            return f"{server.url}/{folder.name}?sig=planted/secret"

        recipe = models.recipe("linear") | {
            "base_model": url(models.base),
            "models": [{"model": url(expert)} for expert in models.experts],
        }
        pipeline(recipe, tmp_path / "web", tmp_path / "store2")
    expected, found = load_checkpoint(tmp_path / "local"), load_checkpoint(tmp_path / "web")
    assert (
        all(torch.equal(found[name], tensor) for name, tensor in expected.items()) and found.keys() == expected.keys()
    )
    assert (tmp_path / "web" / "tokenizer.json").read_text() == "{}"
    written = [file for file in (tmp_path / "web").iterdir() if file.suffix in {".json", ".md", ".yaml"}]
    assert not [file.name for file in written if "planted" in file.read_text()]


def test_links_of_index_pages() -> None:
    page = """<a href="?C=N;O=D">Name</a> <a href="/">up</a> <a href="../">..</a> <A HREF='a%20b.json'>a b.json</A>
        <a href="/m/model.safetensors">x</a> <a href="sub/">sub/</a> <a href="sub/x.json">x</a>
        <a href="https://elsewhere/m/c.json">c</a> <a href="http://h/m/d.json">d</a> <a href="http://[">bad</a>"""
    assert linked_names(page, "http://h/m/") == {"a b.json", "model.safetensors", "d.json"}
