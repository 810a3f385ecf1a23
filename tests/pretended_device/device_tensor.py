"""A tensor that says it is on "cuda:0" and computes on the CPU, with the rules of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch.utils._mode_utils import no_dispatch

from .ledger import Ledger

DEVICE = torch.device("cuda:0")

# Kernels that check on the host whether a factorization has succeeded.
_CHECKED = frozenset({"aten::_linalg_eigh", "aten::_linalg_svd", "aten::_linalg_check_errors", "aten::linalg_eig"})
_DATA_DEPENDENT = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
# Kernels that read a scalar of the CPU, as kernels for single elements do.
_TAKE_SCALARS = frozenset({"aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_"})


class MixedDevicesError(RuntimeError):
    """An operation got tensors of two devices, or moved one without being asked to."""


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device.

    host : Tensor on the CPU, of the same shape, strides and dtype; has the values
    """

    host: torch.Tensor
    ledger: Ledger

    @staticmethod
    def __new__(cls, host: torch.Tensor, ledger: Ledger) -> DeviceTensor:
        found = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=DEVICE,
        )  # fmt: skip
        found.host, found.ledger = host, ledger
        return found

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"DeviceTensor({self.host!r})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # These ask the CUDA library for the current device before they dispatch; a build for processors has none.
        own = _OWN_FUNCTIONS.get(func)
        if own is not None:
            return own(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        found = next(leaf for leaf in _tensors((*args, *given.values())) if isinstance(leaf, DeviceTensor))
        return call(found.ledger, func, args, given)


def call(ledger: Ledger, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run one operation of ATen on the values, by the rules of a GPU.

    Raises
    ------
    MixedDevicesError : tensors of two devices meet
    """
    leaves = list(_tensors((*args, *kwargs.values())))
    on_device = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
    requested = kwargs.get("device")
    target = torch.device(requested) if requested is not None else DEVICE if on_device else None
    if not on_device and (target is None or target.type != "cuda"):
        return func(*args, **kwargs)  # on the CPU, or on the meta device
    assert target is not None and (target.type != "cuda" or target.index in (0, None)), target
    given = dict(kwargs)
    if requested is not None and target.type == "cuda":
        given["device"] = torch.device("cpu")

    name = func._schema.name
    if name == "aten::copy_":
        _count_copy(ledger, name, leaves[1], leaves[0].dtype, to_device=isinstance(leaves[0], DeviceTensor))
    elif name == "aten::_to_copy":
        dtype = given.get("dtype") or leaves[0].dtype
        _count_copy(ledger, name, leaves[0], dtype, to_device=target.type == "cuda")
    else:
        _check_devices(func, leaves)
    if name in _CHECKED or any(tag in func.tags for tag in _DATA_DEPENDENT):
        ledger.synchronize(name, on_device[0].element_size() if name == "aten::_local_scalar_dense" else 0)
    ledger.now.operations += 1

    wrappers = {id(leaf.host): leaf for leaf in on_device}  # an operation in place returns the tensor that it changes
    result = func(*_host(args), **{key: _host(one) for key, one in given.items()})
    if torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # the shape of the tensor itself, without an operation
            func(*args, **kwargs)
    if name == "aten::copy_":
        return leaves[0]
    if target.type != "cuda":
        return result

    def wrap(found: Any) -> Any:
        if isinstance(found, (tuple, list)):
            return type(found)(map(wrap, cast("Sequence[Any]", found)))
        if not isinstance(found, torch.Tensor):
            return found
        known = wrappers.get(id(found))
        return DeviceTensor(found, ledger) if known is None else known

    return wrap(result)


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments of an operation, which may be lists."""
    for one in found:
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, (tuple, list)):
            yield from _tensors(one)


def _host(found: Any) -> Any:
    """Return the arguments with the values of the tensors on the device."""
    if isinstance(found, DeviceTensor):
        return found.host
    if isinstance(found, (tuple, list)):
        return type(found)(map(_host, cast("Sequence[Any]", found)))
    return found


def _count_copy(ledger: Ledger, name: str, source: torch.Tensor, dtype: torch.dtype, *, to_device: bool) -> None:
    """Count the bytes that cross. torch converts on the CPU: before a copy to the device, after one to the host."""
    if isinstance(source, DeviceTensor) == to_device:
        return
    size = dtype.itemsize if to_device else source.element_size()
    ledger.cross(name, source.numel() * size, to_device=to_device)


def _check_devices(func: Any, leaves: Sequence[torch.Tensor]) -> None:
    """Check that all tensors are on the device, or are single numbers where the kernel takes these from the CPU."""
    others = [leaf for leaf in leaves if not isinstance(leaf, DeviceTensor)]
    if not others or len(others) == len(leaves):
        return
    takes = torch.Tag.pointwise in func.tags or func._schema.name in _TAKE_SCALARS
    changes_host = _first_written(func) and not isinstance(leaves[0], DeviceTensor)
    if changes_host or not takes or any(leaf.ndim or leaf.device.type != "cpu" for leaf in others):
        found = ", ".join(f"{leaf.device} {tuple(leaf.shape)}" for leaf in leaves)
        raise MixedDevicesError(f"{func._schema.name} got tensors of two devices: {found}")


def _first_written(func: Any) -> bool:
    first = next(iter(func._schema.arguments), None)
    return first is not None and first.alias_info is not None and first.alias_info.is_write


def _get_item(tensor: torch.Tensor, index: Any) -> Any:
    if not isinstance(tensor, DeviceTensor):
        raise MixedDevicesError(f"a tensor on {tensor.device} is indexed by one on {DEVICE}")
    if any(mask.dtype == torch.bool for mask in _indices(tensor, index)):
        tensor.ledger.synchronize("boolean index")
    tensor.ledger.now.operations += 1
    return DeviceTensor(tensor.host[_host(index)], tensor.ledger)


def _set_item(tensor: torch.Tensor, index: Any, value: Any) -> None:
    if not isinstance(tensor, DeviceTensor):
        raise MixedDevicesError(f"entries of a tensor on {tensor.device} are set by one on {DEVICE}")
    if isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor) and value.ndim:
        raise MixedDevicesError(
            f"entries on {DEVICE} are set to a tensor on {value.device}, which nobody asked to move"
        )
    masks = [mask for mask in _indices(tensor, index) if mask.dtype == torch.bool]
    if masks and not (len(masks) == 1 and (not isinstance(value, torch.Tensor) or value.numel() == 1)):
        tensor.ledger.synchronize("boolean index")  # otherwise entries are filled under the mask
    tensor.ledger.now.operations += 1
    tensor.host[_host(index)] = _host(value)


