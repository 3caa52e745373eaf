"""Functions that a model writes out in several calls, put back as the one call that they are.

Results are equal up to rounding: where the model rounds between two calls, the one call does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from . import attention_patterns, elementwise_patterns, linear_patterns, norm_patterns, softmax_patterns
from .composites import Recorder
from .modes import computed, nodes_in_their_modes
from .pattern_nodes import CASTS, Match, key_of
from .values import UnsupportedError, example, floating, tensor
from .writes import disturbs_between

Matcher = Callable[[fx.Node], "Match | None"]
MATCHERS: dict[object, Matcher] = {
    **dict.fromkeys(CASTS, linear_patterns.converted),
    F.linear: linear_patterns.linear,
    **dict.fromkeys((torch.rsqrt, "rsqrt"), norm_patterns.rms_norm),
    **dict.fromkeys(elementwise_patterns.ANCHORS, elementwise_patterns.activation),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), attention_patterns.rotary_embedding),
    F.scaled_dot_product_attention: attention_patterns.attention,
    **dict.fromkeys(softmax_patterns.SOFTMAX, softmax_patterns.attention),
}
"""By a call that the function has in it."""


def join_patterns(graph: fx.Graph, is_exact: Callable[[fx.Node], bool]) -> None:
    """Puts one node in the place of each function that is written out, where its last call stands.

    What the calls compute on the way may have no other reader, nothing between them may write or change a mode, and
    none may be one that stays exact.
    """
    anchors: dict[fx.Node, fx.Node] = {}
    for node in nodes_in_their_modes(graph):
        if (match := _match(node)) is not None:
            anchors.setdefault(match.result, node)
        match = _match(anchors.pop(node, None))  # again: what it reads may have become another node
        if match is not None and match.result is node and not any(map(is_exact, match.inside)):
            _replace(match)


def _match(anchor: fx.Node | None) -> Match | None:
    matcher = MATCHERS.get(key_of(anchor))
    if matcher is None:
        return None
    try:
        match = matcher(anchor)
        if match is None or not match.is_closed or disturbs_between(match.inside):
            return None
        floating(match.result)
        for value in match.inputs:
            tensor(value)
    except (UnsupportedError, AttributeError, IndexError, TypeError):  # arguments of another kind than was looked for
        return None
    return match


def _replace(match: Match) -> None:
    graph, record = match.result.graph, Recorder(match.result, match.caller)
    try:
        made = match.make(record)
        found, wanted = example(made), example(match.result)
        is_alike = (found.dtype, found.shape, found.requires_grad) == (
            match.dtype or wanted.dtype,
            wanted.shape,
            wanted.requires_grad,
        )
        of_readers = _examples_of_readers(match, found) if is_alike else {}
        is_alike = is_alike and all(new.shape == example(reader).shape for reader, new in of_readers.items())
    except (RuntimeError, TypeError, ValueError):
        is_alike = False
    if not is_alike:
        for node in reversed(record.made):
            graph.erase_node(node)
        return
    if found.dtype == wanted.dtype:
        made.meta["example_value"] = wanted  # whose memory those of its views are in
    match.result.replace_all_uses_with(made)
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in sorted(match.inside, key=order.__getitem__, reverse=True):
        graph.erase_node(node)
    for reader, new in of_readers.items():
        reader.meta["example_value"] = new


def _examples_of_readers(match: Match, result: Tensor) -> dict[fx.Node, Tensor]:
    """What the readers of a match will be computed with. Raises what torch raises for views that are none then."""
    found: dict[fx.Node, Tensor] = {match.result: result}
    for reader in match.readers:
        function = getattr(Tensor, reader.target) if reader.op == "call_method" else reader.target
        args, kwargs = fx.map_arg((reader.args, dict(reader.kwargs)), lambda node: found.get(node, node))
        found[reader] = computed(function, args, kwargs)
    del found[match.result]
    return found
