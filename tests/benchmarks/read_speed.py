"""Measure how fast the experts of one weight are read: from a local disk, and from the S3 test server with a delay.

    python -m tests.benchmarks.read_speed
    python -m tests.benchmarks.read_speed --delay 20
    python -m tests.benchmarks.read_speed --json       figures by "experts, place" as JSON

Full experts: 4 of 32 MiB. Adapters: 64 of rank 16, two factors of 128 KiB each. The requests pass a proxy of one
process, which bounds the bandwidth; a delay of 0 shows that bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import torch

from eigenmerge.core.listing import TensorSource
from eigenmerge.core.merging.expert_stream import ExpertStream
from eigenmerge.core.planning.plan import ExpertTensor, TensorPlan
from eigenmerge.core.storage.checkpoints.tensor_reader import TensorReader
from tests.conftest import free_port, fresh_s3_root, s3_options, server_process
from tests.core.merging.examples import plan, write_lora, write_tensor
from tests.faulty_proxy import FaultyProxy


def full_experts(folder: Path, count: int = 4) -> TensorPlan:
    shape = (2048, 8192)
    tensors = [
        write_tensor(folder / f"e{i}.safetensors", torch.ones(shape, dtype=torch.bfloat16)) for i in range(count)
    ]
    return plan([ExpertTensor(i, source) for i, source in enumerate(tensors)], shape)


def adapters(folder: Path, count: int = 64) -> TensorPlan:
    factors = torch.ones(4096, 16, dtype=torch.bfloat16), torch.ones(16, 4096, dtype=torch.bfloat16)
    loras = [write_lora(folder / f"a{i}.safetensors", *factors) for i in range(count)]
    return plan([ExpertTensor(i, None, lora) for i, lora in enumerate(loras)], (4096, 4096))


def moved(tensor: TensorPlan, root: str) -> TensorPlan:
    """Return the plan with the same files below a URL."""

    def move(source: TensorSource) -> TensorSource:
        return replace(source, uri=f"{root}/{Path(source.uri).name}")

    experts = [
        replace(
            one,
            full=None if one.full is None else move(one.full),
            lora=None if one.lora is None else replace(one.lora, up=move(one.lora.up), down=move(one.lora.down)),
        )
        for one in tensor.experts
    ]
    return replace(tensor, experts=tuple(experts))


def measure(
    tensor: TensorPlan, options: dict[str, Any] | None, requests: list[Any], repeats: int = 3
) -> dict[str, float]:
    """Read all experts, and return the figures of the fastest of some times.

    Returns
    -------
    dict
        wall and cpu in seconds; bytes and requests per second, the latter 0 for a local disk
    """
    best: dict[str, float] = {"wall": float("inf")}
    for _ in range(repeats + 1):  # the first one opens connections
        reader, before = TensorReader(options), len(requests)
        stream = ExpertStream(tensor, reader, torch.bfloat16, torch.device("cpu"))
        started, cpu = time.perf_counter(), time.process_time()
        for _ in stream:
            pass
        seconds = time.perf_counter() - started
        if seconds < best["wall"]:
            busy = time.process_time() - cpu
            rates = {"bytes": reader.bytes_read / seconds, "requests": (len(requests) - before) / seconds}
            best = {"wall": seconds, "cpu": busy, **rates}
    return best


def text(figures: Mapping[str, float]) -> str:
    rate = f"{figures['requests']:6.0f} requests/s" if figures["requests"] else ""
    return f"{figures['wall']:7.3f} s  {figures['bytes'] / 1e6:7.0f} MB/s  {figures['cpu']:6.3f} CPU s  {rate}"


@contextmanager
def delayed_s3(folder: Path) -> Iterator[tuple[FaultyProxy, str, str]]:
    port = free_port()
    environment = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SERVICES": "s3", "S3_PERSIST": "0"}
    environment |= {"LOG_LEVEL": "WARNING", "TMPDIR": str(folder)}
    with (
        server_process([sys.executable, "-m", "ministack"], port, environment, folder) as url,
        FaultyProxy(url) as proxy,
    ):
        root = fresh_s3_root(url)
        yield proxy, root.uri, url


def measure_all(delay: float) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield what is read, from where, and the figures.

    Parameters
    ----------
    delay : of each request in the last measurements, milliseconds
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = {"full experts": full_experts(folder), "adapters": adapters(folder)}
        for title, tensor in cases.items():
            yield title, "local disk", measure(tensor, None, [])
        with delayed_s3(folder) as (proxy, root, url):
            target = fsspec.filesystem("s3", **{k: v for k, v in s3_options(url).items() if k != "region"})
            for path in folder.glob("*.safetensors"):
                target.put_file(str(path), f"{root}/{path.name}")
            options = s3_options(proxy.endpoint)
            for pause in (0.0, delay):
                proxy.faults.hold = lambda *_, seconds=pause / 1000: time.sleep(seconds)
                place = f"S3, {pause:g} ms" if pause else "S3, no delay"
                for title, tensor in cases.items():
                    yield title, place, measure(moved(tensor, root), options, proxy.requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=5.0, help="of each request, milliseconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for title, place, figures in measure_all(arguments.delay):
        found[f"{title}, {place}"] = figures
        if not arguments.json:
            print(f"{title:14s} {place:14s} {text(figures)}", flush=True)
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
