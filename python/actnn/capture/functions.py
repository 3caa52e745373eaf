"""Single calls outside of programs that the library's differentiable functions compute.

A call keeps its node; its target becomes the function of `REDIRECTED` for it, with the numbers of the
quantization in front of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..redirected import REDIRECTED
from .modes import computed, nodes_in_their_modes
from .synchronized import compressed_norm
from .values import UnsupportedError, any_requires_grad, example, floating

SYNCHRONIZED_NORMS = dict.fromkeys(
    (torch.ops.actnn.sync_batch_norm, torch.ops.actnn.sync_batch_norm.default), compressed_norm
)


def replace_functions(
    graph: fx.Graph, quantization: Mapping[str, Any], is_exact: Callable[[fx.Node], bool]
) -> dict[fx.Node, str]:
    """Lets the library compute what it can of the graph's single calls, but for those that have to stay exact.

    Returns the calls that it computes now, and what each was a call of.
    """
    replaced = {}
    for node in nodes_in_their_modes(graph):
        function = _redirected(node)
        if function is None or is_exact(node) or not any_requires_grad(node.all_input_nodes):
            continue
        if _computes(function, quantization, node):
            replaced[node] = name_of_target(node)
            node.op, node.target, node.args = "call_function", function, (dict(quantization), *node.args)
    return replaced


def name_of_target(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _redirected(node: fx.Node) -> Callable | None:
    target = getattr(Tensor, node.target, None) if node.op == "call_method" else node.target
    try:
        return REDIRECTED.get(target) or SYNCHRONIZED_NORMS.get(target)
    except TypeError:  # it has no hash
        return None


def _computes(function: Callable, quantization: Mapping[str, Any], node: fx.Node) -> bool:
    """Whether the library's function takes these arguments, and its result is what the graph expects."""
    wanted = _results(example(node))
    if not any(tensor.requires_grad for tensor in wanted):
        return False
    try:
        for value in node.all_input_nodes:
            if isinstance(example(value), Tensor) and example(value).is_floating_point():
                floating(value)
        found = _results(computed(function, (dict(quantization), *node.args), node.kwargs))
    except (UnsupportedError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
    return [(one.dtype, one.shape) for one in found] == [(one.dtype, one.shape) for one in wanted]


def _results(value: Any) -> list[Tensor]:
    """One tensor, or those of a pool that returns indices, too; none for anything else."""
    values = value if isinstance(value, tuple) else (value,)
    return list(values) if all(isinstance(one, Tensor) for one in values) else []
