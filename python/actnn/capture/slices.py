"""Slices of one value, which are one split in a program's text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from torch import fx

from .steps import Step
from .values import example

Part = tuple[int, int]
"""Where it begins and ends along its dimension."""


class Slices:
    """Those of a piece of a graph, by what they are slices of, and the dimension."""

    def __init__(self, piece: Sequence[fx.Node], steps: Mapping[fx.Node, Step]) -> None:
        self._steps = steps
        self._of: dict[tuple[fx.Node, int], dict[fx.Node, Part]] = {}
        for node in piece:
            if steps[node].op == "slice":
                self._of.setdefault(self._key(node), {})[node] = (
                    steps[node].fields["begin"],
                    steps[node].fields["end"],
                )

    def with_others(self, node: fx.Node) -> tuple[dict[fx.Node, Part], list[Part]]:
        """The slices that are one split with this one, and all parts of the split: it alone, where some overlap."""
        found = self._of[self._key(node)]
        slices = {node: found[node]} if _overlap(found.values()) else found
        value, dimension = self._key(node)
        return slices, _parts(slices.values(), example(value).shape[dimension])

    def _key(self, node: fx.Node) -> tuple[fx.Node, int]:
        return self._steps[node].operands[0], self._steps[node].fields["dimension"]


def _overlap(parts: Collection[Part]) -> bool:
    full = sorted({(begin, end) for begin, end in parts if begin < end})
    return any(begin < end for (_, end), (begin, _) in pairwise(full))


def _parts(slices: Collection[Part], whole: int) -> list[Part]:
    """Slices that do not overlap, and what they leave of a dimension; empty ones come last."""
    empty = {part for part in slices if part[0] == part[1]}
    bounds = {0, whole, *(bound for part in set(slices) - empty for bound in part)}
    return [*pairwise(sorted(bounds)), *sorted(empty)]
