"""Requests to a remote store that are made at the same time: a server answers none before all have arrived."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.merging.blocks.block_stream import BlockStream
from eigenmerge.core.merging.expert_stream import ExpertStream
from eigenmerge.core.planning.plan import ExpertTensor
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader

from ...conftest import S3Root
from ...faulty_proxy import FaultyProxy
from .examples import Weight, plan, random, write_lora

CPU = torch.device("cpu")


def upload(source: TensorSource, root: S3Root) -> TensorSource:
    options = {name: value for name, value in root.storage_options.items() if name != "region"}
    path = Path(source.uri)
    fsspec.filesystem("s3", **options).put_file(str(path), f"{root.uri}/{path.name}")
    return replace(source, uri=f"{root.uri}/{path.name}")


class Together:
    """Makes a proxy hold requests for weights until those for `count` files have arrived.

    failed : files whose request was held for a minute, because the others did not arrive
    """

    def __init__(self, proxy: FaultyProxy, count: int) -> None:
        self.failed: list[str] = []
        self._count, self._files = count, set[str]()
        self._arrived, self._lock = threading.Event(), threading.Lock()
        proxy.faults.hold = self._hold

    def _hold(self, method: str, path: str) -> None:
        if method != "GET" or ".safetensors" not in path:
            return
        with self._lock:
            self._files.add(path)  # a request that is repeated after a time-out counts once
            if len(self._files) >= self._count:
                self._arrived.set()
        if not self.failed and not self._arrived.wait(60):
            self.failed.append(path)


def test_factors_of_many_adapters(faulty_s3: tuple[FaultyProxy, S3Root], tmp_path: Path) -> None:
    proxy, root = faulty_s3
    experts: list[ExpertTensor] = []
    for index in range(8):
        lora = write_lora(tmp_path / f"a{index}.safetensors", random(index, 12, 2), random(-1 - index, 2, 10))
        up = upload(lora.up, root)
        experts.append(ExpertTensor(index, None, replace(lora, up=up, down=replace(lora.down, uri=up.uri))))
    stream = ExpertStream(plan(experts, (12, 10)), TensorReader(root.storage_options), torch.float32, CPU)
    together = Together(proxy, 8)
    found = [delta.dense() for delta in stream]
    assert not together.failed
    for index, delta in enumerate(found):
        torch.testing.assert_close(delta, random(index, 12, 2) @ random(-1 - index, 2, 10))


@pytest.mark.parametrize("in_blocks", [False, True])
def test_small_full_experts(faulty_s3: tuple[FaultyProxy, S3Root], tmp_path: Path, in_blocks: bool) -> None:
    proxy, root = faulty_s3
    weight = Weight.random(tmp_path, 12, 10)
    assert weight.base_source is not None and weight.base is not None
    base = upload(weight.base_source, root)
    weight.sources = [upload(source, root) for source in weight.sources]
    tensor = replace(weight.plan(), base=base, in_blocks=in_blocks)
    reader = TensorReader(root.storage_options)
    if in_blocks:
        together = Together(proxy, 4)  # the base and three experts
        stream = BlockStream(tensor, reader, torch.float32, 0)
        values = [stream.values(index, 0, 120).reshape(12, 10) for index in (-1, 0, 1, 2)]
        stream.close()
        deltas = [expert - values[0] for expert in values[1:]]
    else:
        together = Together(proxy, 3)
        deltas = list(ExpertStream(tensor, reader, torch.float32, CPU).task_vectors())
    assert not together.failed
    for found, expected in zip(deltas, weight.deltas, strict=True):
        torch.testing.assert_close(found, expected)
