"""A read-only fsspec file system with checkpoints too large to store: bytes are generated when they are read.

    synthetic://llama-70b/base                     140 GB in 5 GB files, index, config
    synthetic://llama-70b/expert3                  the same model, fine-tuned
    synthetic://llama-70b/lora5                    a PEFT adapter of rank 16 on every linear layer
    synthetic://llama-70b.blocks-0-1/base          two blocks only, embeddings and head
    synthetic://llama-70b.blocks-0-1.bare/base     two blocks only

A tensor has the same bytes in every subset that contains it. `bytes_served` counts the bytes read.
"""

from __future__ import annotations

import json
import re
import struct
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from .generate import fill_tensor_bytes, tensor_seed
from .shapes import LORA_RANK, Llama, parse_model

_SMALL_READS = threading.Lock()
_LARGE_BYTES = 2**20
MAX_FILE_BYTES = 5_000_000_000
_MEMBER = re.compile(r"base|(expert|lora)(\d{1,4})")
_LISTED = ["base", *(f"expert{i}" for i in range(8)), *(f"lora{i}" for i in range(8))]


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes [start, stop) of a file: given, or generated from seeds."""

    start: int
    stop: int
    content: bytes | None = None
    base_seed: int = 0
    expert_seed: int | None = None


@dataclass(frozen=True, slots=True)
class SyntheticFile:
    size: int
    regions: tuple[Region, ...]

    def read(self, start: int, stop: int) -> bytes | bytearray:
        """Return the bytes, without a second copy of a large range, which would be measured as memory of a merge."""
        # Threads that generate small pieces at once would only pass the interpreter's lock to each other.
        with _SMALL_READS if stop - start < _LARGE_BYTES else nullcontext():
            return self._generate(start, stop)

    def _generate(self, start: int, stop: int) -> bytes | bytearray:
        out = bytearray(stop - start)
        view = np.frombuffer(out, dtype=np.uint8)
        for region in self.regions:
            low, high = max(start, region.start), min(stop, region.stop)
            if low >= high:
                continue
            target = view[low - start : high - start]
            if region.content is not None:
                target[:] = np.frombuffer(region.content, np.uint8)[low - region.start : high - region.start]
            else:
                fill_tensor_bytes(target, low - region.start, region.base_seed, region.expert_seed)
        return bytes(out) if len(out) < _LARGE_BYTES else out


def _content_file(content: bytes) -> SyntheticFile:
    return SyntheticFile(len(content), (Region(0, len(content), content),))


def _json_file(value: object) -> SyntheticFile:
    return _content_file(json.dumps(value, indent=2).encode())


def _safetensors_file(tensors: dict[str, tuple[int, ...]], preset: str, member: str) -> SyntheticFile:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        stop = offset + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    regions = [Region(0, start, struct.pack("<Q", len(text)) + text)]
    for name, shape in tensors.items():
        stop = start + 2 * prod(shape)
        if member.startswith("lora"):
            regions.append(Region(start, stop, None, tensor_seed(preset, name, member)))
        else:
            expert_seed = None if member == "base" else tensor_seed(preset, name, member)
            regions.append(Region(start, stop, None, tensor_seed(preset, name), expert_seed))
        start = stop
    return SyntheticFile(start, tuple(regions))


def _full_model(model: Llama, member: str) -> dict[str, SyntheticFile]:
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    group_bytes = 0
    for name, shape in model.tensors().items():
        num_bytes = 2 * prod(shape)
        if groups[-1] and group_bytes + num_bytes > MAX_FILE_BYTES:
            groups.append({})
            group_bytes = 0
        groups[-1][name] = shape
        group_bytes += num_bytes
    files = {"config.json": _json_file(model.config())}
    if len(groups) == 1:
        files["model.safetensors"] = _safetensors_file(groups[0], model.preset, member)
        return files
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file_name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        files[file_name] = _safetensors_file(group, model.preset, member)
        weight_map |= dict.fromkeys(group, file_name)
    total = sum(2 * prod(shape) for shape in model.tensors().values())
    files["model.safetensors.index.json"] = _json_file({"metadata": {"total_size": total}, "weight_map": weight_map})
    return files


def _adapter(model: Llama, model_text: str, member: str) -> dict[str, SyntheticFile]:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": f"synthetic://{model_text}/base",
        "r": LORA_RANK,
        "lora_alpha": 2 * LORA_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "target_modules": sorted({name.rpartition(".")[2] for name in model.linears(0)}),
    }
    return {
        "adapter_config.json": _json_file(config),
        "adapter_model.safetensors": _safetensors_file(model.adapter_tensors(), model.preset, member),
    }


@lru_cache(maxsize=256)
def _directory(model_text: str, member: str) -> dict[str, SyntheticFile] | None:
    model = parse_model(model_text)
    if model is None or _MEMBER.fullmatch(member) is None:
        return None
    return _adapter(model, model_text, member) if member.startswith("lora") else _full_model(model, member)


class SyntheticFileSystem(AbstractFileSystem):
    protocol = "synthetic"
    root_marker = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bytes_served = 0

    def _file(self, path: str) -> SyntheticFile | None:
        parts = self._strip_protocol(path).split("/")
        directory = _directory(parts[0], parts[1]) if len(parts) == 3 else None
        return directory.get(parts[2]) if directory is not None else None

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        file = self._file(path)
        if file is not None:
            etag = f"{tensor_seed(path, str(file.size)):016x}"
            return {"name": path, "size": file.size, "type": "file", "ETag": etag}
        parts = path.split("/")
        known = parse_model(parts[0]) is not None
        if known and (len(parts) == 1 or (len(parts) == 2 and _MEMBER.fullmatch(parts[1]) is not None)):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        info = self.info(path)
        if info["type"] == "file":
            return [info] if detail else [path]
        parts = path.split("/")
        if len(parts) == 1:
            names = _LISTED
        else:
            directory = _directory(parts[0], parts[1])
            assert directory is not None
            names = sorted(directory)
        entries = [self.info(f"{path}/{name}") for name in names]
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        file = self._file(path)
        if file is None:
            raise FileNotFoundError(path)
        low, high, _ = slice(start, end).indices(file.size)
        content = file.read(low, max(low, high))
        self.bytes_served += len(content)  # not exact with several threads; only tests with one thread use it
        return content

    def ukey(self, path: str) -> str:
        return str(self.info(path)["ETag"])

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        if mode != "rb":
            raise PermissionError(f"synthetic://{path}: this file system is read-only")
        kwargs.pop("autocommit", None)
        kwargs.pop("cache_options", None)
        kwargs.setdefault("cache_type", "none")
        return _SyntheticReader(self, path, mode, block_size or "default", **kwargs)


class _SyntheticReader(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)
