"""The end of a language model: of a linear layer and the cross entropy of its result nothing is kept but gradients.

Where nobody else reads the logits they are never there as a whole; where the model returns them too, they are a result.
"""

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
_LOSS_AND_LOGITS = torch.ops.actnn.linear_cross_entropy_and_logits.default
_CASTS = {"float", "contiguous"}
_VIEWS = {"view", "reshape", "flatten"}


def join_losses(graph: fx.Graph, is_exact: Callable[[fx.Node], bool]) -> dict[fx.Node, str]:
    """Puts one node of the library's in the place of each linear layer and the cross entropy of its result.

    Between them may be slices of rows, casts to float32 and views that keep the classes innermost. Nobody else may read
    what is there, but for the layer's own result, which may be read behind the loss. Returns the new nodes, and what
    each was a call of.
    """
    joined = {}
    for node in nodes_in_their_modes(graph):
        if node.op != "call_function" or node.target is not F.cross_entropy or is_exact(node):
            continue
        options = _options(*node.args, **node.kwargs)
        chain = _chain(options.pop("logits")) if options else []
        if not chain or is_exact(chain[0]) or disturbs_between([*chain, node]):
            continue
        record = Recorder(node)
        if (new := _joined(record, chain, options)) is None:
            for made in reversed(record.made):
                graph.erase_node(made)
            continue
        loss, logits = new
        node.replace_all_uses_with(loss)
        if logits is not None:
            reader = chain[1] if len(chain) > 1 else node
            chain[0].replace_all_uses_with(logits, lambda user, reader=reader: user is not reader)
        for gone in (node, *reversed(chain)):
            graph.erase_node(gone)
        joined[next(made for made in record.made if made.target in (_LOSS, _LOSS_AND_LOGITS))] = name_of_target(node)
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
    while isinstance(node, fx.Node) and isinstance(example(node), Tensor):
        chain.append(node)
        if node.op == "call_function" and node.target is F.linear:
            return chain[::-1] if example(logits).dim() == 2 else []
        if len(node.users) != 1:
            return []
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


def _joined(record: Recorder, chain: list[fx.Node], options: dict[str, Any]) -> tuple[fx.Node, fx.Node | None] | None:
    """The loss, and the logits if somebody reads them; None for what the library's loss does not take."""
    wanted = example(record.node)
    others = _other_readers(chain, record.node)
    slices = [part for part in chain[1:] if _is_slice(part)]
    if others is None or (others and slices):
        return None
    try:
        input, weight, bias = _arguments(*chain[0].args, **chain[0].kwargs)
        for value in (input, weight, *(() if bias is None else (bias,))):
            floating(value)
        for part in slices:
            input = record.call(operator.getitem, input, part.args[1])
        leading = _leading_sizes(record, input)
        if len(leading) > 1:
            input = record.method("flatten", input, 0, -2)
        if others:
            both = record.call(_LOSS_AND_LOGITS, input, weight, bias=bias, **options)
            loss, logits = (record.call(operator.getitem, both, place) for place in range(2))
            if len(leading) > 1:
                logits = record.method("unflatten", logits, 0, leading)
        else:
            loss, logits = record.call(_LOSS, input, weight, bias=bias, **options), None
        if example(loss).dtype != wanted.dtype:
            loss = record.method("to", loss, wanted.dtype)
        pairs = [(loss, record.node)] + ([] if logits is None else [(logits, chain[0])])
        if all(_kind(new) == _kind(old) for new, old in pairs):
            return loss, logits
    except (UnsupportedError, RuntimeError, TypeError, ValueError):
        pass
    return None


def _other_readers(chain: list[fx.Node], loss: fx.Node) -> list[fx.Node] | None:
    """Those of the linear layer's result besides the loss; None if one comes before it."""
    reader = chain[1] if len(chain) > 1 else loss
    others = [user for user in chain[0].users if user is not reader]
    order = {node: i for i, node in enumerate(loss.graph.nodes)}
    return others if all(order[other] > order[loss] for other in others) else None


def _leading_sizes(record: Recorder, value: fx.Node) -> list[int | fx.Node]:
    """All but the last."""
    sizes = example(value).shape[:-1]
    return [size if isinstance(size, int) else record.method("size", value, place) for place, size in enumerate(sizes)]


def _kind(value: fx.Node) -> tuple:
    found = example(value)
    return found.dtype, found.shape, found.requires_grad


def _arguments(input, weight, bias=None) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    return input, weight, bias
