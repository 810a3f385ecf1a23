"""Listing models: accepted layouts on every kind of storage, and the messages for bad ones."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from eigenmerge.core.errors import CheckpointError, EigenmergeError, StoreError
from eigenmerge.core.listing import ModelListing
from eigenmerge.core.storage.checkpoints import fingerprint
from eigenmerge.core.storage.checkpoints.list_model import ModelLister, list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.store import Store

from ....cpu_unit import cpu_seconds, cpu_unit
from ..conftest import tensors_of, write_model

Place = Callable[[str], Store]


def adapter_files(store: Store, rank: int = 2) -> dict[str, torch.Tensor]:
    tensors = {
        "base_model.model.layers.0.lora_A.weight": torch.randn(rank, 4),
        "base_model.model.layers.0.lora_B.weight": torch.randn(6, rank),
    }
    store.write("adapter_model.safetensors", save(tensors))
    store.write("adapter_config.json", json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 4}).encode())
    return tensors


class TestLayouts:
    @pytest.mark.parametrize("files", [1, 3])
    def test_a_directory(self, place: Place, files: int) -> None:
        store, tensors = place("model"), tensors_of()
        write_model(store, tensors, files=files)
        listing = list_model(store.root_uri, store._options)
        assert listing.kind == "full"
        assert listing.uri == store.root_uri
        assert listing.config == {"model_type": "test"}
        assert set(listing.side_files) == {"tokenizer.json"}
        assert listing.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
        reader = TensorReader(store._options)
        assert set(listing.tensors) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(reader.read(listing.tensors[name]), tensor)

    def test_a_single_file(self, place: Place) -> None:
        store = place("model")
        store.write("odd name.safetensors", save({"a": torch.ones(2)}))
        store.write("other.safetensors", save({"b": torch.ones(2)}))
        listing = list_model(store.uri("odd name.safetensors"), store._options)
        assert set(listing.tensors) == {"a"}

    def test_an_adapter(self, place: Place) -> None:
        store = place("adapter")
        tensors = adapter_files(store)
        listing = list_model(store.root_uri, store._options)
        assert listing.kind == "adapter"
        assert not listing.tensors
        assert listing.adapter is not None
        assert listing.adapter.config["r"] == 2
        assert set(listing.adapter.tensors) == set(tensors)
        assert listing.num_bytes == listing.adapter.num_bytes == sum(tensor.nbytes for tensor in tensors.values())

    def test_base_and_adapter(self, place: Place) -> None:
        base, adapter = place("base"), place("adapter")
        write_model(base, tensors_of())
        adapter_files(adapter)
        reference = f"{base.root_uri}+{adapter.root_uri}"
        listing = list_model(reference, base._options)
        assert listing.kind == "full+adapter"
        assert listing.name == reference
        assert listing.adapter is not None and len(listing.adapter.tensors) == 2
        assert set(listing.tensors) == set(tensors_of())
        assert listing.fingerprint != list_model(base.root_uri, base._options).fingerprint

    def test_a_place_that_many_references_name_is_listed_once(self, tmp_path: Path) -> None:
        write_model(Store(str(tmp_path / "base")), tensors_of())
        for name in "abc":
            adapter_files(Store(str(tmp_path / name)))
        listed: list[str] = []

        def note(listing: ModelListing) -> ModelListing:
            listed.append(listing.name)
            return listing

        references = [str(tmp_path / "base"), *(f"{tmp_path}/base+{tmp_path}/{name}" for name in "abca")]
        lister = ModelLister(complete=note)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lister.list_reference, references))
        assert sorted(listed) == [str(tmp_path / name) for name in ("a", "b", "base", "c")]
        assert found == [list_model(reference) for reference in references]
        with pytest.raises(CheckpointError, match="no such"):
            lister.list_reference(str(tmp_path / "missing"))

    def test_a_path_with_special_characters(self, place: Place) -> None:
        for name in ("c++ models", "at@sign", "a+b"):
            store = place(name)
            write_model(store, tensors_of(1))
            assert list_model(store.root_uri, store._options).kind == "full"

    def test_numbered_files_without_an_index(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of(), files=3)
        store.delete(["model.safetensors.index.json"])
        assert set(list_model(store.root_uri, store._options).tensors) == set(tensors_of())
        store.delete(["model-00002-of-00003.safetensors"])
        with pytest.raises(CheckpointError, match="2 of 3 weight files"):
            list_model(store.root_uri, store._options)

    def test_a_header_longer_than_the_first_read(self, place: Place) -> None:
        store = place("model")
        tensors = {f"a/very/long/name/{'x' * 100}/{number}": torch.tensor([float(number)]) for number in range(800)}
        write_model(store, tensors)
        listing = list_model(store.root_uri, store._options)
        assert len(listing.tensors) == 800
        name = f"a/very/long/name/{'x' * 100}/799"
        assert TensorReader(store._options).read(listing.tensors[name]).item() == 799

    def test_float8_weights_are_paired_with_scales(self, place: Place) -> None:
        store = place("model")
        write_model(
            store,
            {
                "a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
                "a.weight_scale": torch.tensor(0.5),
                "b.weight": torch.ones(130, 256).to(torch.float8_e4m3fn),
                "b.weight_scale_inv": torch.ones(2, 2),
                "c.weight": torch.ones(2).to(torch.float8_e5m2),
                "d.weight_scale": torch.ones(1),
            },
        )
        tensors = list_model(store.root_uri, store._options).tensors
        assert set(tensors) == {"a.weight", "b.weight", "c.weight", "d.weight_scale"}
        assert tensors["a.weight"].scale is not None and tensors["b.weight"].scale is not None
        assert tensors["c.weight"].scale is None

    def test_side_files(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of(1), files=2)
        wanted = ["vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json"]
        unwanted = [
            "README.md",
            "modeling.py",
            "training_args.bin",
            "trainer_state.json",
            "optimizer.pt",
            "LICENSE.txt",
        ]
        for name in wanted + unwanted + ["deep/tokenizer.json"]:
            store.write(name, b"x")
        found = list_model(store.root_uri, store._options).side_files
        assert set(found) == {*wanted, "tokenizer.json"}
        assert found["vocab.txt"] == store.uri("vocab.txt")


class TestFingerprints:
    def test_the_same_files_give_the_same(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of(), files=2)
        first, second = (list_model(store.root_uri, store._options) for _ in range(2))
        assert first.fingerprint == second.fingerprint

    @pytest.mark.parametrize("kind", ["sampled", "content"])
    def test_other_weights_give_another(self, place: Place, kind: str) -> None:
        store = place("model")
        prints = set()
        for seed in range(2):
            time.sleep(0.02)  # file systems store times with limited resolution
            write_model(store, tensors_of(seed=seed))
            prints.add(list_model(store.root_uri, store._options, fingerprint=kind).fingerprint)  # type: ignore[arg-type]
        assert len(prints) == 2

    def test_large_models_are_sampled(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        for limit in ("_COMPLETE_LOCAL_BYTES", "_COMPLETE_REMOTE_BYTES"):
            monkeypatch.setattr(fingerprint, limit, 0)
        store, prints = place("model"), []
        for seed in (0, 1):
            write_model(store, tensors_of(seed=seed), files=2)
            listing = list_model(store.root_uri, store._options)
            assert list_model(store.root_uri, store._options).fingerprint == listing.fingerprint
            files = {source.file for source in listing.tensors.values() if source.file is not None}
            assert len(files) == 2 and all(file.digest.startswith("samples:") for file in files)
            prints.append((listing.fingerprint, *sorted(file.digest for file in files)))
        assert not set(prints[0]) & set(prints[1])

    def test_content_fingerprints_ignore_time_and_location(self, place: Place) -> None:
        prints = set()
        for name in ("one", "two"):
            write_model(place(name), tensors_of(), files=2)
            prints.add(list_model(place(name).root_uri, place(name)._options, fingerprint="content").fingerprint)
            time.sleep(0.02)
        assert len(prints) == 1

    def test_another_alpha_gives_another_fingerprint(self, place: Place) -> None:
        store = place("adapter")
        adapter_files(store)
        before = list_model(store.root_uri, store._options)
        store.write("adapter_config.json", b'{"r": 2, "lora_alpha": 99}')
        assert list_model(store.root_uri, store._options).fingerprint != before.fingerprint


class TestBadInput:
    def refused(self, store: Store, match: str, reference: str | None = None) -> str:
        with pytest.raises(CheckpointError, match=match) as caught:
            list_model(reference or store.root_uri, store._options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_such_model(self, place: Place) -> None:
        store = place("no-such-model")
        self.refused(store, "no such model.*no-such-model")
        self.refused(store, "no such model.*x.safetensors", store.root_uri + "/x.safetensors")
        self.refused(store, "no such model", store.root_uri + "+" + store.root_uri)

    def test_no_weights(self, place: Place) -> None:
        store = place("model")
        store.write("config.json", b"{}")
        self.refused(store, "no safetensors file")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
    def test_a_pickle(self, place: Place, name: str) -> None:
        store = place("model")
        store.write("config.json", b"{}")
        store.write(name, b"PK")
        assert "weights_only=True" in self.refused(store, "is a pickle")
        assert "weights_only=True" in self.refused(store, "is a pickle", store.uri(name))

    def test_a_pickled_adapter(self, place: Place) -> None:
        store = place("model")
        store.write("adapter_config.json", b"{}")
        store.write("adapter_model.bin", b"PK")
        assert "adapter_model.safetensors" in self.refused(store, "is a pickle")

    def test_an_index_that_names_pickles(self, place: Place) -> None:
        store = place("model")
        store.write("model.safetensors.index.json", b'{"weight_map": {"a": "pytorch_model.bin"}}')
        store.write("pytorch_model.bin", b"PK")
        self.refused(store, "is a pickle")

    @pytest.mark.parametrize(
        "name", ["../x.safetensors", "/etc/x.safetensors", "a\\x.safetensors", "a/x.safetensors", "x\n.safetensors", ""]
    )
    def test_an_index_with_paths_outside_the_directory(self, place: Place, name: str) -> None:
        store = place("model")
        store.write("model.safetensors.index.json", json.dumps({"weight_map": {"a": name}}).encode())
        self.refused(store, "refused")

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"", "JSON"),
            (b"[]", "object"),
            (b"{}", "weight_map"),
            (b'{"weight_map": {}}', "weight_map"),
            (b'{"weight_map": [1]}', "weight_map"),
            (b'{"weight_map": {"a": 1}}', "pickle|missing"),
            (b'{"weight_map": {"a": "x.safetensors"}}', "missing"),
            (b'{"weight_map": {"a": "m.safetensors"}, "weight_map": {}}', "duplicate"),
        ],
    )
    def test_a_damaged_index(self, place: Place, content: bytes, match: str) -> None:
        store = place("model")
        store.write("model.safetensors.index.json", content)
        self.refused(store, match)

    def test_an_index_that_does_not_match_its_files(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of(), files=2)
        index = json.loads(store.read("model.safetensors.index.json"))
        index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
        store.write("model.safetensors.index.json", json.dumps(index).encode())
        self.refused(store, "'ghost'")

    def test_two_files_with_one_tensor(self, place: Place) -> None:
        store = place("model")
        for number in (1, 2):
            store.write(f"model-0000{number}-of-00002.safetensors", save({"a": torch.ones(2)}))
        self.refused(store, "'a' is in")

    def test_a_tensor_that_differs_in_two_files_of_an_index(self, place: Place) -> None:
        store, first, second = place("model"), "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
        index = {"weight_map": {"a": first, "b": second}}
        store.write("model.safetensors.index.json", json.dumps(index).encode())
        store.write(first, save({"a": torch.ones(2)}))
        store.write(second, save({"a": torch.ones(2), "b": torch.ones(2)}))
        assert set(list_model(store.root_uri, store._options).tensors) == {"a", "b"}  # equal copies do not matter
        store.write(second, save({"a": torch.zeros(2), "b": torch.ones(2)}))
        self.refused(store, f"'a' differs in {first} and in {second}: the files come from different models")

    def test_a_single_file_beside_a_stale_index(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of(), files=2)
        write_model(store, tensors_of())
        assert "stale" in self.refused(store, "index")
        assert list_model(store.uri("model.safetensors"), store._options).kind == "full"

    def test_several_files_without_an_index(self, place: Place) -> None:
        store = place("model")
        for name in "ab":
            store.write(f"{name}.safetensors", save({"a": torch.ones(2)}))
        self.refused(store, "name the file")

    @pytest.mark.parametrize("damage", ["truncated", "header", "empty", "claim"])
    def test_a_damaged_file(self, place: Place, damage: str) -> None:
        store = place("model")
        write_model(store, tensors_of(), files=2)
        name = "model-00002-of-00002.safetensors"
        data = store.read(name)
        claim = (2**60).to_bytes(8, "little")
        damages = {
            "truncated": data[:-1],
            "header": data[:8] + b"!" + data[9:],
            "empty": b"",
            "claim": claim + data[8:],
        }
        content = damages[damage]
        store.write(name, content)
        self.refused(store, name)

    def test_a_config_that_is_not_json(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of())
        store.write("config.json", b"\x80\x02}q")
        self.refused(store, r"config\.json")

    def test_a_config_that_is_too_long_is_not_read(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of(1))
        store.write("config.json", b" " * (10 * 2**20 + 1))
        self.refused(store, r"config\.json: 10485761 bytes, expected at most 10485760")

    def test_a_config_with_infinity_as_transformers_writes_it(self, place: Place) -> None:
        store = place("model")
        write_model(store, tensors_of())
        store.write("config.json", b'{"time_step_limit": [0.0, Infinity]}')
        assert list_model(store.root_uri, store._options).config == {"time_step_limit": [0.0, float("inf")]}

    def test_a_full_model_after_plus_and_an_adapter_before_it(self, place: Place) -> None:
        for name in ("base", "other"):
            write_model(place(name), tensors_of(1))
        adapter_files(place("adapter"))
        store = place("base")
        self.refused(store, "not an adapter", f"{store.root_uri}+{place('other').root_uri}")
        self.refused(store, "full model", f"{place('adapter').root_uri}+{place('adapter').root_uri}")


class TestLocalReferences:
    def test_revisions_are_for_the_hub_only(self, tmp_path: Path) -> None:
        write_model(Store(str(tmp_path / "model")), tensors_of(1))
        with pytest.raises(CheckpointError, match="revision"):
            list_model(f"{tmp_path}/model@main")
        write_model(Store(str(tmp_path / "model@main")), tensors_of(2))
        assert len(list_model(f"{tmp_path}/model@main").tensors) == 5

    def test_relative_and_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_model(Store(str(tmp_path / "model")), tensors_of(1))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        for reference in (
            "model",
            "./model",
            "~/model",
            "model/",
            f"file://{tmp_path}/model",
            "model/model.safetensors",
        ):
            assert list_model(reference).tensors, reference

    @pytest.mark.parametrize("reference", ["", " ", "a\nb", "\x00", "nothing here", "/no/such", "+", "a+", "+b", "a+b"])
    def test_references_without_a_meaning(
        self, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError):
            list_model(reference)

    def test_a_file_that_is_not_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        with pytest.raises(CheckpointError, match=r"\.safetensors"):
            list_model(str(tmp_path / "model.gguf"))

    def test_an_unknown_protocol(self) -> None:
        with pytest.raises(StoreError, match="nosuch"):
            list_model("nosuch://x/y")

    def test_the_conversion_command_in_the_message_works(self, tmp_path: Path) -> None:
        shared = torch.randn(3, 2)
        torch.save(
            {"a.weight": shared, "tied.weight": shared, "view": torch.randn(4, 4).T}, tmp_path / "pytorch_model.bin"
        )
        with pytest.raises(CheckpointError) as caught:
            list_model(str(tmp_path))
        command = str(caught.value).partition("Convert it safely: ")[2]
        argv = shlex.split(command)
        subprocess.run([sys.executable, *argv[1:]], check=True, timeout=120)
        assert set(list_model(str(tmp_path)).tensors) == {"a.weight", "tied.weight", "view"}
        assert torch.equal(load_file(tmp_path / "model.safetensors")["tied.weight"], shared)


class TestRemoteErrors:
    def test_no_such_bucket(self, s3_endpoint: str) -> None:
        options = {"endpoint_url": s3_endpoint, "key": "abcdefgh", "secret": "abcdefgh"}
        with pytest.raises(EigenmergeError, match="no such bucket"):
            list_model("s3://no-such-bucket-at-all/model", options)


def test_nine_models_of_thirty_files_list_quickly(tmp_path: Path) -> None:
    shard = {f"layers.{number}.weight": torch.empty(1) for number in range(30)}
    models = [tmp_path / f"model{number}" for number in range(9)]
    for model in models:
        model.mkdir()
        weight_map = {}
        for file in range(30):
            name = f"model-{file + 1:05d}-of-00030.safetensors"
            tensors = {f"{file}.{tensor}": value for tensor, value in shard.items()}
            save_file(tensors, model / name)
            weight_map.update(dict.fromkeys(tensors, name))
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def list_all() -> None:
        for model in models:
            assert len(list_model(str(model)).tensors) == 900

    assert cpu_seconds(list_all) < 50 * cpu_unit()  # measured: 13 units


def test_listing_does_not_import_torch() -> None:
    code = "import sys, eigenmerge.core.storage.checkpoints.list_model; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
