"""Which nodes of a graph become programs.

A program is a set of steps that runs where its last one stood, all at once, and changes nothing in place. So nothing
may stand between its first and its last step that may write to what it reads, or that changes how autograd and
autocast treat what follows; and nobody may need one of its results before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import fx

from .steps import LAYERS, NORMS, Step
from .values import any_requires_grad, elements, path_of, requires_grad
from .writes import disturbs

Steps = dict[fx.Node, Step]
Reasons = dict[fx.Node, str]
ENDS = frozenset({"activation", "add", "multiply", "max_pool", "avg_pool", "upsample"})
WITH_WEIGHTS = frozenset({"convolution", "linear", "attention"})
SMOOTH = frozenset({"silu", "hardswish", "gelu", "gelu_tanh"})
"""Activations whose backward needs more than their output: the weights behind compute that again."""
SPAN = 12
"""Layers within which a value must be read for the last time to count as a shortcut: a program does not end inside of
one. What is read over more layers (the skips of a U-Net, the features of a dense block, a bias or a mask of all
attentions) is a result of one program more, and an input of others."""
ROW_NORMS = frozenset({"layer_norm", "rms_norm"})
SUMS = 2
"""Sums behind weights that a program may have if one is inside of a layer: a transformer's has two."""
LONE = 8
"""Layers that a program may have before it ends although no norm follows."""


def find_programs(graph: fx.Graph, steps: Steps, reasons: Reasons, root: str) -> list[list[fx.Node]]:
    """The nodes of each program, in order; `root`: the local that the captured module is. The graph is put into
    functional form, and so are its steps; those that cannot be are taken out of `steps`, and `reasons` says why."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    _leave_computed_parameters(steps, reasons)
    _make_functional(steps, reasons, order)
    found, inner = [], _inner_sums(steps, root)
    for segment in _segments(graph, steps, order):
        for region in _regions(segment, steps):
            for piece in _pieces(region, steps, inner):
                piece = _trimmed(piece, steps)
                if reason := _why_not(piece, steps, order):
                    reasons.update((node, reason) for node in piece if not steps[node].is_view)
                else:
                    found.append(piece)
    return sorted(_undisturbed(found, steps, reasons, order), key=lambda piece: order[piece[-1]])


def inputs_of(piece: Sequence[fx.Node], steps: Steps) -> list[fx.Node]:
    """The values from outside, in the order of their first use."""
    inside = set(piece)
    return list(dict.fromkeys(v for node in piece for v in steps[node].operands if v not in inside))


def results_of(piece: Sequence[fx.Node]) -> list[fx.Node]:
    """The values that something outside needs."""
    inside = set(piece)
    return [node for node in piece if any(user not in inside for user in node.users)]


def _leave_computed_parameters(steps: Steps, reasons: Reasons) -> None:
    """What computes a weight (a parametrization, a tied transposed embedding) runs before the program, which saves the
    weight; so what needs no gradient is not in one with it."""
    for node, step in list(steps.items()):
        if not requires_grad(node) and any(tensor.op not in ("placeholder", "get_attr") for tensor in step.tensors):
            del steps[node]
            reasons[node] = "nothing in it requires a gradient"
    for tensor in [tensor for step in steps.values() for tensor in [*step.tensors, *step.integers()]]:
        if steps.pop(tensor, None):
            reasons[tensor] = "it computes a weight"


def _make_functional(steps: Steps, reasons: Reasons, order: dict[fx.Node, int]) -> None:
    """Lets whoever reads an overwritten value later read the result instead.

    A step that overwrites what others may see stays what it is, and is no step any more: a value from outside of the
    steps, one that has views which are read later, or one that a call which is no step has had, and may have kept a
    view of.
    """
    for node in [node for node, step in steps.items() if step.in_place]:
        value = steps[node].operands[0]
        shared = _sharing_memory(value, steps)
        readers = {user for one in shared for user in one.users if user is not node}
        later = {user for one in shared - {value} for user in one.users if order[user] > order[node]}
        earlier = {user for user in readers if order[user] < order[node]}
        if later or not (shared <= steps.keys() and earlier <= steps.keys()):
            del steps[node]
            reasons[node] = "it overwrites a value that others see"
        else:
            value.replace_all_uses_with(node, lambda user, node=node: order[user] > order[node])
            for user in list(node.users):
                if user in steps:
                    operands = tuple(node if one is value else one for one in steps[user].operands)
                    steps[user] = replace(steps[user], operands=operands)


def _sharing_memory(value: fx.Node, steps: Steps) -> set[fx.Node]:
    """The values whose memory may be that of `value`, by steps alone."""
    shared, waiting = set(), [value]
    while waiting:
        one = waiting.pop()
        if one in shared:
            continue
        shared.add(one)
        step = steps.get(one)
        if step is not None and (step.is_view or step.in_place):
            waiting.append(step.operands[0])
        for user in one.users:
            if user in steps and steps[user].is_view and one in steps[user].operands:
                waiting.append(user)
    return shared


def _segments(graph: fx.Graph, steps: Steps, order: dict[fx.Node, int]) -> Iterator[list[fx.Node]]:
    """The steps between two nodes that may disturb a program around them."""
    segment: list[fx.Node] = []
    for node in graph.nodes:
        if node in steps:
            segment.append(node)
        elif segment and disturbs(node, steps, order):
            yield segment
            segment = []
    if segment:
        yield segment


def _regions(segment: Sequence[fx.Node], steps: Steps) -> list[list[fx.Node]]:
    """The largest sets of steps that have one result, besides those that nobody but the graph's caller needs."""
    region_of: dict[fx.Node, fx.Node] = {}
    for node in reversed(segment):
        regions = {region_of.get(user) for user in _readers(node, steps)}
        joins = len(regions) == 1 and None not in regions
        region_of[node] = regions.pop() if joins else node
    for node in segment:  # an output of a split is a value of the program that splits
        if steps[node].op == "output" and region_of[node] is not region_of.get(steps[node].operands[0]):
            region_of.pop(node)
    regions: dict[fx.Node, list[fx.Node]] = {}
    for node in segment:
        if node in region_of:
            regions.setdefault(region_of[node], []).append(node)
    return list(regions.values())


