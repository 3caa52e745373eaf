"""Which nodes of a graph become blocks.

A block is a set of steps with one result that is used outside of it. It runs where its last step stood, all at once,
and changes nothing in place; so nothing that may write to a tensor may stand between its first and its last step.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from torch import fx, nn

from ..layers.base import QuantizedLayer
from .steps import Step, operands
from .tracing import is_hooked

Steps = dict[fx.Node, Step]
ENDS = ("activation", "add", "max_pool")
PURE_MODULES = ("torch", "_operator", "math", "builtins")


def find_blocks(graph: fx.Graph, steps: Steps, owner: nn.Module) -> list[list[fx.Node]]:
    """The nodes of each block, in order. `graph` and `steps` (of nodes of the graph) are put into functional form."""
    _make_functional(graph, steps)
    pieces = [
        piece
        for segment in _segments(graph, steps, owner)
        for region in _regions(segment)
        for piece in _pieces(region, steps)
        if _is_worth_it(piece, steps)
    ]
    order = {node: i for i, node in enumerate(graph.nodes)}
    return sorted(_undisturbed(pieces, steps, order), key=lambda piece: order[piece[-1]])


def inputs_of(piece: Sequence[fx.Node]) -> list[fx.Node]:
    """The values from outside, in the order of their first use."""
    return list(dict.fromkeys(value for node in piece for value in node.all_input_nodes if value not in piece))


def ranks_of(piece: Iterable[fx.Node], steps: Steps) -> frozenset[int]:
    """How many dimensions the values of a piece may have: no step changes their number."""
    return frozenset.intersection(*(steps[node].ranks for node in piece))


def _make_functional(graph: fx.Graph, steps: Steps) -> None:
    """Takes identities out, and lets whoever reads an overwritten value later read the result instead.

    A step that overwrites what others may see stays what it is, and is no step any more: a value from outside of the
    steps, or one that a call which is no step has had, and may have kept a view of.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        step = steps.get(node)
        if step is None:
            continue
        value = operands(node)[0]
        if step.op == "identity":
            node.replace_all_uses_with(value)
            graph.erase_node(node)
            del steps[node]
        elif step.in_place:
            before = [user for user in value.users if order[user] < order[node]]
            if value in steps and all(user in steps for user in before):
                value.replace_all_uses_with(node, lambda user, node=node: order[user] > order[node])
            else:
                del steps[node]


def _segments(graph: fx.Graph, steps: Steps, owner: nn.Module) -> list[list[fx.Node]]:
    """The steps between two nodes that may write to any tensor."""
    segments: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if node in steps:
            segments[-1].append(node)
        elif _may_write(node, owner):
            segments.append([])
    return segments


def _may_write(node: fx.Node, owner: nn.Module) -> bool:
    if node.op == "call_module":
        return not _is_pure(owner.get_submodule(node.target))
    if node.op not in ("call_function", "call_method"):
        return False
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", None) or "torch"
    writes = name.endswith("_") or (home == "_operator" and name in vars(operator) and name.startswith(("i", "set")))
    return writes or home.split(".")[0] not in PURE_MODULES


def _is_pure(module: nn.Module) -> bool:
    """Whether a module is one of torch's, or a compressed one, that leaves its input as it is."""
    is_known = isinstance(module, QuantizedLayer) or type(module).__module__.startswith("torch.nn.modules.")
    in_place = getattr(module, "inplace", False) or is_hooked(module) or "forward" in vars(module)
    return is_known and not in_place and not any(True for _ in module.children())


def _regions(segment: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The largest sets of steps that have one result."""
    regions, taken = [], set()
    for i in reversed(range(len(segment))):
        if segment[i] in taken:
            continue
        region = {segment[i]}
        for node in reversed(segment[:i]):
            if node not in taken and node.users and region.issuperset(node.users):
                region.add(node)
        taken |= region
        regions.append([node for node in segment if node in region])
    return regions


def _pieces(region: Sequence[fx.Node], steps: Steps) -> list[list[fx.Node]]:
    """A region, cut where nothing but one value is needed further on."""
    pieces: list[list[fx.Node]] = [[]]
    for i, node in enumerate(region):
        pieces[-1].append(node)
        if _may_end(pieces[-1], region[i + 1 :], steps) and _alive(region[: i + 1], region[i + 1 :]) == {node}:
            pieces.append([])
    return pieces


def _may_end(piece: Sequence[fx.Node], rest: Sequence[fx.Node], steps: Steps) -> bool:
    """Whether a piece may be a block that ends here.

    A block without a convolution, or behind it one without a batch norm, would keep a copy of its input that is a copy
    of the other's output; a pool keeps less if it comes with the activation that it pools; and a sum and its activation
    are one pass.
    """
    ops, rest_ops = ([part.op for node in nodes for part in steps[node].parts] for nodes in (piece, rest))
    return (
        ops[-1] in ENDS
        and "convolution" in ops
        and "batch_norm" in rest_ops
        and not (rest_ops[0] == "max_pool" and ops[-1] != "max_pool")
        and not (rest_ops[0] == "activation" and list(piece[-1].users) == [rest[0]])
    )


def _alive(done: Sequence[fx.Node], rest: Sequence[fx.Node]) -> set[fx.Node]:
    seen = {*done, *(value for node in done for value in node.all_input_nodes)}
    return seen & {value for node in rest for value in node.all_input_nodes}


def _is_worth_it(piece: Sequence[fx.Node], steps: Steps) -> bool:
    ops = [part.op for node in piece for part in steps[node].parts]
    return len(ops) > 1 and "batch_norm" in ops and bool(ranks_of(piece, steps))


def _undisturbed(pieces: list[list[fx.Node]], steps: Steps, order: dict[fx.Node, int]) -> list[list[fx.Node]]:
    """The pieces without those around a step that stays outside of blocks, and overwrites its input."""
    while True:
        inside = {node for piece in pieces for node in piece}
        writes = [order[node] for node, step in steps.items() if step.in_place and node not in inside]
        kept = [p for p in pieces if not any(order[p[0]] < place < order[p[-1]] for place in writes)]
        if len(kept) == len(pieces):
            return kept
        pieces = kept
