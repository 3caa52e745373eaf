"""Attention that is written as products and a softmax: `dropout(softmax(query @ key.mT * scale + mask)) @ value`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx

from . import written_out
from .added_masks import AddedMasks, attention_with, is_of_windows
from .attention_patterns import scaled, through_views
from .pattern_nodes import (
    MATRIX_PRODUCTS,
    PRODUCTS,
    SUMS,
    Match,
    cast_value,
    is_number,
    is_tensor,
    key_of,
    only_user,
    operands,
    with_casts_behind,
)
from .values import example
from .writes import memory_of, written_memory

QUOTIENTS = frozenset({operator.truediv, torch.div, "div", "__truediv__"})
SOFTMAX = frozenset({F.softmax, torch.softmax, "softmax"})
FILLS = frozenset({torch.masked_fill, "masked_fill"})


@dataclass(frozen=True)
class _Scores:
    """[batch, heads, length, length]: the product of query and key, scaled, and what is added."""

    query: fx.Node
    key: fx.Node
    """[..., head size, length]."""
    scale: float = 1.0
    masks: AddedMasks = field(default_factory=AddedMasks)
    fills: tuple[tuple[fx.Node, float], ...] = ()
    """Where, and with what."""

    @property
    def hides_all(self) -> bool:
        """Whether all fills are infinite."""
        return all(number == -math.inf for _, number in self.fills)


def attention(softmax: fx.Node) -> Match | None:
    scores = _scores(softmax.args[0]) if _is_of_last(*softmax.args, **softmax.kwargs) else None
    weights, probability = _weights(softmax)
    result = only_user(weights)
    factors = operands(result, MATRIX_PRODUCTS)
    if scores is None or probability is None or factors is None or factors[0] is not weights:
        return None
    value, dtype = factors[1], example(result).dtype
    if [example(one).dim() for one in (scores.query, scores.key, value)] != [4, 4, 4]:
        return None
    if not _may_be_kept(scores, softmax, dtype):
        return None
    query, factor, views = scaled(scores.query) or (scores.query, 1.0, [])
    key, is_exchanged = _exchanged(scores.key)
    places = [where for where, _ in scores.fills]

    def make(record):
        heads = through_views(record, query, views)
        keys = key if is_exchanged else record.method("transpose", key, -2, -1)
        filled = [record.call(written_out.hiding_mask, places, scores.hides_all, dtype)] if places else []
        masks = replace(scores.masks, terms=(*scores.masks.terms, *filled))
        return attention_with(record, heads, keys, value, masks, probability, scores.scale * factor, dtype)

    return Match(result, (query, key, value, *scores.masks.terms, *places), make)


def _may_be_kept(scores: _Scores, softmax: fx.Node, dtype: torch.dtype) -> bool:
    """Whether what is added can be a mask, which attention keeps: nobody writes to it later, and what hides keys is far
    below all scores in its type."""
    written = written_memory(softmax.graph, behind=softmax)
    masks = (*scores.masks.terms, *(where for where, _ in scores.fills))
    is_written = any(memory_of(mask) in written for mask in masks)
    return not is_written and (dtype != torch.float16 or scores.hides_all)


def _is_of_last(input, dim=None, _stacklevel=3, dtype=None) -> bool:
    return dim in (-1, example(input).dim() - 1) and dtype in (None, torch.float32, example(input).dtype)


def _weights(softmax: fx.Node) -> tuple[fx.Node, float | None]:
    """What multiplies the values, and the probability with which a weight is dropped; None if that is computed."""
    weights = list(with_casts_behind(softmax))[-1]
    dropped = only_user(weights)
    if key_of(dropped) is not F.dropout or dropped.args[0] is not weights:
        return weights, 0.0
    probability = _probability(*dropped.args, **dropped.kwargs)
    return list(with_casts_behind(dropped))[-1], probability


def _probability(input, p=0.5, training=True, inplace=False) -> float | None:
    is_known = is_number(p) and 0 <= p < 1 and isinstance(training, bool)
    return (p if training else 0.0) if is_known else None


def _scores(node: object) -> _Scores | None:
    while (converted := cast_value(node)) is not None:
        node = converted
    if not is_tensor(node):
        return None
    for read in (_product, _scaled_scores, _masked, _filled, _of_windows):
        if (found := read(node)) is not None:
            return found
    return None


def _product(node: fx.Node) -> _Scores | None:
    factors = operands(node, MATRIX_PRODUCTS)
    return _Scores(*factors) if factors is not None and all(map(is_tensor, factors)) else None


def _scaled_scores(node: fx.Node) -> _Scores | None:
    """Those that are multiplied or divided by a number, before anything is added."""
    quotient = operands(node, QUOTIENTS)
    factors = quotient or operands(node, PRODUCTS)
    if factors is None or not any(map(is_number, factors)) or (quotient and not is_number(factors[1])):
        return None
    inner, number = factors if is_number(factors[1]) else factors[::-1]
    scores = _scores(inner)
    if scores is None or scores.masks.terms or scores.fills or number <= 0:
        return None
    return replace(scores, scale=scores.scale / number if quotient else scores.scale * number)


def _masked(node: fx.Node) -> _Scores | None:
    terms = operands(node, SUMS)
    if terms is None or not all(map(is_tensor, terms)):
        return None
    for inner, mask in (terms, terms[::-1]):
        if example(mask).is_floating_point() and (scores := _scores(inner)) is not None:
            return _with_mask(scores, mask) if example(node).shape == example(inner).shape else None
    return None


def _filled(node: fx.Node) -> _Scores | None:
    if key_of(node) not in FILLS or len(node.args) != 3:
        return None
    inner, where, number = node.args
    if not is_number(number) or number > written_out.HIDDEN:
        return None
    scores = _scores(inner)
    if scores is None or not is_tensor(where) or example(where).dim() > 4 or scores.masks.repeats:
        return None
    return replace(scores, fills=(*scores.fills, (where, float(number))))


def _of_windows(node: fx.Node) -> _Scores | None:
    """Those to which, as [pictures, windows, heads, length, length], a mask of windows is added."""
    terms = operands(_viewed(node), SUMS)
    if terms is None or not all(map(is_tensor, terms)):
        return None
    for separate, mask in (terms, terms[::-1]):
        inner = _viewed(separate)
        if inner is not None and (scores := _scores(inner)) is not None:
            return _with_windows(scores, mask) if _is_split(inner, separate, mask, node) else None
    return None


def _is_split(inner: fx.Node, separate: fx.Node, mask: fx.Node, node: fx.Node) -> bool:
    """Whether scores of samples are seen as those of windows of pictures, and as before behind the mask."""
    before, sizes, behind = (list(example(one).shape) for one in (inner, separate, node))
    is_split = len(sizes) == 5 and len(behind) == 4 and before[1:] == sizes[2:] == behind[1:]
    return is_split and is_of_windows(mask, sizes[1:])


def _with_windows(scores: _Scores, mask: fx.Node) -> _Scores | None:
    others = scores.masks.terms
    are_of_all = all(example(term).dim() < 4 or example(term).shape[0] == 1 for term in others)
    if scores.masks.repeats or scores.fills or not are_of_all:
        return None
    return replace(scores, masks=AddedMasks((*others, mask), repeats=True))


def _viewed(node: object) -> fx.Node | None:
    return node.args[0] if key_of(node) in ("view", "reshape") else None


def _with_mask(scores: _Scores, mask: fx.Node) -> _Scores | None:
    is_of_any_sample = example(mask).dim() < 4 or example(mask).shape[0] == 1
    if example(mask).dim() > 4 or (scores.masks.repeats and not is_of_any_sample):
        return None
    return replace(scores, masks=replace(scores.masks, terms=(*scores.masks.terms, mask)))


EXCHANGES: dict[object, Callable[..., bool]] = {
    "transpose": lambda first, second: {first % 4, second % 4} == {2, 3},
    "permute": lambda *order: order in ((0, 1, 3, 2), ([0, 1, 3, 2],), ((0, 1, 3, 2),)),
    getattr: lambda name: name == "mT",
}
EXCHANGES |= {"swapaxes": EXCHANGES["transpose"], torch.transpose: EXCHANGES["transpose"]}


def _exchanged(key: fx.Node) -> tuple[fx.Node, bool]:
    """The key before its last two dimensions were exchanged, or as it is."""
    exchange = EXCHANGES.get(key_of(key))
    is_exchanged = exchange is not None and not key.kwargs and exchange(*key.args[1:]) and only_user(key) is not None
    return (key.args[0], True) if is_exchanged else (key, False)