def _inner_sums(steps: Steps, root: str) -> frozenset[fx.Node]:
    """The sums which the module that adds normalizes, itself or by a norm of its own, as a transformer's layer does
    between attention and MLP: both are one pass."""

    def is_inner(added: fx.Node) -> bool:
        norms = [path_of(user, root) for user in added.users if user in steps and steps[user].op in ROW_NORMS]
        adds = path_of(added, root)
        return any(adds in (path, path.rpartition(".")[0]) for path in norms)

    return frozenset(node for node, step in steps.items() if step.op == "add" and is_inner(node))


def _readers(node: fx.Node, steps: Steps) -> list[fx.Node]:
    """Those who read a value before the graph ends. What it returns besides, as a cache of keys and values, may be a
    result of the program that reads it; views and what has no gradient stay what they are for the caller, too."""
    inside = [user for user in node.users if user.op != "output"]
    is_own = not steps[node].is_view and requires_grad(node)
    return inside if inside and is_own else list(node.users)


def _pieces(region: Sequence[fx.Node], steps: Steps, inner: frozenset[fx.Node]) -> list[list[fx.Node]]:
    """A region, cut where nothing but one value of a piece, and what is read much later, is needed further on."""
    place = {node: i for i, node in enumerate(region)}
    layers = [0]
    for node in region:
        layers.append(layers[-1] + (steps[node].op in LAYERS))
    first, last = dict(place), dict.fromkeys(region, -1)
    for i, node in enumerate(region):
        for value in steps[node].operands:
            first.setdefault(value, i)
            last[value] = i
    norms_behind = _counted_behind(region, steps, NORMS)

    def is_shortcut(value: fx.Node) -> bool:
        return layers[last[value] + 1] - layers[first[value]] <= SPAN

    pieces: list[list[fx.Node]] = [[]]
    begin, needed_until = 0, -1
    for i, node in enumerate(region):
        pieces[-1].append(node)
        for value in steps[node].operands:
            if place.get(value, -1) < begin and is_shortcut(value):
                needed_until = max(needed_until, last[value])
        is_alone = i + 1 < len(region) and i >= needed_until
        if is_alone and _may_end(pieces[-1], region[i + 1], steps, norms_behind[i + 1], inner):
            pieces.append([])
            begin, needed_until = i + 1, -1
        elif is_shortcut(node):
            needed_until = max(needed_until, last[node])
    return pieces


def _sums(piece: Sequence[fx.Node], steps: Steps) -> int:
    """How many sums there are behind the first weights."""
    ops = [steps[node].op for node in piece]
    first = next((i for i, op in enumerate(ops) if op in WITH_WEIGHTS), len(ops))
    return ops[first:].count("add")


def _counted_behind(region: Sequence[fx.Node], steps: Steps, ops: frozenset[str]) -> list[int]:
    counts = [0]
    for node in reversed(region):
        counts.append(counts[-1] + (steps[node].op in ops))
    return counts[::-1]


