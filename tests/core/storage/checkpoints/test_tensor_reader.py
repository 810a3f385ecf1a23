"""Reading stored tensors: dtypes, rows, float8 with scales, memory, and large remote tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.formats.safetensors_header import build_header
from eigenmerge.core.listing import TensorSource
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.storage.retries import RetryPolicy
from eigenmerge.core.storage.store import Store

Place = Callable[[str], Store]

DTYPES = ["bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def stored(store: Store, tensors: dict[str, torch.Tensor]) -> dict[str, TensorSource]:
    store.write("model.safetensors", save(tensors))
    return dict(list_model(store.root_uri, store._options).tensors)


class TestReading:
    def test_every_dtype(self, place: Place) -> None:
        tensors = {name: torch.randint(0, 2, (3, 5)).to(getattr(torch, name)) for name in DTYPES}
        tensors |= {name: torch.randn(3, 5).to(getattr(torch, name)) for name in FLOATS}
        sources = stored(place("model"), tensors)
        reader = TensorReader(place("model")._options)
        for name, tensor in tensors.items():
            found = reader.read(sources[name])
            assert found.dtype == tensor.dtype
            assert found.shape == tensor.shape
            assert torch.equal(bits(found), bits(tensor)), name
        assert reader.bytes_read == sum(tensor.nbytes for tensor in tensors.values())

    def test_rows(self, place: Place) -> None:
        tensor = torch.randn(7, 3, 2)
        source = stored(place("model"), {"a": tensor})["a"]
        reader = TensorReader(place("model")._options)
        for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3)):
            assert torch.equal(reader.read(source, (start, stop)), tensor[start:stop])
        assert reader.bytes_read == (7 + 3 + 1) * 24

    def test_zero_size_and_scalar(self, place: Place) -> None:
        sources = stored(
            place("model"), {"none": torch.empty(0, 4), "flat": torch.empty(4, 0), "one": torch.tensor(2.5)}
        )
        reader = TensorReader(place("model")._options)
        assert reader.read(sources["none"]).shape == (0, 4)
        assert reader.read(sources["flat"]).shape == (4, 0)
        assert reader.read(sources["flat"], (1, 3)).shape == (2, 0)
        assert reader.read(sources["one"]).item() == 2.5

    def test_a_tensor_of_several_requests(self, place: Place) -> None:
        tensor = torch.arange(5 * 2**20, dtype=torch.int32).reshape(1024, -1)  # 20 MiB: three chunks
        source = stored(place("model"), {"a": torch.ones(3), "b": tensor})["b"]
        reader = TensorReader(place("model")._options)
        assert torch.equal(reader.read(source), tensor)
        assert torch.equal(reader.read(source, (100, 900)), tensor[100:900])

    def test_unaligned_numbers(self, place: Place) -> None:
        store, tensor = place("model"), torch.randn(5, dtype=torch.float64)
        header = build_header({"odd": ("U8", (3,)), "a": ("F64", (5,))})
        store.write("model.safetensors", header + b"\x01\x02\x03" + tensor.numpy().tobytes())
        source = list_model(store.root_uri, store._options).tensors["a"]
        assert source.start % 8
        assert torch.equal(TensorReader(store._options).read(source), tensor)

    def test_a_file_that_changed_since_the_plan(self, place: Place) -> None:
        store = place("model")
        source = stored(store, {"a": torch.ones(100)})["a"]
        store.write("model.safetensors", b"short")
        with pytest.raises(CheckpointError, match="changed since"):
            TensorReader(store._options).read(source)
        store.delete(["model.safetensors"])
        with pytest.raises(CheckpointError, match="changed since"):
            TensorReader(store._options).read(source)


class TestLocalFiles:
    def test_writing_to_a_tensor_does_not_change_the_file(self, tmp_path: Path) -> None:
        source = stored(Store(str(tmp_path)), {"a": torch.ones(10)})["a"]
        TensorReader().read(source).fill_(7)
        assert TensorReader().read(source).sum() == 10

    def test_memory_is_released_with_the_tensor(self, tmp_path: Path) -> None:
        size = 64 * 2**20
        sources = stored(Store(str(tmp_path)), {str(number): torch.ones(size // 4) for number in range(3)})
        reader, process = TensorReader(), psutil.Process()
        gc.collect()
        before = process.memory_info().rss
        for source in sources.values():
            tensor = reader.read(source)
            assert tensor.sum() > 0
            assert process.memory_info().rss - before < size * 3 // 2
            del tensor
        assert process.memory_info().rss - before < size // 2


class TestFloat8:
    def test_from_a_file(self, place: Place) -> None:
        weight = torch.randn(8, 4).to(torch.float8_e4m3fn)
        source = stored(place("model"), {"a.weight": weight, "a.weight_scale": torch.full((8, 1), 2.0)})["a.weight"]
        reader = TensorReader(place("model")._options)
        assert torch.equal(reader.read(source), weight.float() * 2)
        assert torch.equal(reader.read(source, (2, 5)), weight[2:5].float() * 2)


class TestFailures:
    def test_a_missing_object_is_reported_once(self, place: Place) -> None:
        store = place("model")
        source = stored(store, {"a": torch.ones(2)})["a"]
        store.delete(["model.safetensors"])
        reader = TensorReader(store._options, retry=RetryPolicy(attempts=2))
        with pytest.raises(CheckpointError, match="changed"):
            reader.read(source)
