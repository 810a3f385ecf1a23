"""Machine models: the rates that convert a plan to hours and money.

A rate is an effective rate: floating point operations by the convention of this package, divided by measured seconds.
An eigendecomposition of order n counts as 10 n^3 operations and a singular value decomposition as 25 n^3 (n the smaller
side), whatever the library really executes.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

EIGH_FLOPS_PER_CUBE = 10.0
SVD_FLOPS_PER_CUBE = 25.0


class MachineModel(BaseModel):
    """One worker (a GPU with its share of the host, or a few CPU cores) and its connection to the store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of the machine")
    matmul_flops: float = Field(gt=0, description="matrix product in the arithmetic dtype, FLOP/s")
    eigh_flops: float = Field(gt=0, description="symmetric eigendecomposition, FLOP/s by the 10 n^3 convention")
    eigh_seconds_per_row: float = Field(
        default=0.0, ge=0, description="latency of one of the n sequential steps of an eigendecomposition, seconds"
    )
    svd_flops: float = Field(gt=0, description="singular value decomposition, FLOP/s by the 25 n^3 convention")
    elementwise_flops: float = Field(gt=0, description="element by element work (ties, means, casts), FLOP/s")
    read_bandwidth: float = Field(gt=0, description="store to worker, bytes/s, one worker alone")
    write_bandwidth: float = Field(gt=0, description="worker to store, bytes/s, one worker alone")
    store_bandwidth: float | None = Field(
        default=None,
        gt=0,
        description="bandwidth of the store for all workers together, bytes/s; none: no common limit",
    )
    copy_bandwidth: float | None = Field(
        default=None, gt=0, description="server-side copy of parts to files, bytes/s in total; none: takes no time"
    )
    device_bandwidth: float | None = Field(
        default=None,
        gt=0,
        description="host memory to GPU and back, bytes/s; none: the worker computes in host memory",
    )
    memory_bytes: int = Field(gt=0, description="memory for one shard, bytes")
    price_per_hour: float = Field(default=0.0, ge=0, description="price of one worker, in any currency")
    shard_overhead_seconds: float = Field(
        default=1.0, ge=0, description="scheduling, opening files and warming up, per shard"
    )
    overlapped: bool = Field(default=True, description="the next expert is read while the previous one is accumulated")
    source: str = Field(description="origin of the numbers: the script that measured them, or the assumption")


_CPU = MachineModel(
    name="cpu-2core",
    matmul_flops=227e9,
    eigh_flops=150e9,
    svd_flops=150e9,
    elementwise_flops=2e9,
    read_bandwidth=1.0e9,
    write_bandwidth=0.5e9,
    memory_bytes=16 * 2**30,
    price_per_hour=0.10,
    shard_overhead_seconds=0.1,
    source="measured: two x86 cores, MKL float32, tests/benchmarks/layer_costs.py; local disk and price assumed",
)

_H100 = MachineModel(
    name="h100-80gb",
    matmul_flops=54e12,
    eigh_flops=18e12,
    eigh_seconds_per_row=12.5e-6,
    svd_flops=1.8e12,
    elementwise_flops=0.75e12,
    read_bandwidth=2.0e9,
    write_bandwidth=1.0e9,
    store_bandwidth=50e9,
    copy_bandwidth=5e9,
    device_bandwidth=10e9,
    memory_bytes=72 * 2**30,
    price_per_hour=4.0,
    shard_overhead_seconds=1.0,
    source=(
        "measured: one H100 80GB HBM3, CUDA 13.0, torch 2.11, float32 without TF32, tests/benchmarks/layer_costs.py;"
        " object store, copies to the GPU, overhead and price are round numbers"
    ),
)

# machines for `--machine NAME`; a file with the fields of MachineModel describes any other machine
MACHINES: dict[str, MachineModel] = {machine.name: machine for machine in (_CPU, _H100)}
