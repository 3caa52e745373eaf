"""Tensors that are made to be like another one, made without it.

`x.new_empty(...)` asks for nothing but the dtype and the device of `x`; as a reader of it, it would end every program
that has `x` inside. Noise for stochastic depth is made so.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .values import example

FACTORIES = {"new_empty": torch.empty, "new_zeros": torch.zeros, "new_ones": torch.ones, "new_full": torch.full}


def make_without_models(graph: fx.Graph) -> None:
    """Lets factories of tensors call the function of torch's instead."""
    for node in graph.nodes:
        if node.op != "call_method" or node.target not in FACTORIES:
            continue
        like, result = (example(value) for value in (node.args[0], node))
        if not isinstance(like, Tensor) or not isinstance(result, Tensor) or result.layout != torch.strided:
            continue
        node.op, node.target, node.args = "call_function", FACTORIES[node.target], node.args[1:]
        node.kwargs = dict(node.kwargs) | {"dtype": result.dtype, "device": result.device}
