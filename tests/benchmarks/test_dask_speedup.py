"""Two Dask workers with one thread each against one, on the same merge: at least 1.7 times as fast.

    python -m pytest tests/benchmarks/test_dask_speedup.py -m benchmark -s

Both clusters are warm (workers started, modules imported) before a run is timed; the store is new each time.
"""

from __future__ import annotations

import os
import platform
import time
from datetime import date
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")

HIDDEN, LAYERS, EXPERTS = 2048, 16, 3


def make_recipe(folder: Path, name: str, hidden: int, layers: int) -> Path:
    """A base and experts of square layers, which are nearly all eigendecomposition."""
    generator = torch.Generator().manual_seed(0)
    places = []
    for index in range(EXPERTS + 1):
        place = folder / f"{name}-{index}"
        place.mkdir()
        shape = (hidden, hidden)
        tensors = {f"layers.{i}.weight": 0.02 * torch.randn(shape, generator=generator) for i in range(layers)}
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        places.append(str(place))
    recipe = {"merge_method": "swudi_a", "base_model": places[0], "models": [{"model": place} for place in places[1:]]}
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.benchmark
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_workers_are_nearly_twice_as_fast(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from eigenmerge.deployments.embedded_server import EmbeddedServer
    from eigenmerge.flows import merge
    from eigenmerge.flows.run_context import RUN_CONTEXT, RunContext

    RUN_CONTEXT.set(RunContext(on_prefect_page=False))
    recipe, small = make_recipe(tmp_path, "large", HIDDEN, LAYERS), make_recipe(tmp_path, "small", 64, 8)
    seconds = {}
    server = EmbeddedServer()
    try:
        with temporary_settings({PREFECT_API_URL: server.url()}):
            for workers in (1, 2):
                env = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
                with distributed.LocalCluster(
                    n_workers=workers, threads_per_worker=1, dashboard_address=None, env=env
                ) as cluster:
                    for kind, what in (("warm", small), ("timed", recipe)):
                        started = time.perf_counter()
                        merge(
                            what,
                            tmp_path / f"{kind}{workers}",
                            store=str(tmp_path / f"store-{kind}{workers}"),
                            runner="dask",
                            runner_address=cluster.scheduler_address,
                            workers=workers,
                        )
                        seconds[workers] = time.perf_counter() - started
    finally:
        server.close()
    ratio = seconds[1] / seconds[2]
    print(
        f"\n{LAYERS} layers of {HIDDEN} x {HIDDEN}, {EXPERTS} experts; 1 worker: {seconds[1]:.1f} s,"
        f" 2: {seconds[2]:.1f} s, ratio {ratio:.2f}; {platform.processor() or platform.machine()}, {date.today()}"
    )
    assert ratio >= 1.7
