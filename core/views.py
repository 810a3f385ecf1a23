"""Tensors as views on stored tensors: parts of them, several joined to one, transposed or reshaped.

A tensor that a merge works on need not be one stored tensor. The experts of a mixture can be one stacked tensor or one
tensor each, and the rows of a tensor can be in several files. These functions describe the tensor that is wanted, from
headers alone; `TensorReader` reads it. A part of consecutive rows stays a range of bytes, so only these are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from .formats.dtypes import DTYPES, element_bytes
from .listing import Adaptation, Concatenation, LoraSource, Reshaping, Selection, TensorSource, Transposition, View


def concatenate(pieces: Sequence[TensorSource], dim: int = 0) -> TensorSource:
    """Return the tensors joined along a dimension, as torch.cat.

    Parameters
    ----------
    pieces : at least one, with equal sizes in all other dimensions. Where their dtypes differ, the result is float32,
        or float64 if one of them is.
    """
    assert pieces, "expected at least one tensor"
    first = pieces[0]
    others = {piece.shape[:dim] + piece.shape[dim + 1 :] for piece in pieces}
    assert len(others) == 1, f"shapes do not fit along dimension {dim}: {[piece.shape for piece in pieces]}"
    if len(pieces) == 1:
        return first
    length = sum(piece.shape[dim] for piece in pieces)
    shape = (*first.shape[:dim], length, *first.shape[dim + 1 :])
    return _view(Concatenation(tuple(pieces), dim), shape, _common_dtype(pieces), pieces)


def stack(pieces: Sequence[TensorSource]) -> TensorSource:
    """Return tensors of equal shape as one with a new first dimension, as torch.stack."""
    return concatenate([reshape(piece, (1, *piece.shape)) for piece in pieces])


def transpose(source: TensorSource) -> TensorSource:
    """Return a tensor with its last two dimensions exchanged."""
    if isinstance(source.view, Transposition):
        return source.view.source
    shape = (*source.shape[:-2], source.shape[-1], source.shape[-2])
    return _view(Transposition(source), shape, source.dtype, [source])


def adapt(source: TensorSource, lora: LoraSource) -> TensorSource:
    """Return a matrix with the delta of an adapter added."""
    return _view(Adaptation(source, lora), source.shape, source.dtype, [source, lora.up, lora.down])


def reshape(source: TensorSource, shape: tuple[int, ...]) -> TensorSource:
    """Return the numbers of a tensor, in the same order, in another shape."""
    assert prod(shape) == prod(source.shape), f"{source.shape} cannot have the shape {shape}"
    if shape == source.shape:
        return source
    if source.view is None and source.scale is None:
        return replace(source, shape=shape)
    if isinstance(source.view, Reshaping):
        return reshape(source.view.source, shape)
    is_made = source.view is not None and not isinstance(source.view, Adaptation)
    if source.view is not None and is_made and source.shape == (1, *shape):
        return _without_first_dimension(source.view)
    return _view(Reshaping(source), shape, source.dtype, [source])


def select(source: TensorSource, dim: int, start: int, stop: int, step: int = 1) -> TensorSource:
    """Return the entries start, start + step, ..., before stop, along one dimension.

    Reads only these bytes where they are consecutive in a stored tensor.
    """
    assert 0 <= start <= stop <= source.shape[dim], (start, stop, source.shape, dim)
    length = len(range(start, stop, step))
    if length == source.shape[dim]:
        return source
    shape = (*source.shape[:dim], length, *source.shape[dim + 1 :])
    view = source.view
    if isinstance(view, Concatenation):
        return _select_of_pieces(view, dim, range(start, stop, step))
    if isinstance(view, Selection) and dim <= view.dim:
        return _select_of_selection(view, dim, range(start, stop, step))
    if isinstance(view, Transposition):
        last = len(shape) - 1
        inner = {last: last - 1, last - 1: last}.get(dim, dim)
        return transpose(select(view.source, inner, start, stop, step))
    if isinstance(view, Reshaping) and source.shape == (1, *view.source.shape) and dim > 0:
        return reshape(select(view.source, dim - 1, start, stop, step), shape)
    if dim == 0 and step == 1 and view is None:
        size = source.num_bytes // source.shape[0]
        rows = replace(source, start=source.start + start * size, stop=source.start + stop * size, shape=shape)
        if source.scale is None:
            return rows
        return _view(Selection(source, 0, start, stop), shape, source.dtype, [rows])  # scales count all rows
    return _view(Selection(source, dim, start, stop, step), shape, source.dtype, [source])


def select_index(source: TensorSource, index: int) -> TensorSource:
    """Return one entry of the first dimension: matrix `index` of a stack."""
    return reshape(select(source, 0, index, index + 1), source.shape[1:])


def stored_tensors(source: TensorSource) -> Iterator[TensorSource]:
    """Yield the stored tensors, or ranges of them, that a tensor is read from, without float8 scales and factors."""
    if source.view is None:
        yield source
        return
    inner = source.view.pieces if isinstance(source.view, Concatenation) else (source.view.source,)
    for piece in inner:
        yield from stored_tensors(piece)


def has_scale(source: TensorSource) -> bool:
    """Return whether reading the tensor gives float32: float8 numbers with a scale, or a matrix with an adapter."""
    if isinstance(source.view, Adaptation):
        return source.dtype != "F64"
    if source.view is None:
        return source.scale is not None
    inner = source.view.pieces if isinstance(source.view, Concatenation) else (source.view.source,)
    return any(map(has_scale, inner))


def has_factors(source: TensorSource) -> bool:
    """Return whether reading the tensor adds the factors of an adapter."""
    if source.view is None:
        return False
    if isinstance(source.view, Adaptation):
        return True
    inner = source.view.pieces if isinstance(source.view, Concatenation) else (source.view.source,)
    return any(map(has_factors, inner))


def held_bytes(source: TensorSource) -> int:
    """Return the bytes in memory at one time while a tensor is read, in its stored dtype.

    A view is made of what is read, so both are in memory; of a concatenation only one piece at a time is.
    """
    scale = source.scale.num_bytes if source.scale is not None else 0
    if source.view is None:
        return source.num_bytes + scale
    made = prod(source.shape) * (4 if has_scale(source) else element_bytes(source.dtype))
    if isinstance(source.view, Concatenation):
        return made + max(map(held_bytes, source.view.pieces))
    if isinstance(source.view, Adaptation):
        lora = source.view.lora
        return 2 * made + held_bytes(source.view.source) + held_bytes(lora.up) + held_bytes(lora.down)
    return made + held_bytes(source.view.source)


def _view(view: View, shape: tuple[int, ...], dtype: str, read: Sequence[TensorSource]) -> TensorSource:
    """Return a view as a tensor; `read` is what is read to make it."""
    size = sum(one.num_bytes + (one.scale.num_bytes if one.scale is not None else 0) for one in read)
    return TensorSource(read[0].uri, 0, size, dtype, shape, None, view)


def _common_dtype(pieces: Sequence[TensorSource]) -> str:
    dtypes = {piece.dtype for piece in pieces}
    if len(dtypes) == 1:
        return pieces[0].dtype
    assert all(DTYPES[dtype].kind in ("float", "float8") for dtype in dtypes), f"dtypes differ: {sorted(dtypes)}"
    return "F64" if "F64" in dtypes else "F32"


def _select_of_pieces(view: Concatenation, dim: int, entries: range) -> TensorSource:
    """Return a selection of a concatenation, as a concatenation of selections."""
    if dim != view.dim:
        return concatenate(
            [select(piece, dim, entries.start, entries.stop, entries.step) for piece in view.pieces], view.dim
        )
    found: list[TensorSource] = []
    first = 0  # of the piece, along the dimension
    for piece in view.pieces:
        length = piece.shape[dim]
        skipped = max(0, -(-(first - entries.start) // entries.step))  # entries before this piece
        start, stop = entries.start + skipped * entries.step - first, min(entries.stop - first, length)
        if start < stop:
            found.append(select(piece, dim, start, stop, entries.step))
        first += length
    if not found:
        return select(view.pieces[0], dim, 0, 0)
    return concatenate(found, dim)


def _select_of_selection(view: Selection, dim: int, entries: range) -> TensorSource:
    """Return a selection of a selection, in an earlier dimension applied first, because it may be a range of bytes."""
    chosen = range(view.start, view.stop, view.step)
    if dim != view.dim:
        inner = select(view.source, dim, entries.start, entries.stop, entries.step)
        return select(inner, view.dim, view.start, view.stop, view.step)
    chosen = chosen[entries.start : entries.stop : entries.step]
    if not chosen:
        return select(view.source, dim, 0, 0)
    return select(view.source, dim, chosen[0], chosen[-1] + 1, chosen.step)


def _without_first_dimension(view: View) -> TensorSource:
    """Return a view whose first dimension has one entry without this dimension."""

    def drop(source: TensorSource) -> TensorSource:
        return reshape(source, source.shape[1:])

    if isinstance(view, Concatenation):
        return concatenate([drop(piece) for piece in view.pieces], view.dim - 1)
    if isinstance(view, Transposition):
        return transpose(drop(view.source))
    assert isinstance(view, Selection), "a reshaped tensor is reshaped from its source"
    if view.dim == 0:
        one = select(view.source, 0, view.start, view.stop, view.step)
        return _view(Reshaping(one), one.shape[1:], one.dtype, [one])
    return select(drop(view.source), view.dim - 1, view.start, view.stop, view.step)


def describe(source: TensorSource) -> list[object]:
    """Return how a tensor is made of ranges of stored files, as JSON data without the location of the files.

    Two tensors of one model with equal descriptions hold the same numbers.
    """
    view = source.view
    if view is None:
        return [source.uri.rpartition("/")[2], source.start, source.stop, list(source.shape)]
    if isinstance(view, Concatenation):
        return ["concatenate", view.dim, [describe(piece) for piece in view.pieces]]
    inner = describe(view.source)
    if isinstance(view, Selection):
        return ["select", view.dim, view.start, view.stop, view.step, inner]
    return ["transpose" if isinstance(view, Transposition) else "reshape", list(source.shape), inner]
