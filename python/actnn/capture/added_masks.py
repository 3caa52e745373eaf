"""What is added to the scores of attention, and how often it repeats over the samples.

Swin's samples are the windows of pictures: a window's mask is the same in each picture, and what is saved is that of
one.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx

from . import written_out
from .pattern_nodes import SUMS, is_tensor, key_of, operands
from .values import example


@dataclass(frozen=True)
class AddedMasks:
    """The terms of a mask, each [1, heads or 1, length, length], of fewer dimensions, or, if the mask repeats,
    [1, windows, heads or 1, length, length]."""

    terms: tuple[fx.Node, ...] = ()
    repeats: bool = False


def repeating(mask: object) -> AddedMasks | None:
    """A mask that is written for all windows of all pictures; None for any other."""
    terms = _terms(mask)
    if not all(example(term).is_floating_point() for term in terms):
        return None
    windows = [_of_one_picture(term) for term in terms]
    if all(window is None for window in windows):
        return None
    others = [term for term, window in zip(terms, windows, strict=True) if window is None]
    if not all(_is_of_any_sample(term) for term in others):
        return None
    return AddedMasks((*others, *(window for window in windows if window is not None)), repeats=True)


def _terms(mask: object) -> list[fx.Node]:
    added = operands(mask, SUMS)
    if added is not None and all(map(is_tensor, added)):
        return [*_terms(added[0]), *_terms(added[1])]
    return [mask] if is_tensor(mask) else []


def _is_of_any_sample(term: fx.Node) -> bool:
    return example(term).dim() < 4 or _sizes(term)[:-3] == [1]


def _of_one_picture(term: fx.Node) -> fx.Node | None:
    """[1, windows, heads or 1, length, length] of what expands that to all pictures and heads and joins samples."""
    expanded = term.args[0] if key_of(term) in ("reshape", "view") else None
    if key_of(expanded) != "expand" or not is_tensor(expanded.args[0]):
        return None
    mask, sizes = expanded.args[0], _sizes(expanded)
    is_joined = len(sizes) == 5 and example(term).dim() == 4 and _sizes(term)[1:] == sizes[2:]
    return mask if is_joined and is_of_windows(mask, sizes[1:]) else None


def is_of_windows(mask: fx.Node, sizes: list) -> bool:
    """Whether a mask of five dimensions is one of these windows, [windows, heads, length, length], of any picture."""
    found = _sizes(mask)
    return (
        all(isinstance(size, int) for size in (*found, *sizes))
        and found[:2] == [1, sizes[0]]
        and found[2] in (1, sizes[1])
        and found[3:] == sizes[2:]
    )


def attention_with(
    record, query, key, value, masks: AddedMasks, probability: float, scale: float, dtype: torch.dtype
) -> fx.Node:
    """The one call. `dtype`: of its result, in which it reads the mask."""
    if not masks.terms:
        return record.call(F.scaled_dot_product_attention, query, key, value, dropout_p=probability, scale=scale)
    terms = [record.call(operator.getitem, term, 0) if example(term).dim() == 5 else term for term in masks.terms]
    mask = record.call(written_out.added_mask, terms, dtype)
    if masks.repeats:
        return record.call(written_out.windowed_attention, query, key, value, mask, probability, scale)
    return record.call(F.scaled_dot_product_attention, query, key, value, mask, dropout_p=probability, scale=scale)


def _sizes(value: fx.Node) -> list:
    return list(example(value).shape)