def _may_end(
    piece: Sequence[fx.Node], following: fx.Node, steps: Steps, norms_behind: int, inner: frozenset[fx.Node]
) -> bool:
    """Whether a piece may be a program that ends here.

    A program without weights, or behind it one without a norm, would keep a copy of its input that is a copy of the
    other's output; a pool keeps less if it comes with the activation that it pools; and a sum and its activation are
    one pass. Where norm and activation stand in front of the weights, they go with these. A gate goes with what it
    gates, and with the weights behind, as far as their norm.
    """
    ops = [steps[node].op for node in piece]
    next_op = steps[following].op
    is_end = (
        ops[-1] in ENDS
        or (next_op == "concatenate" and not NORMS.isdisjoint(ops))
        or (ops[-1] in NORMS and next_op in WITH_WEIGHTS and any(_is_gated(node, steps) for node in piece))
    )
    layers = sum(op in LAYERS for op in ops)
    return (
        is_end
        and not WITH_WEIGHTS.isdisjoint(ops)
        and (norms_behind > 0 or layers >= LONE)
        and not (next_op in ("max_pool", "avg_pool") and ops[-1] not in ("max_pool", "avg_pool"))
        and not (next_op in ("activation", "dropout") and list(piece[-1].users) == [following])
        and not (steps[piece[-1]].fields.get("kind") in SMOOTH and layers < LONE and next_op in WITH_WEIGHTS)
        and not _is_in_front_of_weights(piece, steps)
        and not (piece[-1] in inner and next_op in ROW_NORMS and _sums(piece, steps) < SUMS)
        and not (_is_gate_ahead(piece[-1], steps) or (_is_gated(piece[-1], steps) and next_op in WITH_WEIGHTS))
    )


def _is_gate_ahead(value: fx.Node, steps: Steps) -> bool:
    """Whether a value is gated by what is computed of itself, as squeeze and excitation does."""
    return len(value.users) > 1 and any(_is_gated(user, steps) for user in value.users)


def _is_gated(product: fx.Node, steps: Steps) -> bool:
    """Whether a node multiplies a value by a smaller one: backward computes the product again, from both."""
    step = steps.get(product)
    if step is None or step.op != "multiply":
        return False
    sizes = [elements(operand) for operand in step.operands]
    return min(sizes) < max(sizes)


def _is_in_front_of_weights(piece: Sequence[fx.Node], steps: Steps) -> bool:
    """Whether a piece ends with the activation of a norm that does not normalize what weights have computed."""
    if steps[piece[-1]].op != "activation":
        return False
    norm = steps.get(steps[piece[-1]].operands[0])
    if norm is None or norm.op not in NORMS:
        return False
    made_by = steps.get(norm.operands[0])
    return made_by is None or made_by.op not in WITH_WEIGHTS


def _trimmed(piece: list[fx.Node], steps: Steps) -> list[fx.Node]:
    """Without the views at its end, whose strides the nodes behind may depend on, and without inputs under another
    name that others need, too: they run as they are."""
    end = len(piece)
    while end and steps[piece[end - 1]].is_view:
        end -= 1
    inside = set(piece[:end])
    for node in piece[:end]:
        is_input = steps[node].op == "identity" and steps[node].operands[0] not in inside
        if is_input and any(user not in inside for user in node.users):
            inside.remove(node)
    return [node for node in piece[:end] if node in inside]


def _why_not(piece: Sequence[fx.Node], steps: Steps, order: dict[fx.Node, int]) -> str:
    """Why a piece is no program; empty if it is one."""
    ops = [steps[node].op for node in piece if not steps[node].is_view]
    if not ops:
        return "it is a view"
    if len(ops) < 2 or LAYERS.isdisjoint(ops):
        return "a program of it would keep no less"
    if not results_of(piece):
        return "nobody needs its result"
    if not any_requires_grad(results_of(piece)):
        return "nothing in it requires a gradient"
    end, inside = order[piece[-1]], set(piece)
    if any(order[user] < end for node in piece for user in node.users if user not in inside):
        return "its result is needed before it could be there"
    return ""


def _undisturbed(
    pieces: list[list[fx.Node]], steps: Steps, reasons: Reasons, order: dict[fx.Node, int]
) -> list[list[fx.Node]]:
    """The pieces without those around a step that stays outside of programs, and overwrites its input."""
    while True:
        inside = {node for piece in pieces for node in piece}
        writes = [order[node] for node, step in steps.items() if step.in_place and node not in inside]
        kept = [p for p in pieces if not any(order[p[0]] < place < order[p[-1]] for place in writes)]
        if len(kept) == len(pieces):
            return kept
        for piece in pieces:
            if piece not in kept:
                reasons.update((node, "a value is overwritten in the middle of it") for node in piece)
        pieces = kept
