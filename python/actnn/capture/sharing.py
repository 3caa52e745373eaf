"""Copies that several programs read.

In the order of the graph, the first program that keeps a copy of a value, and is one that makes or reads it, returns
the copy; all later ones that would keep a copy of the same value are given that one instead. Any copy of 2 bits or
more will do: whoever asks for more bits than the first would pay for a second copy, which is more bytes than one of
either kind. Where a value may have been written to since, its copy is one of what it was, and the next program that
keeps one makes it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import fx

from .programs import Program
from .values import tensor

LEAST_BITS = 2


def share_copies(
    programs: Sequence[Program], describe: Callable[[str], str], order: Mapping[fx.Node, int], writes: Sequence[int]
) -> None:
    """Gives programs their plans, their exports and their imports.

    Args:
        programs: in the order in which they run, each in the place of its last node.
        describe: what the library says of a program's text.
        order: the place of each node.
        writes: the places of nodes outside of programs that may write to values of theirs.
    """
    owners: dict[fx.Node, Program] = {}
    last_write = -1
    for program in programs:
        program.imports, program.exports = [], []
        program.body.pop("imports", None)
        program.body.pop("exports", None)
    for program in programs:
        end = order[program.nodes[-1]]
        written = max((place for place in writes if place < end), default=-1)
        if written > last_write:
            last_write = written
            owners.clear()
        program.describe(describe)
        _import(program, owners, describe)
        for value in [*program.inputs, *program.results]:
            if value not in owners and _bits_of_own_copy(program, value) >= LEAST_BITS:
                owners[value] = program


def _import(program: Program, owners: dict[fx.Node, Program], describe: Callable[[str], str]) -> None:
    imports = []
    for place, value in enumerate(program.inputs):
        owner = owners.get(value)
        if owner is None or not _bits_of_own_copy(program, value):
            continue
        copy = owner.plan["copies"][str(owner.value_of[value])]
        own = program.plan["copies"][str(program.value_of[value])]
        if tensor(value).dim() > 2 and copy.get("layout") != own.get("layout"):
            continue  # its elements are in another order
        if all(exported is not value for exported, _ in owner.exports):
            owner.exports.append((value, copy["tensors"]))
            owner.body["exports"] = [owner.value_of[exported] for exported, _ in owner.exports]
        imports.append({"input": place, "copy": copy["copy"]})
        program.imports.append((id(owner), value))
    if imports:
        program.body["imports"] = imports
        program.describe(describe)


def _bits_of_own_copy(program: Program, value: fx.Node) -> int:
    """Of the copy that a program keeps of a value by itself; 0 if it keeps none that others could have."""
    number = program.value_of[value]
    if str(number) not in program.plan.get("copies", {}):
        return 0
    saves = program.plan["saves"]
    bits = [save.get("bits", 0) for save in saves if save["value"] == number and save["form"] == "copy"]
    return max(bits, default=0)
