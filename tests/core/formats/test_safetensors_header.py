"""Headers: agreement with the reference implementation in both directions, and CheckpointError for everything else."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize
from safetensors.torch import load, save

from eigenmerge.core.errors import CheckpointError
from eigenmerge.core.formats.dtypes import DTYPES, tensor_bytes
from eigenmerge.core.formats.safetensors_header import build_header, parse_header


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, stop: int, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


class TestReading:
    def test_files_of_the_reference_implementation(self) -> None:
        tensors = {
            "a": torch.randn(3, 4),
            "b.bias": torch.randn(5).to(torch.bfloat16),
            "empty": torch.empty(0, 7),
            "scalar": torch.tensor(1.5, dtype=torch.float64),
            "mask": torch.ones(3, dtype=torch.bool),
            "f8": torch.ones(4).to(torch.float8_e4m3fn),
        }
        data = save(tensors, {"format": "pt"})
        header = parse_header(data, len(data), "x")
        assert header.metadata == {"format": "pt"}
        assert set(header.tensors) == set(tensors)
        for name, tensor in tensors.items():
            found = header.tensors[name]
            assert found.shape == tuple(tensor.shape)
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            assert data[found.start : found.stop] == raw

    def test_data_beyond_the_header_is_ignored(self) -> None:
        data = save({"a": torch.ones(4)})
        end = 8 + struct.unpack("<Q", data[:8])[0]
        assert parse_header(data[:end], len(data), "x") == parse_header(data, len(data), "x")

    def test_a_file_without_tensors(self) -> None:
        assert parse_header(file_of({}), 10, "x").tensors == {}

    def test_tensors_come_in_the_order_of_the_data(self) -> None:
        data = file_of({"b": entry(4, 8), "a": entry(0, 4)}, bytes(8))
        assert list(parse_header(data, len(data), "x").tensors) == ["a", "b"]


class TestRefusing:
    @pytest.mark.parametrize(
        ("header", "data", "message"),
        [
            ({"a": entry(0, 8)}, bytes(4), "truncated"),
            ({"a": entry(0, 8)}, bytes(12), "belong to no tensor"),
            ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "overlaps"),
            ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "gap"),
            ({"a": entry(4, 8)}, bytes(8), "gap"),
            ({"a": entry(0, 8, shape=[3])}, bytes(8), "expected 12"),
            ({"a": entry(0, 8, dtype="F33")}, bytes(8), "F33"),
            ({"a": entry(0, 8, dtype=None)}, bytes(8), "dtype"),
            ({"a": entry(8, 0, shape=[0])}, bytes(8), "a"),
            ({"a": entry(0, 8, shape=[-2])}, bytes(8), "non-negative"),
            ({"a": entry(0, 8, shape=[2.0])}, bytes(8), "non-negative"),
            ({"a": entry(0, 8, shape=[True, 2])}, bytes(8), "non-negative"),
            ({"a": entry(0, 8, shape=2)}, bytes(8), "non-negative"),
            ({"a": entry(0, 8, shape=[1] * 65)}, bytes(8), "non-negative"),
            ({"a": entry(0, 2**60, shape=[2**58])}, bytes(8), "truncated"),
            ({"a": entry(0, 8, shape=[2**62, 2**62, 2**62])}, bytes(8), "2\\^63"),
            ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "data_offsets"),
            ({"a": {**entry(0, 8), "more": 1}}, bytes(8), "data_offsets"),
            ({"a": 5}, bytes(8), "data_offsets"),
            ({"a": {**entry(0, 8), "data_offsets": [0, 8, 9]}}, bytes(8), "data_offsets"),
            ({"a": {**entry(0, 8), "data_offsets": [-8, 0]}}, bytes(8), "data_offsets"),
            ({"": entry(0, 8)}, bytes(8), "empty"),
            ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
            ({"__metadata__": "a"}, b"", "__metadata__"),
            (b'{"a": 1, "a": 2}', b"", "duplicate"),
            (b'{"__metadata__": {"x": "1", "x": "2"}}', b"", "duplicate"),
            (b"[1, 2]", b"", "object"),
            (b'"text"', b"", "object"),
            (b"{", b"", "JSON"),
            (b'{"a": NaN}', b"", "NaN"),
            (b"\xff\xfe{}", b"", "UTF-8"),
            (b"[" * 100_000, b"", "JSON|nested"),
            (b'{"a":' * 100_000, b"", "JSON|nested"),
            (b'{"a": ' + b"9" * 5000 + b"}", b"", "5000 digits"),
            (b'{"\\ud800": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8), "Unicode"),
        ],
    )
    def test_a_damaged_header(self, header: object, data: bytes, message: str) -> None:
        content = file_of(header, data)
        with pytest.raises(CheckpointError, match=message) as caught:
            parse_header(content, len(content), "model.safetensors")
        text = str(caught.value)
        assert "model.safetensors" in text
        assert "\n" not in text
        assert len(text) < 700

    @pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 5), struct.pack("<Q", 2**60) + b"{}"])
    def test_a_file_with_an_incomplete_header(self, content: bytes) -> None:
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            parse_header(content, len(content), "model.safetensors")

    @pytest.mark.parametrize("claim", [2**60, 100_000_001, 99_000_000])
    def test_memory_does_not_depend_on_the_claimed_length(self, claim: int) -> None:
        content = struct.pack("<Q", claim) + b"{}"
        tracemalloc.start()
        with pytest.raises(CheckpointError):
            parse_header(content, len(content), "x")
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()


class TestWriting:
    def test_the_reference_implementation_reads_it(self) -> None:
        tensors = {"z": torch.randn(2, 3), "a": torch.arange(5, dtype=torch.int64), "none": torch.empty(0, 2)}
        names = {"z": ("F32", (2, 3)), "a": ("I64", (5,)), "none": ("F32", (0, 2))}
        header = build_header(names, {"format": "pt"})
        assert len(header) % 8 == 0
        data = header + b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
        again = load(data)
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
        parsed = parse_header(data, len(data), "x")
        assert parsed.metadata == {"format": "pt"}
        assert parsed.data_start == len(header)
        assert next(iter(parsed.tensors)) == "z"

    def test_names_of_every_script(self) -> None:
        header = build_header({'层.ß\u0001"\\': ("F16", (1,))})
        assert list(parse_header(header + b"xx", len(header) + 2, "x").tensors) == ['层.ß\u0001"\\']

    @settings(deadline=None, max_examples=50)
    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10).filter(
                lambda name: name != "__metadata__"
            ),
            st.tuples(
                st.sampled_from([dtype.name for dtype in DTYPES.values() if dtype.bits >= 8]),
                st.lists(st.integers(0, 4), max_size=3).map(tuple),
            ),
            max_size=6,
        )
    )
    def test_round_trip(self, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        header = build_header(tensors)
        data = header + bytes(sum(tensor_bytes(*tensor) for tensor in tensors.values()))
        parsed = parse_header(data, len(data), "x")
        assert {name: (e.dtype, e.shape) for name, e in parsed.tensors.items()} == tensors
        deserialize(data)  # accepted by the reference implementation


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "X"]) | st.none() | st.integers(),
        "shape": st.lists(st.integers(-1, 2**64) | st.integers(0, 4) | st.floats(), max_size=4) | st.none(),
        "data_offsets": st.lists(st.integers(-1, 2**64) | st.integers(0, 16), max_size=3),
    }
)


class TestFuzz:
    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        self.parse_or_checkpoint_error(data)

    @settings(deadline=None, max_examples=200)
    @given(
        st.dictionaries(st.text(max_size=5), ENTRIES | st.none() | st.text(max_size=3), max_size=4),
        st.binary(max_size=32),
    )
    def test_any_entries(self, header: dict[str, object], data: bytes) -> None:
        self.parse_or_checkpoint_error(file_of(header, data))

    @settings(deadline=None, max_examples=200)
    @given(st.integers(0, 400), st.integers(0, 7), st.integers(0, 400))
    def test_a_flipped_bit_or_a_shorter_file(self, position: int, bit: int, length: int) -> None:
        data = bytearray(save({"a": torch.ones(3), "b": torch.ones(2, 2).half()}, {"format": "pt"}))
        data[position % len(data)] ^= 1 << bit
        self.parse_or_checkpoint_error(bytes(data))
        self.parse_or_checkpoint_error(bytes(data[:length]))

    @staticmethod
    def parse_or_checkpoint_error(data: bytes) -> None:
        """What we accept, the reference accepts; what we refuse, we refuse with our error."""
        try:
            parse_header(data, len(data), "x")
        except CheckpointError:
            return
        deserialize(data)


def test_the_number_of_tensors_is_bounded_before_the_header_is_parsed() -> None:
    """23 MB of empty tensors took 9 s and 360 MB."""
    entries = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(100_001))
    text = ("{" + entries + "}").encode()
    data = struct.pack("<Q", len(text)) + text
    with pytest.raises(CheckpointError, match="header lists 100001 tensors, expected at most 100000"):
        parse_header(data, len(data), "model.safetensors")
