"""Computing with examples as the graph would: in its autocast regions, and with gradients off where it has them off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.utils import _pytree as pytree

from .values import example


def nodes_in_their_modes(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes of a graph in order, each while the modes are on that the graph has there."""
    entered: dict[fx.Node, Any] = {}
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            for node in list(graph.nodes):
                yield node
                if node.target is _enter_autocast:
                    entered[node] = _enter_autocast(*node.args)
                elif node.target is _exit_autocast:
                    _exit_autocast(entered.pop(node.args[0]))
                elif node.target is torch._C._set_grad_enabled:
                    torch._C._set_grad_enabled(*node.args)
        finally:
            while entered:
                _exit_autocast(entered.popitem()[1])


def computed(function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The example of what a call gives, from those of its arguments. No random numbers are used up."""
    values, named = fx.map_arg((args, kwargs), example)
    fakes = [value for value in pytree.tree_leaves((values, named)) if isinstance(value, FakeTensor)]
    if not fakes:
        return function(*values, **named)
    # As TorchDynamo does: functions in C++ would make symbolic sizes numbers.
    with torch.random.fork_rng(devices=[]), fakes[0].fake_mode, enable_python_dispatcher():
        return function(*values, **named)
