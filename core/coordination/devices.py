"""Which device a shard computes on: two shards never share a GPU by accident, whatever started them.

A GPU is held through a lock on a small file of this machine, named by the GPU's own identifier. Threads of one process,
Dask workers, Ray workers and a second run on the same node all see the same locks; the kernel lets go of a lock however
its holder dies.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..errors import RecipeError
from .stop import StopSignal

_POLL_SECONDS = 0.2


def cuda_devices() -> dict[str, str]:
    """The visible GPUs: torch's name ("cuda:0") to the GPU's identifier."""
    import torch

    names = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names[f"cuda:{index}"] = str(getattr(properties, "uuid", index))
    return names


@contextlib.contextmanager
def hold_device(
    device: str,
    stop: StopSignal,
    *,
    visible: Callable[[], Mapping[str, str]] = cuda_devices,
    folder: Path | None = None,
) -> Iterator[str]:
    """Wait for a free device and hold it: "cuda" takes any GPU, "cuda:1" that one, "cpu" needs no waiting.

    Raises
    ------
    RecipeError : no such device on this machine
    InterruptedRunError : `stop` was set while waiting
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        if device != "cpu":
            raise RecipeError(f"device {device!r} is unknown; choose cpu, cuda or cuda:N")
        yield device
        return
    found = visible()
    wanted = {name: uuid for name, uuid in found.items() if not index or name == device}
    if not wanted:
        have = f"this machine has {', '.join(found)}" if found else "torch sees no GPU here"
        raise RecipeError(f"device {device!r} is not there: {have}; choose another --device")
    folder = folder or Path(tempfile.gettempdir()) / f"eigenmerge-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for name, uuid in wanted.items():
            lock = _try_lock(folder / f"{uuid}.lock")
            if lock is not None:
                try:
                    yield name
                finally:
                    os.close(lock)
                return
        stop.check()
        time.sleep(_POLL_SECONDS)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None while somebody else does. A lock belongs to a descriptor, not to a
    process, so that two threads exclude each other too."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
