"""Readers of what takes values apart, and puts them together again."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from .steps import Step, dimension_of, step_reader
from .values import UnsupportedError, example, rank, static_size, tensor


@step_reader(torch.cat, torch.concat, torch.concatenate)
def concatenate(tensors, dim=0, *, axis=None):
    given = tuple(tensors) if isinstance(tensors, (list, tuple)) else ()
    values = tuple(value for value in given if not _is_nothing(value, given[-1]))
    if len(values) < 1 or len({rank(value) for value in values}) != 1:
        raise UnsupportedError("its arguments have different numbers of dimensions")
    dimension = dimension_of(values[0], dim if axis is None else axis)
    values = tuple(value for value in values if not _is_empty_part(value, dimension)) or values[:1]
    return Step("concatenate", values, {"dimension": dimension})


def _is_nothing(value: fx.Node, beside: fx.Node) -> bool:
    """Whether a tensor is the empty list, which can be concatenated with any, as caches begin with it."""
    found, other = tensor(value), tensor(beside)
    is_empty = found.dim() == 1 and _is_empty(value, 0)
    return is_empty and value is not beside and (found.dtype, found.device) == (other.dtype, other.device)


def _is_empty_part(value: fx.Node, dimension: int) -> bool:
    """Whether a slice is empty; what else is has been made with parameters, whose gradients are zeros."""
    is_part = value.target in (operator.getitem, torch.narrow, "narrow")
    return is_part and _is_empty(value, dimension)


def _is_empty(value: fx.Node, dimension: int) -> bool:
    size = tensor(value).shape[dimension]
    return type(size) is int and size == 0


@step_reader(torch.split, methods=("split", "split_with_sizes"))
def split(input, sizes, dim=0):
    dimension = dimension_of(input, dim)
    if isinstance(sizes, int):
        whole = static_size(input, dimension)
        sizes = [min(sizes, whole - begin) for begin in range(0, whole, sizes)]
    if not isinstance(sizes, (list, tuple)) or not all(type(size) is int for size in sizes):
        raise UnsupportedError("its sizes are computed")
    return Step("split", (input,), {"sizes": list(sizes), "dimension": dimension})


@step_reader(torch.chunk, methods=("chunk",))
def chunk(input, chunks, dim=0):
    dimension = dimension_of(input, dim)
    whole = static_size(input, dimension)
    if not isinstance(chunks, int) or -(-whole // max(1, -(-whole // chunks))) != chunks:
        raise UnsupportedError("it gives fewer parts than it names")
    return Step("chunk", (input,), {"chunks": chunks, "dimension": dimension})


@step_reader(torch.unbind, methods=("unbind",))
def unbind(input, dim=0):
    dimension = dimension_of(input, dim)
    return Step("unbind", (input,), {"count": static_size(input, dimension), "dimension": dimension})


@step_reader(operator.getitem)
def getitem(value, index):
    if not isinstance(value, fx.Node):
        return None
    if isinstance(example(value), (tuple, list)):
        return Step("output", (value,), {"index": index}) if isinstance(index, int) else None
    if not isinstance(example(value), Tensor):
        return None
    entries = _of_dimensions(value, index if isinstance(index, tuple) else (index,))
    picked = [place for place, entry in enumerate(entries) if not _is_everything(value, place, entry)]
    if not picked:
        return Step("identity", (value,)) if entries else None
    if len(picked) > 1:
        return None
    (dimension,), entry = picked, entries[picked[0]]
    if type(entry) is int:
        return Step("select", (value,), {"dimension": dimension, "index": entry})
    if not isinstance(entry, slice) or entry.step not in (None, 1):
        return None
    if any(type(bound) not in (int, type(None)) for bound in (entry.start, entry.stop)):
        raise UnsupportedError("its bounds are computed")
    begin, end, _ = entry.indices(static_size(value, dimension))
    return Step("slice", (value,), {"dimension": dimension, "begin": begin, "end": max(begin, end)})


def _of_dimensions(value: fx.Node, entries: tuple) -> list:
    """An index's entries, of the first dimensions, with slices in the place of an ellipsis; none of those that add
    dimensions or pick by tensors."""
    if any(
        (entry is not Ellipsis and not isinstance(entry, (slice, int))) or isinstance(entry, bool) for entry in entries
    ):
        return []
    places = [place for place, entry in enumerate(entries) if entry is Ellipsis]
    if not places:
        return list(entries)
    left_out = tensor(value).dim() - len(entries) + 1
    return [*entries[: places[0]], *[slice(None)] * left_out, *entries[places[0] + 1 :]]


def _is_everything(value: fx.Node, dimension: int, entry: object) -> bool:
    """Whether a slice leaves nothing out."""
    if not isinstance(entry, slice):
        return False
    size = tensor(value).shape[dimension]
    is_long = entry.stop is None or (type(entry.stop) is type(size) is int and entry.stop >= size)
    return entry.start in (None, 0) and entry.step in (None, 1) and is_long


@step_reader(torch.narrow, methods=("narrow",))
def narrow(input, dim, start, length):
    dimension = dimension_of(input, dim)
    size = static_size(input, dimension)
    if type(start) is not int or type(length) is not int:
        raise UnsupportedError("its bounds are computed")
    begin = start + size if start < 0 else start
    return Step("slice", (input,), {"dimension": dimension, "begin": begin, "end": begin + length})


@step_reader(torch.select, methods=("select",))
def select(input, dim, index):
    return Step("select", (input,), {"dimension": dimension_of(input, dim), "index": index})
