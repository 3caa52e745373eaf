"""What a node that stays outside of programs may write to, and what it may change for the nodes behind it."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from .steps import Step
from .values import example, source_of

PURE_MODULES = ("torch", "_operator", "math", "builtins", "actnn")
IN_PLACE_OPERATORS = frozenset({
    operator.iadd, operator.iand, operator.iconcat, operator.ifloordiv, operator.ilshift, operator.imatmul,
    operator.imod, operator.imul, operator.ior, operator.ipow, operator.irshift, operator.isub, operator.itruediv,
    operator.ixor, operator.setitem, operator.delitem,
})  # fmt: skip
ANYTHING = object()


def disturbs(node: fx.Node, steps: dict[fx.Node, Step], order: dict[fx.Node, int]) -> bool:
    """Whether no program may reach from before this node, which is no step, to behind it."""
    is_call = node.op in ("call_function", "call_method", "call_module")
    return is_call and (overwrites(node, steps, order) or _changes_a_mode(node))


def disturbs_between(nodes: Collection[fx.Node]) -> bool:
    """Whether the first of these nodes cannot be computed in the place of the last: between them something is written
    that one of them may have read, or another mode begins."""
    order = {node: i for i, node in enumerate(next(iter(nodes)).graph.nodes)}
    steps, last = dict.fromkeys(nodes), max(nodes, key=order.__getitem__)
    node = min(nodes, key=order.__getitem__)
    while node is not last:
        if node not in steps and disturbs(node, steps, order):
            return True
        node = node.next
    return False


def overwrites(node: fx.Node, steps: dict[fx.Node, Step], order: dict[fx.Node, int]) -> bool:
    """Whether a node that runs outside of programs may write to what a step has read or made before it."""
    if node in steps:
        return steps[node].in_place
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    return node.op == "call_module" or any(
        written is ANYTHING or not _is_private(written, node, steps, order) for written in values_written(node)
    )


def written_memory(graph: fx.Graph, behind: fx.Node | None = None) -> set[int]:
    """What memory nodes may write to, as `memory_of` names it: views share it. `behind`: those behind a node alone."""
    found = set()
    nodes = list(graph.nodes)
    for node in nodes if behind is None else nodes[nodes.index(behind) + 1 :]:
        if node.op in ("call_function", "call_method", "call_module"):
            written = [ANYTHING] if node.op == "call_module" else values_written(node)
            for value in written:
                found |= {memory_of(one) for one in ([value] if isinstance(value, fx.Node) else node.all_input_nodes)}
    return found - {None}


def memory_of(value: Any) -> int | None:
    """A name of the memory of a tensor's example; None for anything else."""
    found = example(value)
    return found.untyped_storage()._cdata if isinstance(found, Tensor) and found.layout == torch.strided else None


def _changes_a_mode(node: fx.Node) -> bool:
    """Autocast, the grad mode, and whatever else has no value for a result."""
    if node.target in (torch._C._log_api_usage_once, operator.setitem):
        return False
    value = example(node)
    return not isinstance(value, (Tensor, int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool, tuple, list))


def values_written(node: fx.Node) -> list[Any]:
    """What a call may write to, or `ANYTHING`."""
    if "out" in node.kwargs and node.kwargs["out"] is not None:
        return [ANYTHING]
    if node.op == "call_method":
        is_in_place = node.target.endswith("_") and not node.target.endswith("__")
        is_operator = node.target.startswith(("__i", "__set"))
        return [node.args[0]] if is_in_place or is_operator else []
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return [ANYTHING] if target._schema.is_mutable else []
    if isinstance(target, torch._ops.OpOverloadPacket):
        return [ANYTHING] if any(getattr(target, name)._schema.is_mutable for name in target.overloads()) else []
    name, home = getattr(target, "__name__", "_"), getattr(target, "__module__", None) or "torch"
    if home.split(".")[0] not in PURE_MODULES or home.startswith("torch.ops") or home.startswith("torch._higher"):
        return [ANYTHING]
    given = _arguments(target, node)
    if target in (F.batch_norm, F.instance_norm):
        statistics = [given.get("running_mean"), given.get("running_var")]
        return [value for value in statistics if isinstance(value, fx.Node)]
    if target is F.embedding:
        return [] if given.get("max_norm") is None else [ANYTHING]
    is_named_so = name.endswith("_") and home != "_operator"  # not and_, or_, not_
    is_in_place = is_named_so or target in IN_PLACE_OPERATORS or bool(given.get("inplace"))
    return [node.args[0] if node.args else ANYTHING] if is_in_place else []


def _arguments(target: Any, node: fx.Node) -> dict[str, Any]:
    signature = _signature(target)
    if signature is None:
        return dict(node.kwargs)
    try:
        return dict(signature.bind(*node.args, **node.kwargs).arguments)
    except TypeError:
        return dict(node.kwargs)


@lru_cache(maxsize=1024)
def _signature(target: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


def _is_private(value: Any, writer: fx.Node, steps: dict[fx.Node, Step], order: dict[fx.Node, int]) -> bool:
    """Whether no step before the writer can see what it writes to: memory that the graph has made for itself, such as
    the noise of stochastic depth, or a buffer of a module that no step reads."""
    memory = memory_of(value)
    if memory is None:
        return False
    sharing = [node for node in writer.graph.nodes if memory_of(node) == memory and order[node] < order[writer]]
    is_argument = [node.op == "placeholder" and "._buffers[" not in source_of(node) for node in sharing]
    if any(is_argument) or not steps.keys().isdisjoint(sharing):
        return False
    seen, waiting = set(), sharing
    while waiting:
        reached = waiting.pop()
        for user in reached.users:
            if order[user] >= order[writer] or user in seen:
                continue
            if user in steps:
                return False
            seen.add(user)
            waiting.append(user)
    return True
