"""Linear layers of low rank (LoRA, arXiv 2106.09685) and others: what is multiplied or converted around them."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from . import written_out
from .pattern_nodes import (
    PRODUCTS,
    SUMS,
    Match,
    cast_value,
    is_number,
    is_tensor,
    key_of,
    only_user,
    operands,
    readers_in,
)
from .values import elements, example
from .writes import memory_of, written_memory

SMALL = 4
"""A weight with this many times fewer elements than the result is multiplied in the result's place."""
RESHAPES = frozenset({torch.reshape, "view", "reshape"})


def linear(node: fx.Node) -> Match | None:
    """A linear layer of an input that is converted to a wider type for it, or whose result is a number's multiple; or
    one that is shown its input as a matrix, and whose result is shown in the input's shape, as GPT-2 has them."""
    return _linear(node, *node.args, **node.kwargs)


def _linear(node: fx.Node, input: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> Match | None:
    if (folded := _folded(node, input)) is not None:
        whole, result = folded
        inputs = (whole, weight, *([] if bias is None else [bias]))
        return Match(result, inputs, lambda record: record.call(F.linear, whole, weight, bias), caller=node)
    dtype = example(node).dtype
    narrow = cast_value(input)
    is_widened = narrow is not None and _is_wider(dtype, example(narrow).dtype) and example(input).dtype == dtype
    product, factor = _scaled(node, weight)
    if not is_widened and product is None:
        return None
    value = narrow if is_widened else input

    def make(record):
        parameters = [weight, bias]
        if product is not None:
            parameters = [None if p is None else record.call(operator.mul, p, factor) for p in parameters]
        if is_widened:
            return record.call(written_out.linear, value, *parameters, dtype)
        return record.call(F.linear, value, *parameters)

    return Match(product or node, (value, weight, *([] if bias is None else [bias])), make, caller=node)


def _folded(node: fx.Node, input: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The value whose rows a layer has, and what shows the layer's result in the value's shape."""
    result = only_user(node)
    if key_of(input) not in RESHAPES or key_of(result) not in RESHAPES or result.args[0] is not node:
        return None
    whole = input.args[0]
    before, rows, after = (example(value) for value in (whole, input, result))
    is_folded = before.dtype == rows.dtype and before.dim() != rows.dim() == 2
    is_unfolded = after.dtype == example(node).dtype and after.dim() == before.dim()
    if not (is_folded and is_unfolded and statically_known_true(before.shape[-1] == rows.shape[-1])):
        return None
    are_alike = zip(before.shape[:-1], after.shape[:-1], strict=True)
    return (whole, result) if all(statically_known_true(one == other) for one, other in are_alike) else None


def _scaled(node: fx.Node, weight: fx.Node) -> tuple[fx.Node | None, float]:
    product = only_user(node)
    factors = operands(product, PRODUCTS)
    number = next(filter(is_number, factors), None) if factors else None
    if number is None or example(product).dtype != example(node).dtype or elements(weight) * SMALL > elements(node):
        return None, 1.0
    return product, number


def converted(cast: fx.Node) -> Match | None:
    """A conversion to a wider type, of what only products read that autocast has in the type that it had before; or
    one to a narrower type, of a sum or of one of its terms."""
    value = cast_value(cast)
    if value is None:
        return None
    before, after = example(value).dtype, example(cast).dtype
    if _is_wider(after, before):
        readers = readers_in(before, cast)
        # The conversion is a copy, which stays what it is when somebody writes to the value.
        if readers is None or memory_of(value) in written_memory(cast.graph):
            return None
        return Match(cast, (value,), lambda record: value, before, readers=readers)
    if not _is_wider(before, after):
        return None
    result, terms = cast, operands(value, SUMS)
    if terms is None and (terms := operands(only_user(cast), SUMS)) is not None:
        result, terms = only_user(cast), tuple(value if term is cast else term for term in terms)
    if terms is None or not all(map(is_tensor, terms)) or example(result).dtype != after:
        return None
    return Match(result, terms, lambda record: record.call(written_out.add, *terms, after))


def _is_wider(dtype: torch.dtype, other: torch.dtype) -> bool:
    return dtype != other and torch.promote_types(dtype, other) == dtype
