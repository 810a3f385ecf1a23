"""Views on stored tensors: reading one gives what torch makes of the stored tensors, from as few bytes as possible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.storage.checkpoints.list_model import list_model
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from eigenmerge.core.views import (
    concatenate,
    held_bytes,
    reshape,
    select,
    select_index,
    stack,
    stored_tensors,
    transpose,
)

STORED = {name: torch.arange(seed, seed + 24.0).reshape(2, 4, 3) for seed, name in enumerate("abcd")}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TensorSource]:
    """Stored tensors by name, each in a file of its own; "scaled" is float8 with one scale per row."""
    found: dict[str, TensorSource] = {}
    for name, tensor in STORED.items():
        folder = tmp_path_factory.mktemp(name)
        save_file({"x": tensor, "y.weight": tensor.bfloat16()}, folder / "model.safetensors")
        listed = list_model(str(folder)).tensors
        found |= {name: listed["x"], f"{name}16": listed["y.weight"]}
    folder = tmp_path_factory.mktemp("scaled")
    weight = torch.arange(12.0).reshape(4, 3).to(torch.float8_e4m3fn)
    save_file({"s.weight": weight, "s.weight_scale": torch.arange(1.0, 5).reshape(4, 1)}, folder / "model.safetensors")
    return found | {"scaled": list_model(str(folder)).tensors["s.weight"]}


SCALED = torch.arange(12.0).reshape(4, 3) * torch.arange(1.0, 5).reshape(4, 1)


class TestReading:
    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_any_view_equals_what_torch_makes(self, sources: dict[str, TensorSource], data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3), label="joined")
        dim = data.draw(st.integers(0, 2), label="dim")
        source, expected = concatenate([sources[n] for n in names], dim), torch.cat([STORED[n] for n in names], dim)
        for _ in range(data.draw(st.integers(1, 5), label="steps")):
            action = data.draw(st.sampled_from(["select", "index", "transpose", "stack", "flatten"]), label="action")
            if action == "select":
                along = data.draw(st.integers(0, expected.ndim - 1), label="along")
                size = expected.shape[along]
                start = data.draw(st.integers(0, size), label="start")
                stop = data.draw(st.integers(start, size), label="stop")
                step = data.draw(st.integers(1, 3), label="step")
                source = select(source, along, start, stop, step)
                expected = expected[(slice(None),) * along + (slice(start, stop, step),)]
            elif action == "index" and expected.ndim > 2 and expected.shape[0]:
                index = data.draw(st.integers(0, expected.shape[0] - 1), label="index")
                source, expected = select_index(source, index), expected[index]
            elif action == "transpose":
                source, expected = transpose(source), expected.transpose(-1, -2)
            elif action == "stack":
                source, expected = stack([source, source]), torch.stack([expected, expected])
            elif action == "flatten":
                shape = (expected.shape[0], expected[0].numel()) if expected.shape[0] else tuple(expected.shape)
                source, expected = reshape(source, shape), expected.reshape(shape)
        reader = TensorReader()
        found = reader.read(source)
        assert found.shape == expected.shape == source.shape
        assert torch.equal(found, expected)
        assert source.num_bytes == reader.bytes_read
        assert held_bytes(source) >= source.num_bytes or len(list(stored_tensors(source))) > 1

    def test_float8_pieces_are_multiplied_by_the_scales_of_their_rows(self, sources: dict[str, TensorSource]) -> None:
        scaled = sources["scaled"]
        rows = select(scaled, 0, 1, 3)
        joined = concatenate([rows, transpose(transpose(select(scaled, 0, 0, 2)))])
        assert torch.equal(TensorReader().read(joined), torch.cat([SCALED[1:3], SCALED[:2]]))
        assert torch.equal(TensorReader().read(stack([rows, rows]), (1, 2)), SCALED[1:3].unsqueeze(0))
        assert torch.equal(TensorReader().read(select(scaled, 1, 0, 3, 2)), SCALED[:, ::2])

    def test_pieces_of_different_dtypes_are_joined_in_float32(self, sources: dict[str, TensorSource]) -> None:
        joined = concatenate([sources["a"], sources["b16"]])
        assert joined.dtype == "F32"
        assert torch.equal(TensorReader().read(joined), torch.cat([STORED["a"], STORED["b"]]))

    def test_rows_of_a_view(self, sources: dict[str, TensorSource]) -> None:
        joined = concatenate([sources["a"], sources["b"]])
        assert torch.equal(TensorReader().read(joined, (1, 3)), torch.stack([STORED["a"][1], STORED["b"][0]]))


class TestBytes:
    def test_a_part_reads_only_the_files_and_the_rows_that_it_needs(self, sources: dict[str, TensorSource]) -> None:
        stacked = stack([concatenate([sources["a"], sources["b"]], 1), concatenate([sources["c"], sources["d"]], 1)])
        part = select(select_index(stacked, 1), 1, 0, 4)  # all of c
        assert part == sources["c"]
        row = select_index(select_index(concatenate([sources["a"], sources["b"]]), 3), 2)
        assert (row.uri, row.num_bytes, row.view) == (sources["b"].uri, 3 * 4, None)

    def test_the_bytes_of_a_view_include_scales(self, sources: dict[str, TensorSource]) -> None:
        assert concatenate([sources["scaled"], sources["scaled"]]).num_bytes == 2 * (12 + 4 * 4)

    def test_shapes_that_do_not_fit_are_a_mistake_of_the_caller(self, sources: dict[str, TensorSource]) -> None:
        with pytest.raises(AssertionError, match="do not fit"):
            concatenate([sources["a"], reshape(sources["b"], (4, 2, 3))], 1)
