"""What matchers of patterns ask of the calls in a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from .composites import Recorder
from .values import example

PRODUCTS = frozenset({operator.mul, torch.mul, torch.multiply, "mul", "multiply", "__mul__", "__rmul__"})
SUMS = frozenset({operator.add, torch.add, "add", "__add__", "__radd__"})
MATRIX_PRODUCTS = frozenset({torch.matmul, operator.matmul, "matmul", "__matmul__"})
VIEWS = frozenset({"view", "reshape", "transpose", "permute", "contiguous", "expand", "unsqueeze"})
IN_AUTOCASTS_TYPE: dict[object, tuple[str, ...]] = {
    F.scaled_dot_product_attention: ("query", "key", "value"),
    **dict.fromkeys(MATRIX_PRODUCTS, ("input", "other")),
    **dict.fromkeys((F.linear, torch.conv1d, torch.conv2d, torch.conv3d), ("input",)),
}
"""The names of the first arguments, which are neither masks nor parameters, by the function or the method's name."""
CASTS = frozenset({"to", "float", "half", "bfloat16", "type", "type_as"})


@dataclass(frozen=True)
class Match:
    """A function that is written out."""

    result: fx.Node
    """Its last call."""
    inputs: tuple[fx.Node, ...]
    make: Callable[[Recorder], fx.Node]
    """Adds the one call."""
    dtype: torch.dtype | None = None
    """The type of what is made; None: the same as before."""
    caller: fx.Node | None = None
    """The call whose module the one call is said to be in; None: the last one."""
    readers: Sequence[fx.Node] = ()
    """Views of the result, and the like, which have that type, too, then; in their order."""

    @property
    def inside(self) -> frozenset[fx.Node]:
        """The calls that go, with the last one."""
        found: set[fx.Node] = set()
        waiting = [self.result]
        while waiting:
            node = waiting.pop()
            if node not in found and node not in self.inputs:
                found.add(node)
                waiting += [value for value in node.all_input_nodes if _has_tensors(value)]
        return frozenset(found)

    @property
    def is_closed(self) -> bool:
        """Whether nobody else reads what is computed on the way."""
        inside = self.inside
        return all(inside.issuperset(node.users) for node in inside if node is not self.result)


def key_of(node: object) -> object:
    """The function or the method's name; None for whatever is no call, or one of an object without a hash."""
    is_call = isinstance(node, fx.Node) and node.op in ("call_function", "call_method")
    try:
        hash(node.target if is_call else None)
    except TypeError:
        return None
    return node.target if is_call else None


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_tensor(value: object) -> bool:
    return isinstance(value, fx.Node) and isinstance(example(value), Tensor)


def _has_tensors(value: fx.Node) -> bool:
    """Whether it is a tensor or several: sizes are computed for others, too."""
    return is_tensor(value) or isinstance(example(value), (tuple, list))


def operands(node: object, keys: Collection[object]) -> tuple[object, object] | None:
    """The two arguments of a call of one of these; None for any other."""
    return node.args if key_of(node) in keys and len(node.args) == 2 and not node.kwargs else None


def other_factor(product: fx.Node, factor: fx.Node) -> object | None:
    """What a product has besides this factor; None if it is no product of it and something else."""
    factors = operands(product, PRODUCTS)
    if factors is None or factor not in factors or factors[0] is factors[1]:
        return None
    return factors[1] if factors[0] is factor else factors[0]


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def cast_value(node: object) -> fx.Node | None:
    """What a call converts to another floating type, or to its own; None for any other."""
    if key_of(node) not in CASTS or not is_tensor(node.args[0]) or not example(node).is_floating_point():
        return None
    if node.target in ("to", "type"):
        wanted = [*node.args[1:], *node.kwargs.values()]
        is_of_type = len(wanted) == 1 and isinstance(wanted[0], torch.dtype)
    else:
        is_of_type = len(node.args) == (2 if node.target == "type_as" else 1) and not node.kwargs
    is_moved = example(node).device != example(node.args[0]).device
    return node.args[0] if is_of_type and not is_moved and example(node.args[0]).is_floating_point() else None


def with_casts_before(value: object) -> Iterator[fx.Node]:
    """A value, what it was converted from, and so on."""
    while is_tensor(value):
        yield value
        value = cast_value(value)


def with_casts_behind(value: fx.Node) -> Iterator[fx.Node]:
    """A value, what alone it is converted to, and so on."""
    node: fx.Node | None = value
    while node is not None:
        yield node
        user = only_user(node)
        node = user if user is not None and cast_value(user) is node else None


def best_result(candidates: list[fx.Node], input: fx.Node) -> fx.Node | None:
    """The last one of the input's type, or the first of a wider one; None without any."""
    before = example(input).dtype
    alike = [node for node in candidates if example(node).dtype == before]
    wider = [node for node in candidates if torch.promote_types(example(node).dtype, before) == example(node).dtype]
    return alike[-1] if alike else (wider[0] if wider else None)


def _is_dropout(node: fx.Node) -> bool:
    """One with a result of its own."""
    in_place = node.args[3] if len(node.args) > 3 else node.kwargs.get("inplace", False)
    return node.target is F.dropout and in_place is False


def readers_in(dtype: torch.dtype, node: fx.Node) -> list[fx.Node] | None:
    """The views and dropouts of a value, if behind them it is only read by products that autocast has in this type;
    None if anybody else reads it."""
    found: list[fx.Node] = []
    for user in node.users:
        is_alike = example(user).dtype == example(node).dtype if is_tensor(user) else False
        if (names := IN_AUTOCASTS_TYPE.get(key_of(user))) is not None:
            others = [*user.args[len(names) :], *(user.kwargs[name] for name in user.kwargs if name not in names)]
            if node in others or example(user).dtype != dtype:
                return None
        elif is_alike and (user.target in VIEWS or user.target is operator.getitem or _is_dropout(user)):
            behind = readers_in(dtype, user)
            if behind is None:
                return None
            found += [user, *behind]
        else:
            return None
    return found
