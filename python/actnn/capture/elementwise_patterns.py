"""Activations that are written out, in whatever way: what several calls make of one value is computed for some numbers,
and compared with what the activations of programs make of these."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx

from . import written_out
from .pattern_nodes import PRODUCTS, SUMS, Match, best_result, cast_value, is_number, key_of
from .values import example

ANCHORS = frozenset({torch.tanh, F.tanh, "tanh", torch.erf, torch.special.erf, "erf", torch.sigmoid, F.sigmoid,
                     torch.special.expit, "sigmoid"})  # fmt: skip


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FUNCTIONS: dict[object, Callable[..., float]] = {
    **dict.fromkeys(PRODUCTS, operator.mul),
    **dict.fromkeys(SUMS, operator.add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), operator.sub),
    **dict.fromkeys((operator.truediv, torch.div, "div"), operator.truediv),
    **dict.fromkeys((operator.pow, torch.pow, "pow"), math.pow),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), operator.neg),
    **dict.fromkeys((torch.square, "square"), lambda x: x * x),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), math.tanh),
    **dict.fromkeys((torch.erf, torch.special.erf, "erf"), math.erf),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, torch.special.expit, "sigmoid"), _sigmoid),
}
MOST_CALLS = 16
"""Of an activation; GELU by tanh is written with eight or nine."""
NUMBERS = [i / 8 + 0.01 for i in range(-56, 57)]
TOLERANCE = 2e-5
"""A twentieth of the difference between the two forms of GELU; constants have seven digits or more."""
KNOWN = {
    "gelu": [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in NUMBERS],
    "gelu_tanh": [x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2 for x in NUMBERS],
    "silu": [x * _sigmoid(x) for x in NUMBERS],
}
"""What activations make of the numbers, by their names in programs."""
Numbers = list[float]


def activation(anchor: fx.Node) -> Match | None:
    for input in _before(anchor):
        values = _values(input)
        if anchor not in values:
            continue
        for kind, wanted in KNOWN.items():
            alike = [n for n, found in values.items() if n is not input and _is_close(found, wanted)]
            result = best_result([node for node in alike if _depends_on(node, anchor, input)], input)
            if result is not None:
                return Match(result, (input,), _make(input, kind, example(result).dtype))
    return None


def _make(input: fx.Node, kind: str, dtype: torch.dtype):
    def make(record):
        if dtype != example(input).dtype:
            return record.call(written_out.activation, input, kind, dtype)
        if kind == "silu":
            return record.call(F.silu, input)
        return record.call(F.gelu, input, approximate="tanh" if kind == "gelu_tanh" else "none")

    return make


def _before(anchor: fx.Node) -> Iterator[fx.Node]:
    """The values that a call may be a function of, the nearest first."""
    waiting, seen = list(anchor.all_input_nodes), set()
    while waiting and len(seen) < MOST_CALLS:
        node = waiting.pop(0)
        if node not in seen:
            seen.add(node)
            yield node
            if key_of(node) in FUNCTIONS or cast_value(node) is not None:
                waiting += node.all_input_nodes


def _values(input: fx.Node) -> dict[fx.Node, Numbers]:
    """What the calls that depend on this value alone give for the numbers."""
    values, waiting = {input: NUMBERS}, list(input.users)
    while waiting and len(values) < MOST_CALLS:
        node = waiting.pop(0)
        if node not in values and (value := _value(node, values)) is not None:
            values[node] = value
            waiting += node.users
    return values


def _value(node: fx.Node, values: dict[fx.Node, Numbers]) -> Numbers | None:
    if (converted := cast_value(node)) is not None:
        return values.get(converted)
    function = FUNCTIONS.get(key_of(node))
    arguments = [[a] * len(NUMBERS) if is_number(a) else values.get(a) for a in node.args]
    if function is None or node.kwargs or None in arguments:
        return None
    try:
        return [function(*numbers) for numbers in zip(*arguments, strict=True)]
    except (ArithmeticError, TypeError, ValueError):
        return None


def _is_close(found: Numbers, wanted: Numbers) -> bool:
    return all(abs(a - b) <= TOLERANCE * (1 + abs(b)) for a, b in zip(found, wanted, strict=True))


def _depends_on(node: fx.Node, anchor: fx.Node, input: fx.Node) -> bool:
    return anchor in Match(node, (input,), lambda record: node).inside
