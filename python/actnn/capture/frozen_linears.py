"""Linear layers whose frozen weight has 4 or 8 bits, and is known to their own `autograd.Function` alone.

Programs have them as linear steps. Such a function is captured with its forward and its backward, which says what it
is: it keeps nothing of its input, and the gradient that it gives is a product with a matrix that does not want one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from .frozen_weights import FrozenProduct, frozen_linear, weight_of
from .modes import computed
from .pattern_nodes import (
    CASTS,
    MATRIX_PRODUCTS,
    PRODUCTS,
    VIEWS,
    is_tensor,
    key_of,
    only_user,
    operands,
    with_casts_before,
    with_casts_behind,
)  # fmt: skip
from .steps import Step, step_reader
from .values import PATH, example, requires_grad
from .writes import memory_of, values_written, written_memory

APPLY = torch.ops.higher_order.autograd_function_apply
FROZEN_PRODUCTS = MATRIX_PRODUCTS | {torch.mm, "mm"}
RANDOM = ("rand", "bernoulli", "normal", "uniform", "dropout", "multinomial", "poisson", "exponential", "geometric",
          "cauchy")  # fmt: skip
"""In the names of functions that draw numbers."""
LINEAR_IN_FIRST = VIEWS | CASTS | {"flatten", "unflatten", torch.flatten, torch.reshape}


@step_reader(frozen_linear)
def _frozen_linear(x, weight):
    return Step("linear", (x,), {}, {"weight": weight})


def find_frozen_linears(graph: fx.Graph, is_exact: Callable[[fx.Node], bool]) -> None:
    """Writes each as `frozen_linear`, with the conversions around it: its weight has the type of what it gives."""
    _rebind_at_end(graph)
    memory = written_memory(graph)
    for node in graph.find_nodes(op="call_function", target=APPLY):
        if is_exact(node):
            continue
        try:
            product = _product(node)
        except (AttributeError, IndexError, TypeError, ValueError):  # bodies of another kind than is looked for
            continue
        if product is not None:
            _replace(node, product, memory)


def _rebind_at_end(graph: fx.Graph) -> None:
    """Moves `weight.data = ...` behind all else, where nobody else reads that weight: what it stands between, with its
    modes, may be a program then."""
    output = next(iter(graph.find_nodes(op="output")))
    for node in graph.find_nodes(op="call_function", target=Tensor.set_):
        before, after = node.prev, node.next
        is_around = _sets_grad(before, False) and _sets_grad(after, True)
        users = set(node.args[0].users) - {node}
        users |= {reader for user in node.users for reader in user.users}
        if not is_around or node.args[0].op != "placeholder" or any(map(_reads(node.args[0]), users)):
            continue
        for one in (before, node, after):
            output.prepend(one)
        for user in list(node.users):
            output.prepend(user)


def _sets_grad(node: fx.Node, mode: bool) -> bool:
    return node.target is torch._C._set_grad_enabled and node.args == (mode,)


def _reads(value: fx.Node) -> Callable[[fx.Node], bool]:
    """Whether a node reads it, and does not only hand it on to a function that does not."""

    def reads(user: fx.Node) -> bool:
        if user.target is not APPLY:
            return True
        places, given = _placeholders(_module_of(user.args[0]).graph), user.args[2:]
        if len(places) != len(given):
            return True
        return any(place.users for place, argument in zip(places, given, strict=True) if argument is value)

    return reads


def _module_of(body: fx.Node) -> fx.GraphModule:
    return getattr(body.graph.owning_module, body.target)


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return graph.find_nodes(op="placeholder")


def _product(node: fx.Node) -> FrozenProduct | None:
    """None if the function is not such a linear layer, as far as one can see."""
    forward, backward = map(_module_of, node.args[:2])
    trained = [place for place, argument in enumerate(node.args[2:]) if requires_grad(argument)]
    result = only_user(node)
    if len(trained) != 1 or result is None or result.target is not operator.getitem or result.args[1] != 0:
        return None
    place = trained[0]
    x = _placeholders(forward.graph)[place]
    of_x = _computed_of(x)
    _, kept = _results(forward.graph)
    if not of_x.isdisjoint(kept) or not _writes_to_its_own(forward.graph, of_x) or _draws(forward.graph):
        return None
    grad = _placeholders(backward.graph)[0]
    gradient = _results(backward.graph)[place]
    sizes = _sizes(gradient, grad)
    given = example(node.args[2 + place])
    if sizes is None or sizes != [example(result).shape[-1], given.shape[-1]] or example(result).dim() != given.dim():
        return None
    return FrozenProduct(
        apply=APPLY,
        options=dict(node.kwargs),
        forward=forward,
        backward=backward,
        kept=_without(forward, of_x, kept),
        sizes=tuple(sizes),
        place=place,
        input_dtype=given.dtype,
        result_dtype=example(result).dtype,
    )


def _results(graph: fx.Graph) -> Any:
    return next(iter(graph.find_nodes(op="output"))).args[0]


def _computed_of(value: fx.Node) -> set[fx.Node]:
    """With itself, and without its sizes."""
    found, waiting = set(), [value]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [user for user in node.users if user.op != "output" and not _is_size(user)]
    return found


def _is_size(node: fx.Node) -> bool:
    return node.target in ("size", "dim", "numel") or (node.target is getattr and node.args[1] in ("shape", "ndim"))


def _writes_to_its_own(graph: fx.Graph, of_x: Collection[fx.Node]) -> bool:
    """Whether what is written in a forward is no argument's memory, and x goes nowhere but into results."""
    arguments = {memory_of(argument) for argument in _placeholders(graph)}
    for node in graph.nodes:
        if node.op == "call_module":
            return False
        for value in values_written(node) if node.op in ("call_function", "call_method") else []:
            if not isinstance(value, fx.Node) or memory_of(value) in arguments or (node in of_x) != (value in of_x):
                return False
    return True


