"""The bits of single values, block by block, and the graphs that follow when they change."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from typing import Protocol

ValueBits = Mapping[int, int]
"""Bits by the number of a value in its program."""

_numbers = itertools.count()


class Planned(Protocol):
    """A graph with programs in it."""

    def plan_again(self) -> bool:
        """Takes over the bits as they are now. False if the graph must be captured anew for that."""


class BlockBits:
    """What one converted model's blocks have instead of their options; a copy of the model has its own.

    A block is known by its name in reports and by what its steps are: graphs of other batch sizes share their bits, and
    a block that has become another one has none.
    """

    def __init__(self, of_blocks: Mapping[str, ValueBits] | None = None) -> None:
        self.prefix = f"{next(_numbers)}/"
        """Of the names that the library knows the model's blocks by: no other model's begin with it."""
        self.of_blocks = dict(of_blocks or {})
        self._graphs: weakref.WeakSet[Planned] = weakref.WeakSet()

    def add(self, graph: Planned) -> None:
        """The graph, which has been lowered with the bits of now, follows from now on, as long as somebody has it."""
        self._graphs.add(graph)

    def forget_graphs(self) -> None:
        """They will be captured anew."""
        self._graphs.clear()

    def use(self, of_blocks: Mapping[str, ValueBits]) -> bool:
        """Changes the bits. False if graphs must be captured anew for that."""
        if self.of_blocks == of_blocks:
            return True
        self.of_blocks = dict(of_blocks)
        return all(graph.plan_again() for graph in list(self._graphs))

    def __reduce__(self) -> tuple:
        return BlockBits, (self.of_blocks,)