def _indices(tensor: DeviceTensor, index: Any) -> list[DeviceTensor]:
    """Return the tensors of an index.

    Raises
    ------
    MixedDevicesError : one is on the CPU, or is a list: torch would move it
    """
    found: list[DeviceTensor] = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, (torch.Tensor, list)) and not isinstance(part, DeviceTensor):
            raise MixedDevicesError(f"a tensor on {DEVICE} is indexed by a tensor or list on the CPU")
        if isinstance(part, DeviceTensor):
            if part.ndim == 0:
                tensor.ledger.synchronize("index by a number on the device", part.element_size())
            found.append(part)
    return found


def _number(convert: Callable[[torch.Tensor], Any]) -> Callable[[DeviceTensor], Any]:
    """Return a conversion of a tensor with one entry to a number of Python."""

    def read(tensor: DeviceTensor) -> Any:
        tensor.ledger.synchronize("number", tensor.element_size())
        return convert(tensor.host)

    return read


def _contiguous(tensor: DeviceTensor, memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    if tensor.host.is_contiguous(memory_format=memory_format):
        return tensor
    return torch.ops.aten.clone.default(tensor, memory_format=memory_format)


def _to_list(tensor: DeviceTensor) -> Any:
    tensor.ledger.cross("tolist", tensor.nbytes, to_device=False)
    return tensor.host.tolist()


def _refuse_array(tensor: DeviceTensor, *_: Any, **__: Any) -> Any:
    raise TypeError(f"can't convert {tensor.device} device type tensor to numpy; copy it to the CPU first")


_OWN_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _get_item,
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.tolist: _to_list,
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.numpy: _refuse_array,
    torch.Tensor.__array__: _refuse_array,
    torch.Tensor.nonzero: torch.ops.aten.nonzero.default,
    torch.nonzero: torch.ops.aten.nonzero.default,
    torch.Tensor.__invert__: torch.ops.aten.bitwise_not.default,
    torch.Tensor.copy_: torch.ops.aten.copy_.default,
    torch.Tensor.item: _number(torch.Tensor.item),
    torch.Tensor.__int__: _number(int),
    torch.Tensor.__float__: _number(float),
    torch.Tensor.__index__: _number(torch.Tensor.__index__),
}