def _draws(graph: fx.Graph) -> bool:
    """Whether there are random numbers: what is kept is computed again, and must be the same."""
    names = [getattr(node.target, "__name__", str(node.target)) for node in graph.nodes if node.op.startswith("call_")]
    return any(word in name for name in names for word in RANDOM)


def _sizes(gradient: Any, grad: fx.Node) -> list[int] | None:
    """Of the matrix W of a gradient that is grad W, with conversions, views and factors between; None for any other."""
    of_grad, sizes = _computed_of(grad), None
    while gradient is not grad:
        factors = operands(gradient, FROZEN_PRODUCTS | PRODUCTS | {F.linear})
        if factors is None:
            if key_of(gradient) not in LINEAR_IN_FIRST or gradient.args[0] not in of_grad:
                return None
            gradient = gradient.args[0]
            continue
        inside = [factor in of_grad for factor in factors]
        if key_of(gradient) not in PRODUCTS:
            if sizes is not None or inside != [True, False] or not is_tensor(factors[1]):
                return None
            sizes = list(example(factors[1]).shape)
            sizes = sizes[::-1] if key_of(gradient) is F.linear else sizes
        if sum(inside) != 1:
            return None
        gradient = factors[inside.index(True)]
    return sizes if sizes is not None and [type(size) for size in sizes] == [int, int] else None


def _without(forward: fx.GraphModule, of_x: Collection[fx.Node], kept: Any) -> fx.GraphModule:
    """The part of a forward that computes what is kept, of the same arguments."""
    graph, copies = fx.Graph(), {}
    for node in forward.graph.nodes:
        is_mode = node.target is torch._C._set_grad_enabled
        if node.op != "output" and not is_mode and (node.op == "placeholder" or node not in of_x):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.map_arg(tuple(kept), copies.__getitem__))
    return fx.GraphModule(forward, graph)


def _replace(node: fx.Node, product: FrozenProduct, memory: Collection[int]) -> None:
    graph, arguments = node.graph, list(node.args[2:])
    before = list(with_casts_before(arguments.pop(product.place)))
    behind = list(with_casts_behind(only_user(node)))
    clone = only_user(behind[-1])  # PEFT makes one of what bitsandbytes gives
    if key_of(clone) == "clone" and not clone.kwargs and memory_of(clone) not in memory:
        behind.append(clone)
    x, result = before.pop(), behind[-1]
    found = example(result)
    with graph.inserting_before(node):
        weight = graph.call_function(weight_of(product, found.dtype, found.device), tuple(arguments))
    with graph.inserting_before(result):
        made = graph.call_function(frozen_linear, (x, weight))
    weight.meta["example_value"] = computed(
        lambda like: torch.empty(product.sizes, dtype=like.dtype, device=like.device), (found,), {}
    )
    made.meta["example_value"] = found
    for key in ("nn_module_stack", "stack_trace", "source_fn_stack", PATH):
        if key in node.meta:
            made.meta[key] = weight.meta[key] = node.meta[key]
    result.replace_all_uses_with(made)
    for one in (*reversed(behind), node, *before):
        if not one.users:
            graph.erase_node(one)
