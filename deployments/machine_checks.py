"""Checks of the machine for `eigenmerge doctor`: what a merge needs, whether it is there, and what to do if not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from ..core.coordination.devices import cuda_devices
from ..core.coordination.machine_memory import machine_memory
from ..core.coordination.worker_count import available_cores
from ..core.errors import EigenmergeError, one_line
from ..core.formats.redaction import redact
from ..core.formats.store_folders import DEFAULT_STORE
from ..core.storage.reachable import check_reachable
from ..core.storage.store import Store
from .embedded_server import EmbeddedServer, check_listens, configured_api

State = Literal["ok", "note", "problem"]

_GB = 1e9
_LITTLE_DISK_BYTES = 10e9
#: Packages that a feature needs, and the feature.
_OPTIONAL = {
    "transformers": "loading checks of `verify`",
    "peft": "loading adapters in `verify`",
    "prefect_dask": "runner: dask",
    "prefect_ray": "runner: ray",
    "matplotlib": "plots of spectra",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One result.

    subject : one or two words: "torch", "store"
    state : "problem" where a merge would fail; "note" where it runs, but something is worth knowing
    text : what was found and, unless it is "ok", what to do
    """

    subject: str
    state: State
    text: str


def check_machine(
    store: str | None = None, storage_options: Mapping[str, object] | None = None, *, start_server: bool = True
) -> Iterator[Check]:
    """Yield one check after the other; the slow ones, store and server, come last.

    Writes and deletes one small object in the store, as every run does at its beginning.

    Parameters
    ----------
    store : address of the store; None: the default store
    storage_options : for fsspec, to open it
    start_server : start the embedded Prefect server of a run and end it, where no server is configured
    """
    yield _python()
    yield _packages()
    yield _processor()
    yield _memory()
    yield _gpu()
    yield _optional_packages()
    place = store or DEFAULT_STORE
    yield from _disks(place)
    yield _store(place, storage_options)
    yield _server(start_server)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"{found}, eigenmerge {version('eigenmerge')}")


def _packages() -> Check:
    names = ("torch", "prefect", "safetensors", "pyarrow", "fsspec", "s3fs")
    return Check("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in names))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of unknown version"


def _processor() -> Check:
    import torch

    cores, limit = available_cores(), _cgroup_cores()
    text = f"{cores} cores, so {cores} shards at a time with one thread each"
    text += f"; {torch.backends.cpu.get_cpu_capability()}"
    if limit is not None and limit < cores - 0.5:
        workers = max(1, round(limit))
        return Check(
            "processor", "note", f"{cores} cores, of which a container limit allows {limit:g}: use --workers {workers}"
        )
    return Check("processor", "ok", text)


def _cgroup_cores() -> float | None:
    """Return the CPU limit of the container, in cores; None where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory() -> Check:
    found = machine_memory()
    text = f"{found.available / _GB:.1f} GB available of {found.total / _GB:.1f} GB ({found.source})"
    hint = "; `eigenmerge plan` states what a merge needs, --max-memory limits it"
    return Check("memory", "ok", text + hint)


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"none is visible to torch {torch.__version__}" if built else "this torch is a build without CUDA"
        return Check("gpu", "note", f"{reason}; merges run on the CPU")
    found: list[str] = []
    for name in cuda_devices():
        free, total = torch.cuda.mem_get_info(name)
        found.append(f"{name} {torch.cuda.get_device_name(name)}, {free / _GB:.0f} of {total / _GB:.0f} GB free")
    return Check("gpu", "ok", f"{'; '.join(found)}; use --device cuda")


def _optional_packages() -> Check:
    missing = {name: use for name, use in _OPTIONAL.items() if importlib.util.find_spec(name) is None}
    if not missing:
        return Check("extras", "ok", f"{', '.join(_OPTIONAL)} are installed")
    parts = (f"{name.replace('_', '-')} ({use})" for name, use in missing.items())
    return Check("extras", "note", f"not installed, and needed only for what is in brackets: {', '.join(parts)}")


def _disks(store: str) -> Iterator[Check]:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    places = {"temporary files": tempfile.gettempdir(), "Hub cache": home}
    if "://" not in store:
        places["store"] = store
    for subject, place in places.items():
        folder = Path(place).expanduser()
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        text = f"{free / _GB:.1f} GB free for {subject} at {Path(place).expanduser()}"
        if free < _LITTLE_DISK_BYTES:
            yield Check("disk", "note", f"{text}; `eigenmerge plan` states what a merge writes and keeps")
        else:
            yield Check("disk", "ok", text)


def _store(place: str, storage_options: Mapping[str, object] | None) -> Check:
    try:
        check_reachable([place], storage_options)
        store = Store(place, storage_options)
        probed = store.with_probed_writes()
        shown = store.display("")
    except EigenmergeError as error:
        return Check("store", "problem", one_line(error))
    if not probed.conditional_writes:
        text = f"{shown}: can be written; it ignores If-None-Match, so use one run at a time"
        return Check("store", "note", text)
    return Check("store", "ok", f"{shown}: write, list, delete and conditional writes work")


def _server(start: bool) -> Check:
    try:
        address = configured_api()
        if address:
            check_listens(address)
            return Check("prefect", "ok", f"the configured server answers at {redact(address)}")
    except EigenmergeError as error:
        return Check("prefect", "problem", one_line(error))
    if not start:
        return Check("prefect", "ok", "no server is configured; each run starts its own")
    server: EmbeddedServer | None = None
    try:
        server = EmbeddedServer()
        server.url()
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        return Check("prefect", "note", f"no server can start here: {reason}; merges run without Prefect")
    finally:
        if server is not None:
            server.close()
    return Check("prefect", "ok", "no server is configured; each run starts its own, which works here")
