"""The rules of the pretended device: what it refuses, what it counts, and what the values are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from .device_tensor import DEVICE, DeviceTensor, MixedDevicesError
from .ledger import Ledger
from .mode import pretended_device


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with pretended_device() as found:
        yield found


def on_device(*shape: int) -> torch.Tensor:
    return torch.ones(shape).to("cuda:0")


FACTORIES: dict[str, Callable[[], torch.Tensor]] = {
    "zeros": lambda: torch.zeros(2, 3, device="cuda:0"),
    "empty": lambda: torch.empty((2, 3), dtype=torch.float64, device=DEVICE),
    "arange": lambda: torch.arange(6, device="cuda:0"),
    "tensor": lambda: torch.tensor([1.0, 2.0], device="cuda:0"),
    "to": lambda: torch.ones(3).to("cuda:0", torch.float64),
    "new_zeros": lambda: on_device(2).new_zeros((3, 3)),
    "zeros_like": lambda: torch.zeros_like(on_device(2)),
    "view": lambda: on_device(2, 3)[:, 1:].T.reshape(-1),
    "eigh": lambda: torch.linalg.eigh(torch.eye(3, device="cuda:0"))[1],
    "in place": lambda: on_device(2).add_(1.0).mul_(2.0),
    "scalar of the CPU": lambda: on_device(2) * torch.tensor(3.0),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_results_stay_on_the_device(ledger: Ledger, name: str) -> None:
    found = FACTORIES[name]()
    assert isinstance(found, DeviceTensor)
    assert found.device == DEVICE and found.is_cuda and found.host.device.type == "cpu"
    assert (found.shape, found.dtype, found.stride()) == (found.host.shape, found.host.dtype, found.host.stride())


MIXED: dict[str, Callable[[], object]] = {
    "sum": lambda: on_device(2) + torch.ones(2),
    "sum in place": lambda: torch.ones(2).add_(on_device(2)),
    "product": lambda: torch.ones(2, 2) @ on_device(2, 2),
    "stack": lambda: torch.stack([on_device(2), torch.ones(2)]),
    "a number in a stack": lambda: torch.stack([on_device(), torch.ones(())]),
    "a number of the device into the CPU": lambda: torch.ones(()).add_(on_device()),
    "meta": lambda: on_device(2) + torch.empty(2, device="meta"),
    "index of the CPU": lambda: on_device(3)[torch.tensor([0, 1])],
    "list as index": lambda: on_device(3)[[0, 1]],
    "index of the device": lambda: torch.ones(3)[torch.arange(2, device="cuda:0")],
    "entries set to a tensor of the CPU": lambda: on_device(3).__setitem__(slice(0, 2), torch.ones(2)),
    "out": lambda: torch.mm(on_device(2, 2), on_device(2, 2), out=torch.empty(2, 2)),
}


@pytest.mark.parametrize("name", MIXED)
def test_two_devices_in_one_operation_are_refused(ledger: Ledger, name: str) -> None:
    with pytest.raises(MixedDevicesError):
        MIXED[name]()


def test_an_array_needs_a_copy_first(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        on_device(2).numpy()
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        np.asarray(on_device(2))
    assert on_device(2).cpu().numpy().tolist() == [1.0, 1.0]


@pytest.mark.slow  # outside of the thread of the mode, torch imports its distributed tensors to dispatch
def test_other_threads_are_checked_too(ledger: Ledger) -> None:
    tensor, caught = on_device(2), list[BaseException]()

    def mix() -> None:
        try:
            torch.add(tensor, torch.ones(2))
        except MixedDevicesError as error:
            caught.append(error)

    thread = threading.Thread(target=mix)
    thread.start()
    thread.join()
    assert len(caught) == 1


# Bytes to the device, bytes to the host, copies, synchronizations of an action on a tensor (4,) float32.
COUNTED: dict[str, tuple[Callable[[torch.Tensor], object], tuple[int, int, int, int]]] = {
    "to the device": (lambda _: torch.ones(3).to("cuda:0"), (12, 0, 1, 0)),
    "converted before it moves": (lambda _: torch.ones(3).bfloat16().to("cuda:0", torch.float32), (12, 0, 1, 0)),
    "moved before it is converted": (lambda _: torch.ones(3).bfloat16().to("cuda:0").float(), (6, 0, 1, 0)),
    "cpu": (lambda x: x.cpu(), (0, 16, 1, 1)),
    "converted after it moves": (lambda x: x.to("cpu", torch.float64), (0, 16, 1, 1)),
    "copy to the device": (lambda x: x.copy_(torch.ones(4)), (16, 0, 1, 0)),
    "copy to the CPU": (lambda x: torch.ones(4).copy_(x), (0, 16, 1, 1)),
    "copy on the device": (lambda x: x.copy_(x + 1), (0, 0, 0, 0)),
    "item": (lambda x: x.sum().item(), (0, 4, 0, 1)),
    "float": (lambda x: float(x[0]), (0, 4, 0, 1)),
    "int": (lambda x: int(x.argmax()), (0, 8, 0, 1)),
    "condition": (lambda x: bool((x > 0).any()), (0, 1, 0, 1)),
    "slice to a number": (lambda x: x[: x.argmax()], (0, 8, 0, 1)),
    "tolist": (lambda x: x.tolist(), (0, 16, 1, 1)),
    "nonzero": (lambda x: x.nonzero(), (0, 0, 0, 1)),
    "boolean index": (lambda x: x[x > 0], (0, 0, 0, 1)),
    "number under a mask": (lambda x: x.__setitem__(x > 0, 1.0), (0, 0, 0, 0)),
    "numbers under a mask": (lambda x: x.__setitem__(x > 0, x * 2), (0, 0, 0, 1)),
    "equal": (lambda x: torch.equal(x, x), (0, 0, 0, 1)),
    "svd": (lambda x: torch.linalg.svd(x.reshape(2, 2)), (0, 0, 0, 1)),
    "arithmetic": (lambda x: (x * 2).sum(), (0, 0, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_crossing_bytes_and_synchronizations(ledger: Ledger, name: str) -> None:
    action, expected = COUNTED[name]
    tensor = torch.ones(4, device="cuda:0")
    ledger.take()
    action(tensor)
    found = ledger.take()
    assert (found.to_device, found.to_host, found.copies, found.synchronizations) == expected


def test_views_share_their_values(ledger: Ledger) -> None:
    whole = torch.zeros(3, 4, device="cuda:0")
    whole[1:, :2] = 5.0
    whole.T[3].fill_(2.0)
    whole[0].copy_(torch.arange(4.0).to("cuda:0"))
    assert whole.tolist() == [[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 0.0, 2.0], [5.0, 5.0, 0.0, 2.0]]


def test_nothing_is_left_of_the_device() -> None:
    with pretended_device():
        pass
    assert torch.cuda.device_count() == 0 or torch.cuda.is_available()
    assert type(torch.ones(2) + 1) is torch.Tensor
