"""Distributed checkpoints: parts become whole tensors along any dimensions, or the tensor that cannot be is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.storage.checkpoints.equal_tensors import find_equal_tensors
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader

from ....distributed_checkpoint import Part, rows_of, write_distributed


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a.weight": torch.randn(10, 6, generator=generator),
        "few.weight": torch.randn(2, 6, generator=generator),
        "stack.weight": torch.randn(3, 4, 5, generator=generator).bfloat16(),
        "norm.weight": torch.randn(6, generator=generator),
        "scalar": torch.tensor(2.5),
    }


def assert_read(folder: Path, whole: dict[str, torch.Tensor]) -> None:
    listing, reader = list_model(str(folder)), TensorReader()
    assert set(listing.tensors) == set(whole)
    for name, tensor in whole.items():
        source = listing.tensors[name]
        assert torch.equal(reader.read(source), tensor), name
        if tensor.ndim > 1:
            assert torch.equal(reader.read(source, (1, tensor.shape[0])), tensor[1:]), name


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows(tmp_path: Path, processes: int) -> None:
    whole = tensors()
    assert_read(write_distributed(tmp_path / "m", whole, rows_of(whole, processes)), whole)


def test_several_files_of_each_process(tmp_path: Path) -> None:
    whole = tensors()
    numbers = {name: 1 + number % 2 for number, name in enumerate(whole)}
    folder = write_distributed(tmp_path / "m", whole, rows_of(whole, 3), numbers)
    assert (folder / "shard-00003-model-00002-of-00002.safetensors").exists() or len(list(folder.iterdir())) > 3
    assert_read(folder, whole)


def test_grids_and_uneven_cuts(tmp_path: Path) -> None:
    whole = {"grid": torch.randn(7, 5), "columns": torch.randn(4, 9), "uneven": torch.randn(6, 6)}
    parts: list[list[Part]] = [
        [("grid", (0, 0), (4, 3)), ("columns", (0, 0), (4, 5)), ("uneven", (0, 0), (6, 2))],
        [("grid", (0, 3), (4, 2)), ("columns", (0, 5), (4, 4)), ("uneven", (0, 2), (1, 4))],
        [("grid", (4, 0), (3, 3)), ("uneven", (1, 2), (5, 4))],
        [("grid", (4, 3), (3, 2))],
    ]
    assert_read(write_distributed(tmp_path / "m", whole, parts), whole)


def test_the_fingerprint_covers_every_file(tmp_path: Path) -> None:
    whole = tensors()
    folder = write_distributed(tmp_path / "m", whole, rows_of(whole, 2))
    before = list_model(str(folder)).fingerprint
    whole["a.weight"][9, 5] += 1
    write_distributed(folder, whole, rows_of(whole, 2))
    assert list_model(str(folder)).fingerprint != before


def test_tied_weights_in_parts(tmp_path: Path) -> None:
    one = torch.randn(8, 4)
    changed = one.clone()
    changed[7, 3] += 1
    whole = {"a": one, "b": one.clone(), "c": changed}
    listing = list_model(str(write_distributed(tmp_path / "m", whole, rows_of(whole, 2))))
    assert find_equal_tensors(listing.tensors, [("a", "b", "c")]) == {"b": "a"}


def test_config_and_tokenizer_are_in_the_folder_above(tmp_path: Path) -> None:
    whole = tensors()
    write_distributed(tmp_path / "m" / "sharded", whole, rows_of(whole, 2))
    (tmp_path / "m" / "config.json").write_text('{"hidden_size": 6}')
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    listing = list_model(str(tmp_path / "m" / "sharded"))
    assert listing.config == {"hidden_size": 6}
    assert set(listing.side_files) == {"tokenizer.json"} and len(listing.tensors) == len(whole)
    with pytest.raises(CheckpointError, match=r"no safetensors file.*name .*m/sharded"):
        list_model(str(tmp_path / "m"))


def test_a_missing_file_is_a_gap(tmp_path: Path) -> None:
    whole = {"a.weight": torch.randn(10, 6)}
    folder = write_distributed(tmp_path / "m", whole, rows_of(whole, 3))
    (folder / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"'a.weight' is incomplete: .*24 of 48 entries"):
        list_model(str(folder))


def test_a_stale_file_is_an_overlap(tmp_path: Path) -> None:
    whole = {"a.weight": torch.randn(10, 6)}
    write_distributed(tmp_path / "m", whole, rows_of(whole, 4))
    with pytest.raises(CheckpointError, match=r"'a.weight': its parts in .* overlap"):
        list_model(str(write_distributed(tmp_path / "m", whole, rows_of(whole, 2))))


def test_parts_that_are_no_grid(tmp_path: Path) -> None:
    whole = {"wheel": torch.randn(3, 3)}
    boxes = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    parts: list[list[Part]] = [[("wheel", start, size)] for start, size in boxes]
    with pytest.raises(CheckpointError, match=r"'wheel': its 5 parts are no grid"):
        list_model(str(write_distributed(tmp_path / "m", whole, parts)))


def test_parts_of_other_dtypes(tmp_path: Path) -> None:
    whole = {"a.weight": torch.randn(10, 6)}
    folder = write_distributed(tmp_path / "m", whole, rows_of(whole, 2))
    second = folder / "shard-00002-model-00001-of-00001.safetensors"
    info = json.dumps({"a.weight": {"saved_offsets": [5, 0]}})
    save_file({"a.weight": load_file(second)["a.weight"].half()}, second, {"DCP_SHARDING_INFO": info})
    with pytest.raises(CheckpointError, match=r"'a.weight' is F16 with 2 dimensions in shard-00002.* and F32"):
        list_model(str(folder))
    save_file({"a.weight": torch.zeros(5, 6)}, second, {"DCP_SHARDING_INFO": '{"a.weight": {"saved_offsets": [5]}}'})
    with pytest.raises(CheckpointError, match=r"shard-00002.*'a.weight' has .*\[5\].*2 dimensions"):
        list_model(str(folder))


def test_float8_with_scales_is_refused(tmp_path: Path) -> None:
    whole = {"a.weight": torch.randn(4, 6).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(4, 1)}
    with pytest.raises(CheckpointError, match=r"'a.weight' is float8 with scales"):
        list_model(str(write_distributed(tmp_path / "m", whole, rows_of(whole, 2))))


def test_one_file_of_several_is_no_model(tmp_path: Path) -> None:
    whole = {"a.weight": torch.randn(10, 6)}
    folder = write_distributed(tmp_path / "m", whole, rows_of(whole, 2))
    with pytest.raises(CheckpointError, match=r"name the folder"):
        list_model(str(folder / "shard-00001-model-00001-of-00001.safetensors"))


def test_sets_that_do_not_belong_together(tmp_path: Path) -> None:
    whole = {"a.weight": torch.randn(4, 6), "b.weight": torch.randn(4, 6)}
    numbers = {"a.weight": 1, "b.weight": 2}
    folder = write_distributed(tmp_path / "m", whole, rows_of(whole, 2), numbers)
    for file in folder.glob("*-00002-of-*"):
        file.rename(tmp_path / file.name)
    with pytest.raises(CheckpointError, match=r"1 of 2 model files"):
        list_model(str(folder))
    write_distributed(folder, whole, rows_of(whole, 2))
    with pytest.raises(CheckpointError, match=r"two distributed checkpoints, of 1 and of 2 model files"):
        list_model(str(folder))


def test_pickled_distributed_checkpoints_are_named(tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"distributed checkpoint with pickled metadata.*HuggingFaceStorageWriter"
    ):
        list_model(str(tmp_path))


def test_merge_of_distributed_checkpoints(models, pipeline, load_checkpoint, tmp_path: Path) -> None:
    """As base, as expert and in a soup: the same bytes as from whole files."""

    def divided(folder: Path, processes: int) -> str:
        whole = load_checkpoint(folder)
        target = write_distributed(tmp_path / "divided" / f"step-{len(folder.name)}-{folder.name}", whole,
                                   rows_of(whole, processes))  # fmt: skip
        (target / "config.json").write_text((folder / "config.json").read_text())
        return str(target)

    base, *experts = [divided(folder, 2 + number) for number, folder in enumerate((models.base, *models.experts))]
    for method in ("ties", "wudi"):
        recipe = {"merge_method": method, "dtype": "float32"}
        whole = recipe | {"base_model": str(models.base), "models": [{"model": str(e)} for e in models.experts]}
        parts = recipe | {"base_model": base, "models": [{"model": expert} for expert in experts]}
        pipeline(whole, tmp_path / f"whole-{method}", tmp_path / "store1")
        pipeline(parts, tmp_path / f"parts-{method}", tmp_path / "store2")
        expected, found = (load_checkpoint(tmp_path / f"{kind}-{method}") for kind in ("whole", "parts"))
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    soup = {"merge_method": "linear", "models": {"glob": str(tmp_path / "divided" / "step-7-expert*")}}
    pipeline(soup, tmp_path / "soup", tmp_path / "store3")
    mean = {n: sum(one[n] for one in map(load_checkpoint, models.experts)) / 3 for n in models.base_tensors}
    for name, tensor in load_checkpoint(tmp_path / "soup").items():
        torch.testing.assert_close(tensor, mean[name], rtol=1e-5, atol=1e-6)
