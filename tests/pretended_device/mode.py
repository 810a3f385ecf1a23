"""Run code of `core` as if this machine had one GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .device_tensor import DeviceTensor, call
from .ledger import Ledger


class PretendedDevice(TorchDispatchMode):
    """Makes tensors for "cuda:0" in the thread that enters it. Operations on them are checked in every thread."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if given.get("device") is None and DeviceTensor not in types:
            return func(*args, **given)
        return call(self._ledger, func, args, given)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, which takes a second


@contextmanager
def pretended_device() -> Iterator[Ledger]:
    """Pretend in the block that "cuda:0" exists; yields the counts.

    `torch.cuda` finds one device, and does not load the CUDA library. No function of `core` is replaced.
    """
    ledger = Ledger()
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda:0") copies from the CPU by an operation
    try:
        with (
            mock.patch("torch.cuda._lazy_init", lambda: None),
            mock.patch("torch.cuda.device_count", lambda: 1),
            mock.patch("torch.cuda.get_device_properties", lambda _: SimpleNamespace(uuid="pretended")),
            PretendedDevice(ledger),
        ):
            yield ledger
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
