"""Compare the requests of s3fs, which Eigenmerge makes, with those of obstore, on the S3 test server.

    pip install obstore
    python -m tests.benchmarks.obstore_speed

Both read the same ranges with 16 threads into one buffer. CPU seconds are those of the client; the server is another
process on the same machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import torch
from obstore.store import S3Store

from eigenmerge.core.storage.store import Store
from tests.benchmarks.read_speed import delayed_s3
from tests.conftest import ACCESS_KEY, SECRET_KEY, s3_options

OBJECT_BYTES = 128 * 2**20
THREADS = 16


def measure(fetch: Callable[[int, int], object], request_bytes: int, total: int, repeats: int = 5) -> str:
    """Read the first `total` bytes, and describe the fastest of some times."""
    data = torch.empty(total, dtype=torch.uint8)
    target = memoryview(data.numpy().data)

    def read(start: int) -> None:
        target[start : start + request_bytes] = memoryview(fetch(start, start + request_bytes)).cast("B")  # type: ignore[arg-type]

    best: tuple[float, float] = (float("inf"), 0.0)
    for _ in range(repeats):
        started, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, range(0, total, request_bytes)))
        best = min(best, (time.perf_counter() - started, time.process_time() - cpu))
    return f"{best[0]:.3f} s, {total / best[0] / 1e6:5.0f} MB/s, {best[1]:.3f} CPU s"


def main() -> None:
    with tempfile.TemporaryDirectory() as name, delayed_s3(Path(name)) as (_, root, url):
        mine = Store(root, s3_options(url))
        mine.write("object", bytes(OBJECT_BYTES))
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        options = {"endpoint": url, "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
        theirs = S3Store(bucket, prefix=prefix, region="us-east-1", client_options={"allow_http": True}, **options)  # type: ignore[arg-type]
        for request_bytes, total in ((8 * 2**20, OBJECT_BYTES), (128 * 2**10, 32 * 2**20)):
            title = f"{request_bytes // 2**10} KiB"
            print(f"{title:9s} s3fs     {measure(lambda a, b: mine.read_range('object', a, b), request_bytes, total)}")
            fetch = lambda a, b: obstore.get_range(theirs, "object", start=a, end=b)  # noqa: E731
            print(f"{title:9s} obstore  {measure(fetch, request_bytes, total)}")


if __name__ == "__main__":
    main()
