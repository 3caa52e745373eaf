"""What models write around attention: rotary embeddings, scaled queries, heads that are repeated for groups."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx

from . import written_out
from .added_masks import attention_with, repeating
from .pattern_nodes import (
    PRODUCTS,
    SUMS,
    VIEWS,
    Match,
    is_number,
    is_tensor,
    key_of,
    only_user,
    operands,
    other_factor,
    readers_in,
)
from .values import any_requires_grad, example

_FULL = slice(None)


def rotary_embedding(rotated: fx.Node) -> Match | None:
    """`x * cos + cat((-x[..., n / 2 :], x[..., : n / 2]), -1) * sin`."""
    input = _rotated(*rotated.args, **rotated.kwargs)
    product = only_user(rotated)
    result = only_user(product) if product is not None else None
    sin = other_factor(product, rotated) if result is not None else None
    terms = operands(result, SUMS)
    if input is None or sin is None or terms is None or terms[0] is terms[1]:
        return None
    cos = other_factor(terms[0] if terms[1] is product else terms[1], input)
    if not is_tensor(cos) or not is_tensor(sin) or any_requires_grad([cos, sin]):
        return None
    found, wanted = example(input), example(result)
    if found.shape != wanted.shape:
        return None
    # In the wider type of its angles, if others than products read it: a cache, for example.
    readers = [] if found.dtype == wanted.dtype else readers_in(found.dtype, result)
    dtype = wanted.dtype if readers is None else found.dtype

    def make(record):
        return record.call(written_out.rotary_embedding, input, cos, sin, dtype)

    return Match(result, (input, cos, sin), make, dtype, readers=readers or [])


def _rotated(tensors, dim=0) -> fx.Node | None:
    if len(tensors) != 2 or key_of(tensors[0]) not in (operator.neg, torch.neg, "neg"):
        return None
    second, first = _half(tensors[0].args[0]), _half(tensors[1])
    if first is None or second is None or first[0] is not second[0] or (first[1], second[1]) != (0, 1):
        return None
    return first[0] if dim in (-1, example(first[0]).dim() - 1) else None


def _half(node: object) -> tuple[fx.Node, int] | None:
    """The value that this is the first or the second half of, in its last dimension, and which one."""
    if key_of(node) is not operator.getitem:
        return None
    value, index = node.args
    if key_of(value) in (torch.chunk, "chunk") and index in (0, 1):
        return (value.args[0], index) if _is_in_halves(*value.args, **value.kwargs) else None
    if not is_tensor(value) or not isinstance(index, tuple):
        return None
    features, last = example(value).shape[-1], index[-1]
    is_last = index[0] is Ellipsis and len(index) == 2
    is_last |= len(index) == example(value).dim() and all(part == _FULL for part in index[:-1])
    if not is_last or not isinstance(last, slice) or not isinstance(features, int) or features % 2:
        return None
    half = features // 2
    if last.step in (None, 1) and last.start in (None, 0) and last.stop == half:
        return value, 0
    return (value, 1) if last.step in (None, 1) and last.start == half and last.stop in (None, features) else None


def _is_in_halves(input, chunks=None, dim=0) -> bool:
    return chunks == 2 and dim in (-1, example(input).dim() - 1) and example(input).shape[-1] % 2 == 0


def attention(node: fx.Node) -> Match | None:
    """Attention whose query is scaled before, or whose keys and values are repeated for groups of heads."""
    return _attention(node, *node.args, **node.kwargs)


def _attention(
    node, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Match | None:
    times = scaled(query)
    repeated = None if enable_gqa else (_repeated(key), _repeated(value))
    is_repeated = repeated is not None and None not in repeated and repeated[0][1] == repeated[1][1]
    if scale is None:
        scale = example(query).shape[-1] ** -0.5
    windows = None if is_causal or is_repeated or enable_gqa else repeating(attn_mask)
    if not (times or is_repeated or windows) or not is_number(scale):
        return None
    unscaled, factor, views = times or (query, 1.0, [])
    if windows is not None:

        def make_of_windows(record):
            heads = through_views(record, unscaled, views)
            return attention_with(record, heads, key, value, windows, dropout_p, scale * factor, example(node).dtype)

        return Match(node, (unscaled, key, value, *windows.terms), make_of_windows)
    inputs = (unscaled, *((repeated[0][0], repeated[1][0]) if is_repeated else (key, value)))
    is_grouped = is_repeated and attn_mask is None

    def make(record):
        heads = [through_views(record, unscaled, views), *inputs[1:]]
        if is_repeated and not is_grouped:  # few kernels take masks and groups
            heads[1:] = [
                _copies(record, value, times, whole)
                for (value, times), whole in zip(repeated, (key, value), strict=True)
            ]
        return record.call(
            F.scaled_dot_product_attention, *heads, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal,
            scale=scale * factor, enable_gqa=enable_gqa or is_grouped,
        )  # fmt: skip

    return Match(node, (*inputs, *([] if attn_mask is None else [attn_mask])), make)


def through_views(record, value: fx.Node, views: list[fx.Node]) -> fx.Node:
    """What these views of a multiple of a value are of the value itself."""
    for view in views:
        value = record.method(view.target, value, *view.args[1:], **view.kwargs)
    return value


def scaled(query: fx.Node) -> tuple[fx.Node, float, list[fx.Node]] | None:
    """What a query is a multiple of, by which number, and the views behind, in order."""
    views: list[fx.Node] = []
    node = query
    while key_of(node) in VIEWS and node.op == "call_method":
        views.insert(0, node)
        node = node.args[0]
    factors = operands(node, PRODUCTS)
    if factors is None or not any(map(is_number, factors)):
        return None
    value, number = factors if is_number(factors[1]) else factors[::-1]
    types = {example(one).dtype for one in (value, node, *views) if is_tensor(one)}
    return (value, number, views) if is_tensor(value) and len(types) == 1 and number > 0 else None


def _repeated(heads: fx.Node) -> tuple[fx.Node, int] | None:
    """What [batch, heads, length, features] repeats, each head several times in a row, and how often."""
    expanded = heads.args[0] if key_of(heads) in ("reshape", "view") else None
    separate = expanded.args[0] if key_of(expanded) == "expand" else None
    if separate is None:
        return None
    value = separate.args[0] if is_tensor(separate.args[0]) else None
    indices = [(_FULL, _FULL, None, *[_FULL] * more) for more in range(3)]
    is_separate = key_of(separate) is operator.getitem and separate.args[1] in indices
    is_separate |= key_of(separate) == "unsqueeze" and separate.args[1:] == (2,)
    if value is None or not is_separate or example(value).dim() != 4:
        return None
    batch, count, length, features = example(value).shape
    times = example(expanded).shape[2]
    is_repeated = isinstance(times, int) and isinstance(count, int)
    is_repeated = is_repeated and example(expanded).shape == (batch, count, times, length, features)
    return (value, times) if is_repeated and example(heads).shape == (batch, count * times, length, features) else None


def _copies(record, value: fx.Node, times: int, repeated: fx.Node) -> fx.Node:
    joined = record.call(torch.cat, [record.method("unsqueeze", value, 2)] * times, 2)
    return record.method("reshape", joined, *repeated.args[1:], **repeated.kwargs)
