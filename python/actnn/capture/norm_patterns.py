"""RMS norms as models write them out (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx

from . import written_out
from .pattern_nodes import (
    PRODUCTS,
    SUMS,
    Match,
    best_result,
    is_number,
    is_tensor,
    key_of,
    only_user,
    operands,
    other_factor,
    with_casts_before,
    with_casts_behind,
)
from .values import example


def rms_norm(rsqrt: fx.Node) -> Match | None:
    """`weight * (x * rsqrt(mean(x ** 2) + eps))`, with conversions between, or without a weight."""
    normalized = only_user(rsqrt)
    found = _squared_and_eps(rsqrt)
    value = other_factor(normalized, rsqrt) if found and normalized else None
    if value is None:
        return None
    squared, eps = found
    before = set(with_casts_before(squared))
    inputs = [one for one in with_casts_before(value) if one in before]
    for input in reversed(inputs):
        weight, ends = _weighted(normalized, example(input).shape[-1])
        result = best_result(ends, input)
        match = None if result is None else _match(input, weight, eps, result)
        if match is not None and match.is_closed:
            return match
    return None


def _match(input: fx.Node, weight: fx.Node | None, eps: float, result: fx.Node) -> Match | None:
    features, dtype = example(input).shape[-1], example(result).dtype
    if not isinstance(features, int):
        return None

    def make(record):
        if dtype == example(input).dtype:
            return record.call(F.rms_norm, input, (features,), weight, eps)
        return record.call(written_out.rms_norm, input, weight, eps, dtype)

    return Match(result, (input,) if weight is None else (input, weight), make)


def _squared_and_eps(rsqrt: fx.Node) -> tuple[fx.Node, float] | None:
    """What is squared, whose mean over the last dimension is taken, and what is added to that."""
    terms = operands(rsqrt.args[0], SUMS) if len(rsqrt.args) == 1 and not rsqrt.kwargs else None
    if terms is None:
        return None
    mean, eps = terms if is_number(terms[1]) else terms[::-1]
    if not is_number(eps) or key_of(mean) not in (torch.mean, "mean"):
        return None
    squared = _squared(mean.args[0]) if _is_of_last_dimension(*mean.args, **mean.kwargs) else None
    return None if squared is None or example(mean).dtype != torch.float32 else (squared, eps)


def _is_of_last_dimension(input, dim=None, keepdim=False, dtype=None) -> bool:
    last = example(input).dim() - 1
    dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
    return bool(keepdim) and dtype is None and dims in ([-1], [last])


def _squared(node: object) -> fx.Node | None:
    if key_of(node) in (torch.square, "square"):
        return node.args[0]
    if (power := operands(node, (torch.pow, operator.pow, "pow", "__pow__"))) is not None:
        return power[0] if power[1] == 2 else None
    factors = operands(node, PRODUCTS)
    return factors[0] if factors is not None and factors[0] is factors[1] else None


def _weighted(normalized: fx.Node, features: int) -> tuple[fx.Node | None, list[fx.Node]]:
    """The weight, if there is one, and the values that may be the result."""
    ends = list(with_casts_behind(normalized))
    product = only_user(ends[-1])
    weight = other_factor(product, ends[-1]) if product is not None else None
    if is_tensor(weight) and example(weight).dim() == 1 and example(weight).shape[0] == features:
        return weight, list(with_casts_behind(product))
    return None, ends
