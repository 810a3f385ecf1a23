"""Write checkpoints of a mixture of 671 billion weights whose files have true headers and sizes, and no bytes on disk.

    python -m tests.benchmarks.peers.programs.headers FOLDER NUM_MODELS

Weights of the blocks are float8 with a scale for each 128 x 128, as DeepSeek-V3 is published. The data of the files is
a hole: it reads as zeros, and takes no space where the file system has sparse files.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from eigenmerge.core.planning.model_shapes import ModelShape, find_shape

NUM_FILES = 163  # as published
_BLOCK = 128
_WIDTHS = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def stored_tensors(shape: ModelShape) -> Tensors:
    """Return dtype and shape of every stored tensor by name."""
    found: Tensors = {}
    for name, size in shape.tensors().items():
        if ".layers." not in name or len(size) != 2 or name.endswith("gate.weight"):
            found[name] = "F32" if name.endswith("e_score_correction_bias") else "BF16", size
            continue
        found[name] = "F8_E4M3", size
        found[f"{name}_scale_inv"] = "F32", tuple(-(-length // _BLOCK) for length in size)
    return found


def write_checkpoint(folder: Path, shape: ModelShape, num_files: int = NUM_FILES) -> int:
    """Write config, index and weight files, and return the number of stored tensors."""
    folder.mkdir(parents=True)
    tensors = stored_tensors(shape)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [_BLOCK, _BLOCK]}
    config = {"architectures": ["DeepseekV3ForCausalLM"], **shape.config, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    places: dict[str, str] = {}
    for number, names in enumerate(_split(list(tensors), num_files), 1):
        file = f"model-{number:05}-of-{num_files:06}.safetensors"
        _write_file(folder / file, {name: tensors[name] for name in names})
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return len(tensors)


def _split(names: list[str], count: int) -> Iterator[list[str]]:
    for number in range(count):
        yield names[len(names) * number // count : len(names) * (number + 1) // count]


def _write_file(file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, size) in tensors.items():
        start, end = end, end + _WIDTHS[dtype] * prod(size)
        header[name] = {"dtype": dtype, "shape": size, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as output:
        output.write(struct.pack("<Q", len(text)) + text)
        output.truncate(8 + len(text) + end)


if __name__ == "__main__":
    for index in range(int(sys.argv[2])):
        write_checkpoint(Path(sys.argv[1]) / f"model{index}", find_shape("deepseek-v3"))
