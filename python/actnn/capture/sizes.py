"""Symbolic sizes of a graph, read from its inputs instead of from the values inside.

TorchDynamo gives a graph one integer for each size that varies. What computes with sizes (`x.size(0)`, `2 * s`) stands
between the steps, and would end every program whose values it asks; written in the graph's own integers it does not.
"""

from __future__ import annotations

import operator

import sympy
import torch
from torch import fx
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from .values import example


class Sizes:
    """The integers of a graph, by what they are in symbols."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.symbols: dict[sympy.Symbol, fx.Node] = {}
        self.made: dict[sympy.Expr, fx.Node] = {}
        self.last = None
        for node in graph.nodes:
            if node.op != "placeholder":
                break
            self.last = node
            value = example(node)
            if isinstance(value, torch.SymInt) and value.node.expr.is_Symbol:
                self.symbols.setdefault(value.node.expr, node)

    def node_of(self, size: torch.SymInt) -> fx.Node | None:
        """A node with this size, made at the beginning of the graph if need be; None if the inputs do not tell it."""
        found = self._node(size.node.expr)
        if isinstance(found, fx.Node):
            found.meta.setdefault("example_value", size)
            return found
        return None

    def _node(self, expression: sympy.Expr) -> fx.Node | int | None:
        if expression.is_Integer:
            return int(expression)
        if expression in self.symbols:
            return self.symbols[expression]
        if expression not in self.made:
            made = self._made(expression)
            if made is None:
                return None
            self.made[expression] = made
        return self.made[expression]

    def _made(self, expression: sympy.Expr) -> fx.Node | int | None:
        function = {
            sympy.Add: operator.add, sympy.Mul: operator.mul, FloorDiv: operator.floordiv, Mod: operator.mod,
            PythonMod: operator.mod,
        }.get(type(expression))  # fmt: skip
        if isinstance(expression, sympy.Pow) and expression.exp.is_Integer and int(expression.exp) > 0:
            function = operator.pow
        arguments = [self._node(argument) for argument in expression.args] if function else [None]
        if None in arguments:
            return None
        result = arguments[0]
        for argument in arguments[1:]:
            result = self._call(function, result, argument)
        return result

    def _call(self, function, left: fx.Node | int, right: fx.Node | int) -> fx.Node | int:
        if isinstance(left, int) and isinstance(right, int):
            return function(left, right)
        with self.graph.inserting_after(self.last):
            self.last = self.graph.call_function(function, (left, right))
        values = [example(value) for value in (left, right)]
        self.last.meta["example_value"] = function(*values)
        return self.last


def read_from_inputs(graph: fx.Graph) -> Sizes:
    """Lets readers of sizes read them from the graph's inputs, where these tell them, and takes out what nobody reads
    any more."""
    sizes = Sizes(graph)
    for node in list(graph.nodes):
        value = example(node)
        if node.op in ("call_function", "call_method") and isinstance(value, torch.SymInt) and node.users:
            found = sizes.node_of(value)
            if found is not None and found is not node:
                node.replace_all_uses_with(found)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "call_method") and not node.users and _is_size(node):
            graph.erase_node(node)
    return sizes


def _is_size(node: fx.Node) -> bool:
    value = example(node)
    if node.target in ("size", "dim", "numel", "stride"):
        return True
    is_attribute = node.target is getattr and node.args[1:] in (("shape",), ("ndim",))
    return is_attribute or (isinstance(value, torch.SymInt) and not _acts(node))


def _acts(node: fx.Node) -> bool:
    return node.op == "call_method" or getattr(node.target, "__module__", "") not in ("_operator", "math")
