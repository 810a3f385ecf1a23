"""Headers and JSON that are small on disk and would be large in memory, and numbers that no field can have."""

from __future__ import annotations

import json
import struct

import pytest

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.formats.bounded_json import LONGEST_INDEX_BYTES, parse_json_object
from eigenmerge.core.formats.safetensors_header import parse_header


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.parametrize("name", ["data_offsets", "data_offset\\u0073"])
def test_empty_tensors_are_counted_however_they_are_spelled(name: str) -> None:
    row = f'"t%06d":{{"dtype":"F32","shape":[0],"{name}":[0,0]}}'
    data = header("{" + ",".join(row % i for i in range(310_000)) + "}")
    with pytest.raises(CheckpointError, match="expected at most"):
        parse_header(data, len(data), "a.safetensors")


def test_a_file_of_many_tensors_is_read() -> None:
    row = '"layers.%d.w":{"dtype":"F32","shape":[0,3,5,7],"data_offsets":[0,0]}'
    data = header("{" + ",".join(row % i for i in range(20_000)) + "}")
    assert len(parse_header(data, len(data), "a.safetensors").tensors) == 20_000


@pytest.mark.parametrize("piece", ["[],", "{},", "0,", '{"":[]},'])
def test_many_small_values_are_refused_before_they_take_memory(piece: str) -> None:
    text = '{"weight_map":[' + piece * 2_000_001 + "0]}"
    with pytest.raises(CheckpointError, match="values of JSON, expected at most 2000000"):
        parse_json_object(text.encode(), "index", LONGEST_INDEX_BYTES)


@pytest.mark.parametrize(
    "shape",
    [[2**62, 2**62], [2**63], [-1], [1.0], [True], ["1"], [[1]], [10**400], [2**31] * 64, [1] * 65, None, {}],
)
def test_shapes_that_no_file_can_hold(shape: object) -> None:
    text = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})
    with pytest.raises(CheckpointError):
        parse_header(header(text), len(text) + 8, "a.safetensors")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "-" + "9" * 4301])
def test_numbers(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"number|large"):
        parse_json_object(f'{{"lora_alpha": {text}}}'.encode(), "adapter_config.json", 10_000)


@pytest.mark.parametrize("text", ['{"a":' * 200_000, "[" * 200_000, '{"a":[' * 99_000])
def test_deep_nesting(text: str) -> None:
    with pytest.raises(CheckpointError):
        parse_json_object(text.encode(), "config.json", LONGEST_INDEX_BYTES)
