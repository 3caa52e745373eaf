"""Masks of attention that a graph computes from nothing but sizes.

Libraries of models write a causal mask out while they are captured, where they would leave it out otherwise: kernels
then compute what it hides. Such a mask is computed once here, with the sizes that the graph is for, and left out again
where it is the causal one, or hides nothing. Graphs for any size keep theirs. Masks that each layer makes anew of the
same values, as T5 does, become one.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from . import written_out
from .values import example
from .writes import memory_of, written_memory

_ATTENTION = (F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_MOST_ELEMENTS = 2**27

_FUNCTIONS = frozenset(
    {
        *(torch.arange, torch.zeros, torch.ones, torch.full, torch.tril, torch.triu, torch.where, torch.diff),
        *(torch.zeros_like, torch.ones_like, torch.full_like, torch.logical_and, torch.logical_or, torch.logical_not),
        *(torch.eq, torch.ne, torch.le, torch.lt, torch.ge, torch.gt, torch.unsqueeze, torch.cumsum),
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.getitem, operator.and_, operator.or_),
        *(operator.invert, operator.eq, operator.ne, operator.le, operator.lt, operator.ge, operator.gt),
        *(written_out.added_mask, written_out.hiding_mask),
    }
)  # fmt: skip
_METHODS = frozenset(
    {
        *("new_ones", "new_zeros", "new_full", "unsqueeze", "expand", "view", "reshape", "to", "bool", "float", "int"),
        *("eq", "ne", "le", "lt", "ge", "gt", "__eq__", "__ne__", "__le__", "__lt__", "__ge__", "__gt__", "__and__"),
        *("cumsum", "diff", "tril", "triu", "masked_fill", "logical_not", "logical_and", "squeeze", "contiguous"),
    }
)


def leave_out_causal_masks(graph: fx.Graph) -> None:
    """Lets attention be causal, or have no mask, where its mask says so."""
    constants: dict[fx.Node, Any] = {}
    kinds: dict[fx.Node, str] = {}
    written = written_memory(graph)
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _ATTENTION:
            continue
        arguments = _arguments(node)
        mask = arguments.get("attn_mask")
        if not isinstance(mask, fx.Node) or arguments.get("is_causal") or not _is_small(mask):
            continue
        if mask not in kinds:
            kinds[mask] = _kind_of(_constant(mask, constants, written))
        if kinds[mask]:
            node.args, node.kwargs = (), arguments | {"attn_mask": None, "is_causal": kinds[mask] == "causal"}
    for node in reversed(list(graph.nodes)):
        if constants.get(node) is not None and not node.users:
            graph.erase_node(node)


def join_equal_masks(graph: fx.Graph) -> None:
    """Lets all attentions read one mask that each computes from the same values: it is saved once."""
    made: dict[tuple, fx.Node] = {}
    written = written_memory(graph)
    for node in _makers_of_masks(graph, written):
        found = example(node)
        # A view that is made without gradients is a leaf that says it requires one.
        gradient = (found.requires_grad, found.grad_fn is None)
        key = (node.op, node.target, repr(node.args), repr(node.kwargs), found.dtype, gradient)
        first = made.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _makers_of_masks(graph: fx.Graph, written: set[int]) -> list[fx.Node]:
    """What masks are computed by, in order, as far back as equal arguments are certain to give the same."""
    waiting = [mask for node in graph.nodes if isinstance(mask := _mask_of(node), fx.Node)]
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        is_constant = _is_certain(node, written) and all(memory_of(one) not in written for one in node.all_input_nodes)
        if node not in found and is_constant and isinstance(example(node), Tensor):
            found.add(node)
            waiting += node.all_input_nodes
    return [node for node in graph.nodes if node in found]


def _mask_of(node: fx.Node) -> Any:
    if node.op != "call_function":
        return None
    if node.target is written_out.windowed_attention:
        return node.args[3]
    return _arguments(node).get("attn_mask") if node.target in _ATTENTION else None


def _arguments(node: fx.Node) -> dict[str, Any]:
    return dict(zip(_NAMES, node.args, strict=False)) | node.kwargs


def _is_small(mask: fx.Node) -> bool:
    found = example(mask)
    return (
        isinstance(found, Tensor)
        and all(isinstance(size, int) for size in found.shape)
        and found.numel() <= _MOST_ELEMENTS
    )


def _constant(node: fx.Node, constants: dict[fx.Node, Any], written: set[int]) -> Any:
    """What a node gives whenever the graph runs, computed on the CPU; None if that is not certain."""
    if node not in constants:
        constants[node] = None
        if _is_certain(node, written):
            inputs = [_constant(one, constants, written) for one in node.all_input_nodes]
            constants[node] = _computed(node, constants) if all(one is not None for one in inputs) else None
    return constants[node]


def _is_certain(node: fx.Node, written: set[int]) -> bool:
    """Whether a node gives the same for the same inputs, and nobody writes to it."""
    is_known = (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
    )
    return is_known and memory_of(node) not in written


def _computed(node: fx.Node, constants: dict[fx.Node, Any]) -> Any:
    def value(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return constants[argument]
        return torch.device("cpu") if isinstance(argument, torch.device) else argument

    args, kwargs = fx.node.map_aggregate(node.args, value), fx.node.map_aggregate(node.kwargs, value)
    try:
        with unset_fake_temporarily(), torch.no_grad():
            function = getattr(args[0], node.target) if node.op == "call_method" else node.target
            return function(*(args[1:] if node.op == "call_method" else args), **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _kind_of(mask: Any) -> str:
    """ "causal", "all" for one that hides nothing, or "" for any other."""
    if not isinstance(mask, Tensor):
        return ""
    for dimension in range(mask.dim() - 2):
        if mask.stride(dimension) == 0:  # the same again
            mask = mask.narrow(dimension, 0, 1)
    seen = _seen(mask)
    if seen is None:
        return ""
    return "all" if bool(seen.all()) else "causal" if _is_causal(seen) else ""


def _seen(mask: Tensor) -> Tensor | None:
    """Which keys a position sees, [..., length, length]; None for a mask that adds something else to scores."""
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return None
    is_seen = mask == 0
    return is_seen if bool((mask[~is_seen] < written_out.HIDDEN).all()) else None


def _is_causal(seen: Tensor) -> bool:
    if seen.dim() < 2 or seen.shape[-1] != seen.shape[-2]:
        return False
    return bool((seen == torch.ones(seen.shape[-2:], dtype=torch.bool).tril()).all())
