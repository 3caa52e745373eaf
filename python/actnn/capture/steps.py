"""Steps of programs: which nodes of a TorchDynamo graph they are, and how they are written.

Readers have the signature of the torch function that they read; `step_reader` enters them in the tables.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, fx

from .. import redirected
from ..redirected import DTYPES
from .values import UnsupportedError, example, floating, tensor

VIEWS = frozenset(
    {
        "reshape",
        "flatten",
        "permute",
        "select",
        "slice",
        "unsqueeze",
        "squeeze",
        "split",
        "chunk",
        "unbind",
        "identity",
        "output",
    }
)
"""What may share its input's memory. An identity, and an output of a split, are nodes of the graph but no steps of
their own in a program's text; the slices of a value are one split there."""
LAYERS = frozenset(
    {"convolution", "linear", "batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm", "attention"}
)
NORMS = frozenset(op for op in LAYERS if op.endswith("norm"))


@dataclass(frozen=True)
class Step:
    """What one node computes. The nodes in it are values of the graph."""

    op: str
    operands: tuple[fx.Node, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the text says of it besides; a node among the sizes is a symbolic integer."""
    parameters: Mapping[str, fx.Node | None] = field(default_factory=dict)
    buffers: Mapping[str, fx.Node | None] = field(default_factory=dict)
    in_place: bool = False
    """Whether the model overwrites the first operand with the result."""

    @property
    def is_view(self) -> bool:
        return self.op in VIEWS

    @property
    def tensors(self) -> list[fx.Node]:
        """Parameters and buffers: what must be there before the program runs."""
        return [node for node in (*self.parameters.values(), *self.buffers.values()) if node is not None]

    def integers(self) -> list[fx.Node]:
        return [size for sizes in self.fields.values() for size in _entries(sizes) if isinstance(size, fx.Node)]


CONVERSIONS = frozenset({"to", "float", "half", "bfloat16", "type", "type_as"})
Reader = Callable[..., Step | None]
FUNCTIONS: dict[Any, Reader] = {}
METHODS: dict[str, Reader] = {}


def step_reader(*functions: Any, methods: tuple[str, ...] = ()) -> Callable[[Reader], Reader]:
    """Enters a reader for these functions of torch, and these methods of tensors."""

    def enter(reader: Reader) -> Reader:
        FUNCTIONS.update(dict.fromkeys(functions, reader))
        METHODS.update(dict.fromkeys(methods, reader))
        return reader

    return enter


def reader_of(node: fx.Node) -> Reader | None:
    table = {"call_function": FUNCTIONS, "call_method": METHODS}.get(node.op, {})
    try:
        return table.get(node.target)
    except TypeError:  # a target that has no hash
        return None


def step_of(node: fx.Node) -> Step | None:
    """The step that a node is; None for calls that steps know nothing of.

    Raises UnsupportedError for known calls with arguments that no step has.
    """
    reader = reader_of(node)
    if reader is None:
        return _unchanged(node) if node.op == "call_method" and node.target in CONVERSIONS else None
    try:
        _signature_of(reader).bind(*node.args, **node.kwargs)
    except TypeError as error:
        raise UnsupportedError("it has other arguments than steps have") from error
    step = reader(*node.args, **node.kwargs)
    if step is not None:
        _check(node, step)
    return step


@cache
def _signature_of(reader: Reader) -> inspect.Signature:
    return inspect.signature(reader)


def _unchanged(node: fx.Node) -> Step:
    """A conversion that converts nothing is its input; programs have no other."""
    before, after = tensor(node.args[0]), tensor(node)
    others = {"copy", "memory_format"} & node.kwargs.keys()
    if before.dtype != after.dtype or before.device != after.device or others or True in node.args:
        raise UnsupportedError("it changes the dtype or the device, or copies")
    step = Step("identity", (node.args[0],))
    _check(node, step)
    return step


def _check(node: fx.Node, step: Step) -> None:
    if any(not _is_constant(value) for key, value in step.fields.items() if key not in ("sizes", "size")):
        raise UnsupportedError("an argument is computed")
    if step.op == "output":
        floating(node)
        return
    masks = step.operands[3:] if step.op == "attention" else ()
    values = [floating(value) for value in step.operands[: len(step.operands) - len(masks)]]
    others = [floating(value) for value in step.parameters.values() if value is not None]
    others += [tensor(value) for value in (*masks, *(b for b in step.buffers.values() if b is not None))]
    found = example(node)
    for result in found if isinstance(found, (tuple, list)) else [found]:
        if not isinstance(result, Tensor) or result.dtype not in DTYPES:
            raise UnsupportedError("its result is not float32, float16 or bfloat16")
        if any(value.device != result.device for value in (*values, *others)):
            raise UnsupportedError("its arguments are on several devices")
        if step.in_place and values[0].dtype != result.dtype:
            raise UnsupportedError("it overwrites a value of another dtype")


def _entries(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_constant(value: Any) -> bool:
    return all(entry is None or isinstance(entry, (bool, int, float, str)) for entry in _entries(value))


def dimension_of(value: fx.Node, dimension: Any, extra: int = 0) -> int:
    """A dimension counted from the front; `extra` for results with more dimensions than `value`."""
    if not isinstance(dimension, int):
        raise UnsupportedError("a dimension is computed")
    count = tensor(value).dim() + extra
    if count == 0:
        raise UnsupportedError("its input has no dimensions")
    return operator.index(dimension) % count


def expand(value: Any, count: int) -> list[Any]:
    """As `redirected.expand`, of what is known."""
    if any(isinstance(entry, fx.Node) for entry in _entries(value)):
        raise UnsupportedError("an argument is computed")
    return redirected.expand(value, count)
