"""Device of a shard: a GPU computes one shard at a time, whatever started the shards.

A GPU is held by a file lock on this machine, named by the GPU's UUID. Threads of one process, Dask workers, Ray workers
and a second run on the same machine use the same locks. The kernel releases a lock when its process dies.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import cast

from ..errors import RecipeError
from .stop import StopSignal

_POLL_SECONDS = 0.2


def cuda_devices() -> dict[str, str]:
    """Return the visible GPUs: torch's name ("cuda:0") to the GPU's UUID."""
    import torch

    names: dict[str, str] = {}
    for index in range(torch.cuda.device_count()):
        # torch does not annotate what it returns
        properties = cast("object", torch.cuda.get_device_properties(index))  # pyright: ignore[reportUnknownMemberType]
        names[f"cuda:{index}"] = str(getattr(properties, "uuid", index))
    return names


@contextlib.contextmanager
def hold_device(
    device: str,
    stop: StopSignal,
    *,
    visible: Callable[[], Mapping[str, str]] = cuda_devices,
    folder: Path | None = None,
) -> Generator[str, None, None]:
    """Wait for a free device and hold it while the block runs; yields its name for torch.

    Parameters
    ----------
    device : "cuda" for any GPU, "cuda:1" for that one, "cpu", which any number of shards may use
    visible : returns the GPUs, as `cuda_devices`
    folder : of the lock files; by default one of this user below the system's temporary directory

    Raises
    ------
    RecipeError : this machine has no such device
    InterruptedRunError : `stop` was set while waiting
    """
    if device == "cpu":
        yield device
        return
    wanted = _matching_gpus(device, visible)
    folder = own_folder(folder) if folder is not None else _lock_folder()
    while True:
        with contextlib.ExitStack() as held:
            for name, uuid in wanted.items():
                if _try_lock(folder / f"{uuid}.lock", held):
                    yield name
                    return
        stop.check()
        time.sleep(_POLL_SECONDS)


def own_folder(folder: Path) -> Path:
    """Create a folder that only this user can write to, and return it.

    Raises
    ------
    RecipeError : it is a link, belongs to another user, or others may write to it, who could then replace its files
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise RecipeError(f"{folder}: cannot hold the lock files of GPUs: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RecipeError(
            f"{folder}: cannot hold the lock files of GPUs: expected a folder of this user that no other user may write"
            " to; remove it, or set TMPDIR"
        )
    return folder


def _lock_folder() -> Path:
    """Return the folder of this user below the temporary directory, or in the home directory where another user has
    taken that name.
    """
    try:
        return own_folder(Path(tempfile.gettempdir()) / f"eigenmerge-devices-{os.getuid()}")
    except RecipeError:
        return own_folder(Path.home() / ".cache" / "eigenmerge-devices")


def _matching_gpus(device: str, visible: Callable[[], Mapping[str, str]]) -> dict[str, str]:
    kind, _, index = device.partition(":")
    if kind != "cuda":
        raise RecipeError(f"device {device!r} is unknown; choose cpu, cuda or cuda:N")
    found = visible()
    wanted = {name: uuid for name, uuid in found.items() if not index or name == device}
    if not wanted:
        available = f"this machine has {', '.join(found)}" if found else "torch finds no GPU on this machine"
        raise RecipeError(f"device {device!r} is not available: {available}; choose another --device")
    return wanted


def _try_lock(path: Path, held: contextlib.ExitStack) -> bool:
    """Lock a file until `held` is closed; return False while another thread or process holds it."""
    from filelock import FileLock, Timeout  # 90 ms, and only a GPU needs it

    # A new object for each attempt: an object counts how often it was acquired, so one object would let two threads in.
    lock = FileLock(path, timeout=0, mode=0o600, thread_local=False)
    try:
        held.enter_context(lock)
    except Timeout:
        return False
    return True
