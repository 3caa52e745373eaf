"""Readers of activations, arithmetic and views."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from .steps import Step, dimension_of, step_reader
from .values import UnsupportedError, example, rank, static_size, tensor


def _activation(kind: str, in_place: bool | None = None):
    def fixed(input):
        return Step("activation", (input,), {"kind": kind}, in_place=in_place)

    def chosen(input, inplace=False):
        return Step("activation", (input,), {"kind": kind}, in_place=bool(inplace))

    return chosen if in_place is None else fixed


step_reader(F.relu)(_activation("relu"))
step_reader(torch.relu, methods=("relu",))(_activation("relu", False))
step_reader(torch.relu_, methods=("relu_",))(_activation("relu", True))
step_reader(F.relu6)(_activation("relu6"))
step_reader(F.silu)(_activation("silu"))
step_reader(F.hardswish)(_activation("hardswish"))
step_reader(torch.sigmoid, F.sigmoid, torch.special.expit, methods=("sigmoid",))(_activation("sigmoid", False))
step_reader(torch.sigmoid_, methods=("sigmoid_",))(_activation("sigmoid", True))
step_reader(torch.tanh, F.tanh, methods=("tanh",))(_activation("tanh", False))
step_reader(torch.tanh_, methods=("tanh_",))(_activation("tanh", True))


@step_reader(F.hardtanh)
def hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    if (min_val, max_val) != (0, 6):
        raise UnsupportedError("its bounds are not 0 and 6")
    return Step("activation", (input,), {"kind": "relu6"}, in_place=bool(inplace))


@step_reader(F.leaky_relu)
def leaky_relu(input, negative_slope=0.01, inplace=False):
    if not isinstance(negative_slope, (int, float)):
        raise UnsupportedError("its slope is computed")
    return Step("activation", (input,), {"kind": "leaky_relu", "slope": negative_slope}, in_place=bool(inplace))


@step_reader(F.leaky_relu_)
def leaky_relu_(input, negative_slope=0.01):
    return leaky_relu(input, negative_slope, True)


@step_reader(F.gelu)
def gelu(input, *, approximate="none"):
    return Step("activation", (input,), {"kind": "gelu_tanh" if approximate == "tanh" else "gelu"})


def _arithmetic(op: str, word: str, in_place: bool):
    def read(input, other, *, alpha=1):
        if alpha != 1:
            raise UnsupportedError("it scales what it adds")
        if not all(isinstance(value, fx.Node) and isinstance(example(value), Tensor) for value in (input, other)):
            raise UnsupportedError(f"{word} of something else than two tensors")
        if in_place and tensor(input).dim() < tensor(other).dim():
            raise UnsupportedError("it changes the shape of what it overwrites")
        fields = {"broadcast": True} if op == "add" and _sizes_differ(input, other) else {}
        return Step(op, (input, other), fields, in_place=in_place)

    return read


def _sizes_differ(first: fx.Node, second: fx.Node) -> bool:
    """Whether sizes are others, or symbols that may be."""
    return [str(size) for size in tensor(first).shape] != [str(size) for size in tensor(second).shape]


step_reader(operator.add, torch.add, methods=("add", "__add__"))(_arithmetic("add", "an addition", False))
step_reader(operator.iadd, methods=("add_", "__iadd__"))(_arithmetic("add", "an addition", True))
step_reader(operator.mul, torch.mul, torch.multiply, methods=("mul", "multiply", "__mul__"))(
    _arithmetic("multiply", "a product", False)
)
step_reader(operator.imul, methods=("mul_", "multiply_", "__imul__"))(_arithmetic("multiply", "a product", True))


def _listed(sizes: tuple) -> list:
    if len(sizes) == 1 and isinstance(sizes[0], fx.Node) and sizes[0].target is torch.Size:
        sizes = sizes[0].args  # of graphs for any size
    return list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else list(sizes)


@step_reader(torch.reshape, methods=("view", "reshape"))
def reshape(input, *sizes, shape=None):
    sizes = _listed(sizes) if shape is None else list(shape)
    if not all(isinstance(size, int) or (isinstance(size, fx.Node) and not _is_size_tuple(size)) for size in sizes):
        return None  # a view in another dtype, or of a size that is one value of the graph
    return Step("reshape", (input,), {"sizes": sizes})


def _is_size_tuple(size: fx.Node) -> bool:
    return not isinstance(example(size), (int, torch.SymInt))


@step_reader(torch.unflatten, methods=("unflatten",))
def unflatten(input, dim, sizes):
    dimension = dimension_of(input, dim)
    shape = list(tensor(input).shape)
    sizes = [*shape[:dimension], *sizes, *shape[dimension + 1 :]]
    if not all(isinstance(size, (int, fx.Node)) for size in sizes):
        free = [place for place, size in enumerate(sizes) if not isinstance(size, (int, fx.Node))]
        if len(free) != 1 or -1 in [size for size in sizes if isinstance(size, int)]:
            raise UnsupportedError("several of its sizes change")
        sizes[free[0]] = -1
    return Step("reshape", (input,), {"sizes": sizes})


@step_reader(torch.flatten, methods=("flatten",))
def flatten(input, start_dim=0, end_dim=-1):
    if rank(input) == 0:
        return None
    fields = {"start": dimension_of(input, start_dim), "end": dimension_of(input, end_dim)}
    return Step("flatten", (input,), fields)


@step_reader(torch.permute, methods=("permute",))
def permute(input, *dims):
    return Step("permute", (input,), {"dimensions": [dimension_of(input, dim) for dim in _listed(dims)]})


@step_reader(torch.transpose, torch.swapaxes, torch.swapdims, methods=("transpose", "swapaxes", "swapdims"))
def transpose(input, dim0, dim1):
    order = list(range(rank(input)))
    first, second = dimension_of(input, dim0), dimension_of(input, dim1)
    order[first], order[second] = second, first
    return Step("permute", (input,), {"dimensions": order})


@step_reader(torch.unsqueeze, methods=("unsqueeze",))
def unsqueeze(input, dim):
    return Step("unsqueeze", (input,), {"dimension": dimension_of(input, dim, 1)})


@step_reader(torch.squeeze, methods=("squeeze",))
def squeeze(input, dim=None):
    if not isinstance(dim, int):
        return None
    dimension = dimension_of(input, dim)
    is_squeezed = static_size(input, dimension) == 1
    return Step("squeeze", (input,), {"dimension": dimension}) if is_squeezed else Step("identity", (input,))


@step_reader(torch.roll, methods=("roll",))
def roll(input, shifts, dims=None):
    shifts, dims = ([one] if isinstance(one, int) else one for one in (shifts, dims))
    if not all(isinstance(one, (list, tuple)) for one in (shifts, dims)) or len(shifts) != len(dims) or not dims:
        raise UnsupportedError("it shifts all elements in a row, or by a number that is computed")
    return Step("roll", (input,), {"shifts": list(shifts), "dimensions": [dimension_of(input, dim) for dim in dims]})


@step_reader(F.pad, torch._C._nn.pad)
def pad(input, pad, mode="constant", value=None):
    return Step("identity", (input,)) if all(type(width) is int and width == 0 for width in pad) else None


@step_reader(methods=("contiguous",))
def contiguous(input, memory_format=torch.contiguous_format):
    return Step("identity", (input,))
