"""The end of a language model: a linear layer whose result only a cross entropy reads needs no logits."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from .composites import Recorder
from .functions import name_of_target
from .modes import nodes_in_their_modes
from .values import UnsupportedError, example, floating
from .writes import disturbs_between

_LOSS = torch.ops.actnn.linear_cross_entropy.default
_CASTS = {"float", "contiguous"}
_VIEWS = {"view", "reshape", "flatten"}


def join_losses(graph: fx.Graph, is_exact: Callable[[fx.Node], bool]) -> dict[fx.Node, str]:
    """Puts one node of the library's in the place of each linear layer and the cross entropy of its result.

    Between them may be slices of rows, casts to float32 and views that keep the classes innermost, and nobody else may
    read what is there. Returns the new nodes, and what each was a call of.
    """
    joined = {}
    for node in nodes_in_their_modes(graph):
        if node.op != "call_function" or node.target is not F.cross_entropy or is_exact(node):
            continue
        options = _options(*node.args, **node.kwargs)
        chain = _chain(options.pop("logits")) if options else []
        if not chain or is_exact(chain[0]) or disturbs_between([*chain, node]):
            continue
        if (loss := _joined(node, chain, options)) is None:
            continue
        node.replace_all_uses_with(loss)
        for gone in (node, *reversed(chain)):
            graph.erase_node(gone)
        joined[loss] = name_of_target(node)
    return joined


def _options(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0
) -> dict[str, Any]:  # fmt: skip
    """Those of the library's loss; nothing if it has none like it."""
    labels = example(target)
    is_known = isinstance(labels, Tensor) and labels.dtype == torch.int64 and isinstance(input, fx.Node)
    if not is_known or labels.dim() != 1 or reduction not in ("mean", "sum"):
        return {}
    if any(option is not None for option in (weight, size_average, reduce)):
        return {}
    return {
        "logits": input,
        "target": target,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }


def _chain(logits: fx.Node) -> list[fx.Node]:
    """From the linear layer to what the cross entropy reads, [rows, classes]; nothing if that is no such thing."""
    chain, may_be_view = [], True
    node = logits
    while isinstance(node, fx.Node) and len(node.users) == 1 and isinstance(example(node), Tensor):
        chain.append(node)
        if node.op == "call_function" and node.target is F.linear:
            return chain[::-1] if example(logits).dim() == 2 else []
        if example(node).dim() == 0 or example(node).shape[-1] != example(logits).shape[-1]:
            return []
        if not _is_cast(node) and not (may_be_view and _is_view(node)):
            may_be_view = False  # slices come before views
            if not _is_slice(node):
                return []
        node = node.args[0]
    return []


def _is_cast(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "to":
        return node.args[1:] == (torch.float32,) and not node.kwargs
    return node.op == "call_method" and node.target in _CASTS and len(node.args) == 1 and not node.kwargs


def _is_view(node: fx.Node) -> bool:
    is_of_sizes = not any(isinstance(argument, torch.dtype) for argument in (*node.args, *node.kwargs.values()))
    return node.op == "call_method" and node.target in _VIEWS and is_of_sizes


def _is_slice(node: fx.Node) -> bool:
    """Of rows, as `logits[..., :-1, :]`."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return False
    index, full = node.args[1], slice(None)
    if not all(part is Ellipsis or isinstance(part, slice) for part in index):
        return False
    reaches_last = Ellipsis in index or len(index) == example(node.args[0]).dim()
    return not reaches_last or index[-1] == full


def _joined(node: fx.Node, chain: list[fx.Node], options: dict[str, Any]) -> fx.Node | None:
    record = Recorder(node)
    try:
        input, weight, bias = _arguments(*chain[0].args, **chain[0].kwargs)
        for value in (input, weight, *(() if bias is None else (bias,))):
            floating(value)
        for part in chain[1:]:
            if _is_slice(part):
                input = record.call(operator.getitem, input, part.args[1])
        if example(input).dim() > 2:
            input = record.method("flatten", input, 0, -2)
        loss = record.call(_LOSS, input, weight, bias=bias, **options)
        found, wanted = example(loss), example(node)
        if (found.dtype, found.shape, found.requires_grad) == (wanted.dtype, wanted.shape, wanted.requires_grad):
            return loss
    except (UnsupportedError, RuntimeError, TypeError, ValueError):
        pass  # it is one that the library's loss does not take
    for made in reversed(record.made):
        node.graph.erase_node(made)
    return None


def _arguments(input, weight, bias=None) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    return input, weight, bias
