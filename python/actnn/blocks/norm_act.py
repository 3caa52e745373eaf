"""Batch norms with a forward of their own that is torch's, and an activation behind it: timm's `BatchNormAct2d`.

Their forward is read as a graph, in training and in evaluation. It may check the number of dimensions; it must count
the batch, call `F.batch_norm` with the module's own weights, statistics and numbers, and pass the result on from step
to step. A module whose forward does anything else stays what it is.
"""

import inspect
import operator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from .tracing import UntraceableError, traces

CONFIG = "_block_config"
"""The attribute of such a module that `convert` found: the configuration of the blocks that it may be part of."""


def is_norm_with_more(module: nn.Module) -> bool:
    """Whether blocks may compute the module: a subclass of `nn.BatchNorm2d` with such a forward."""
    kind = type(module)
    own_forward = issubclass(kind, nn.BatchNorm2d) and kind.forward is not nn.BatchNorm2d.forward
    is_called_as_usual = kind.__call__ is nn.Module.__call__ and "forward" not in vars(module)
    return own_forward and is_called_as_usual and nodes_behind(module) is not None


def nodes_behind(module: nn.Module) -> list[fx.Node] | None:
    """The calls behind the batch norm, in order, each of the result of the one before; None for any other forward."""
    try:
        training, evaluation = traces(module, (Tensor,))
    except UntraceableError:
        return None
    behind = _behind(training.graph, module, True), _behind(evaluation.graph, module, False)
    if None in behind or [_call(node) for node in behind[0]] != [_call(node) for node in behind[1]]:
        return None
    return behind[0]


def _behind(graph: fx.Graph, module: nn.Module, is_training: bool) -> list[fx.Node] | None:
    nodes = list(graph.nodes)
    input, output = nodes[0], nodes[-1]
    norm = next((node for node in nodes if node.target is F.batch_norm), None)
    if norm is None or _arguments(norm) != _arguments_of_torch(module, input, is_training):
        return None
    chain, last = [], norm
    while list(last.users) != [output]:
        if len(last.users) != 1:
            return None
        (node,) = last.users
        if node.all_input_nodes != [last]:
            return None
        chain.append(node)
        last = node
    counts = is_training and module.track_running_stats and module._buffers["num_batches_tracked"] is not None
    others = [n for n in nodes if n.op != "get_attr" and n not in (input, norm, *chain, output)]
    counters = [node for node in others if _counts_a_batch(node)]
    rest = [node for node in others if node not in counters and not _checks_dimensions(node, input)]
    return chain if len(counters) == counts and not rest and output.args == (last,) else None


def _arguments(norm: fx.Node) -> dict:
    bound = inspect.signature(F.batch_norm).bind(*norm.args, **norm.kwargs)
    bound.apply_defaults()
    return {
        name: value.target if isinstance(value, fx.Node) and value.op == "get_attr" else value
        for name, value in bound.arguments.items()
    }


def _arguments_of_torch(module: nn.Module, input: fx.Node, is_training: bool) -> dict:
    """What `torch.nn.BatchNorm2d` calls `F.batch_norm` with, with the names of tensors."""
    tensors = {**module._parameters, **module._buffers}
    names = {name: None if tensors.get(name) is None else name for name in ("weight", "bias")}
    takes_statistics = not is_training or module.track_running_stats
    for name in ("running_mean", "running_var"):
        names[name] = name if takes_statistics and tensors.get(name) is not None else None
    uses_batch = is_training or (tensors.get("running_mean") is None and tensors.get("running_var") is None)
    return {"input": input, **names, "training": uses_batch, "momentum": module.momentum, "eps": module.eps}


def _counts_a_batch(node: fx.Node) -> bool:
    is_one_more = node.op == "call_method" and node.target == "add_" and node.args[1:] == (1,) and not node.kwargs
    return is_one_more and node.args[0].op == "get_attr" and node.args[0].target == "num_batches_tracked"


def _checks_dimensions(node: fx.Node, input: fx.Node) -> bool:
    """Whether a node is part of `torch._assert(input.ndim == 4, ...)`, of which nothing else depends."""
    if node.target is torch._assert:
        return isinstance(node.args[0], fx.Node) and node.args[0].target is operator.eq and not node.users
    is_number = (node.target is getattr and node.args == (input, "ndim")) or (node.target, node.args) == (
        "dim",
        (input,),
    )
    is_comparison = node.target is operator.eq and len(node.all_input_nodes) == 1 and node.args[1:] == (4,)
    return (is_number or is_comparison) and all(_checks_dimensions(user, input) for user in node.users)


def _call(node: fx.Node) -> tuple:
    """What a node calls, with everything but the values."""
    arguments = fx.map_arg((node.args, node.kwargs), lambda value: "value")
    return node.op, node.target, str(arguments)
