"""Functions that torch has none of, and models write out: where one is a single call, it is a step."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from .steps import Step, step_reader
from .values import UnsupportedError, any_requires_grad, tensor

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}
"""By their names in programs."""


def rms_norm(input: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """Of the last dimension, in another floating type than the input's."""
    return F.rms_norm(input.to(dtype), input.shape[-1:], weight, eps)


@step_reader(rms_norm)
def _rms_norm(input, weight, eps, dtype):
    return Step("rms_norm", (input,), {"dimensions": 1, "eps": eps}, {"weight": weight})


def linear(input: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """In another floating type than the input's."""
    return F.linear(input.to(dtype), weight, bias)


@step_reader(linear)
def _linear(input, weight, bias, dtype):
    return Step("linear", (input,), {}, {"weight": weight, "bias": bias})


def add(first: Tensor, second: Tensor, dtype: torch.dtype) -> Tensor:
    """In a narrower type than theirs."""
    return (first + second).to(dtype)


@step_reader(add)
def _add(first, second, dtype):
    return Step("add", (first, second))


def activation(input: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """In another floating type than the input's."""
    return ACTIVATIONS[kind](input.to(dtype))


@step_reader(activation)
def _activation(input, kind, dtype):
    return Step("activation", (input,), {"kind": kind})


def rotary_embedding(input: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """`input`, [..., n], with its pairs (i, i + n / 2) turned by angles; the factors broadcast to its sizes. The result
    has a type of its own (RoFormer, arXiv 2104.09864, with the halves of GPT-NeoX)."""
    first, second = input.chunk(2, -1)
    return (input * cos + torch.cat((-second, first), -1) * sin).to(dtype)


@step_reader(rotary_embedding)
def _rotary_embedding(input: fx.Node, cos: fx.Node, sin: fx.Node, dtype: torch.dtype) -> Step:
    if any_requires_grad([cos, sin]):
        raise UnsupportedError("its angles want a gradient")
    if tensor(input).dim() < max(tensor(cos).dim(), tensor(sin).dim()):
        raise UnsupportedError("its angles have more dimensions than what it turns")
    return Step("rotary", (input, cos, sin))


HIDDEN = -1e4
"""Scores below count for nothing."""
_LEAST, _LOST = -1e30, -1e7
"""What hides keys, beside which no score makes a difference; beside which scores are lost in float32."""


def added_mask(masks: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of what is added to scores, in their type.

    In a narrower type the largest number of a row becomes 0, which softmax does not notice: those that count are
    rounded least. What hides a key stays finite where it is.
    """
    total = functools.reduce(operator.add, masks)
    if total.dtype == dtype:
        return total
    largest = total.detach().amax(-1, keepdim=True)
    total = total - torch.where(largest > _LOST, largest, 0.0)
    return total.clamp(min=torch.finfo(dtype).min).to(dtype)


def hiding_mask(places: Sequence[Tensor], is_infinite: bool, dtype: torch.dtype) -> Tensor:
    """What hides the keys at all these places, added to scores."""
    where = functools.reduce(torch.logical_or, places)
    return torch.zeros_like(where, dtype=dtype).masked_fill(where, -math.inf if is_infinite else _LEAST)


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, probability: float, scale: float):
    """Attention of windows, a picture's after another's, by a mask of one picture: [windows, heads or 1, length,
    length], added to scores."""
    masks = mask.expand(query.shape[0] // mask.shape[0], *mask.shape).flatten(0, 1)
    return F.scaled_dot_product_attention(query, key, value, masks, probability, scale=scale)


@step_reader(windowed_attention)
def _windowed_attention(query, key, value, mask, probability, scale):
    fields = {"probability": probability, "scale": scale, "mask_repeats": True}
    return Step("attention", (query, key, value, mask), fields)
