"""Generate any range of bytes of a synthetic bf16 tensor by a counter-based hash, so that nothing is stored.

Word w (8 bytes, four bf16 numbers) of a tensor is splitmix64(seed + w * golden), masked so that every number is finite:
random sign and mantissa, exponent 2^-9 to 2^-6, about the size of a trained weight. The three low mantissa bits are 4
in the base and a hash of the expert in an expert: a dense, full-rank task vector of a few percent of the weight,
nearly orthogonal to those of other experts.
"""

from __future__ import annotations

import hashlib
import os
from queue import SimpleQueue

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1
_CHUNK = 1 << 15  # words: three arrays of 256 KiB fit in the second-level cache
_BUFFERS: SimpleQueue[np.ndarray] = SimpleQueue()
for _ in range(os.cpu_count() or 1):
    _BUFFERS.put(np.empty((3, _CHUNK), dtype=np.uint64))
_STEPS = np.arange(_CHUNK, dtype=np.uint64) * np.uint64(_GOLDEN)
_SIGN_EXPONENT_MANTISSA = np.uint64(0x81F8_81F8_81F8_81F8)  # sign, two bits of the exponent, four of the mantissa
_SMALLEST = np.uint64(0x3B00_3B00_3B00_3B00)  # 2^-9 in bf16
_LOW_MANTISSA = np.uint64(0x0007_0007_0007_0007)
_MIDDLE = np.uint64(0x0004_0004_0004_0004)


def tensor_seed(*parts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little")


def _splitmix64(words: np.ndarray, scratch: np.ndarray, seed: int, first_word: int) -> None:
    """Fill `words` with the hash of (seed, first_word ...); Steele, Lea, Flood, doi:10.1145/2660193.2660195."""
    start = (seed + (first_word + 1) * _GOLDEN) & _MASK64
    np.add(_STEPS[: len(words)], np.uint64(start), out=words)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(words, np.uint64(shift), out=scratch)
        np.bitwise_xor(words, scratch, out=words)
        np.multiply(words, np.uint64(factor), out=words)
    np.right_shift(words, np.uint64(31), out=scratch)
    np.bitwise_xor(words, scratch, out=words)


def fill_tensor_bytes(out: np.ndarray, start: int, base_seed: int, expert_seed: int | None) -> None:
    """Write the bytes [start, start + len(out)) of a tensor into `out`, uint8.

    Waits where as many threads as there are cores generate already: what the C library keeps for each thread would be
    measured as memory of a merge.
    """
    buffers = _BUFFERS.get()
    try:
        _fill(out, start, base_seed, expert_seed, buffers)
    finally:
        _BUFFERS.put(buffers)


def _fill(out: np.ndarray, start: int, base_seed: int, expert_seed: int | None, buffers: np.ndarray) -> None:
    words, other, scratch = buffers
    done = 0
    while done < len(out):
        first_word, skip = divmod(start + done, 8)
        count = min(_CHUNK, -(-(skip + len(out) - done) // 8))
        chunk = words[:count]
        _splitmix64(chunk, scratch[:count], base_seed, first_word)
        np.bitwise_and(chunk, _SIGN_EXPONENT_MANTISSA, out=chunk)
        if expert_seed is None:
            np.add(chunk, _SMALLEST + _MIDDLE, out=chunk)
        else:
            _splitmix64(other[:count], scratch[:count], expert_seed, first_word)
            np.bitwise_and(other[:count], _LOW_MANTISSA, out=other[:count])
            np.add(other[:count], _SMALLEST, out=other[:count])
            np.add(chunk, other[:count], out=chunk)
        piece = chunk.view(np.uint8)[skip : skip + len(out) - done]
        out[done : done + len(piece)] = piece
        done += len(piece)
