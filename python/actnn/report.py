"""What a conversion did."""

import json
from dataclasses import dataclass, field
from typing import Any

CONVERTED, TRAVERSED, LEFT = "converted", "traversed", "left alone"


@dataclass(frozen=True)
class Entry:
    """What became of one module."""

    path: str
    """As in state dictionaries; empty for the root."""
    type: str
    """"Conv2d"."""
    outcome: str
    """"converted", "traversed" (stays, its children were looked at) or "left alone"."""
    replacement: str = ""
    """"QConv2d"; empty unless converted."""
    reason: str = ""
    """Why it was left alone, or a remark."""
    block: str = ""
    """The name of the block that it is in, of the first if it is called in several."""


@dataclass(frozen=True)
class Block:
    """A part of a model that runs as one node of autograd."""

    name: str
    """The path of the module whose forward runs it, and its number there: "layer1.0#0"."""
    steps: tuple[str, ...]
    """Paths of layers, and names of functions: "layer1.0.conv1", "add"."""
    plan: dict[str, Any]
    """What is kept of its values, and with how many bits."""

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.steps)}; {json.dumps(self.plan)}"


@dataclass
class Report:
    """What `convert` did: one entry per module, parents before children; the blocks."""

    entries: list[Entry] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    without_blocks: dict[str, str] = field(default_factory=dict)
    """Paths of modules and layers with a batch norm in reach that are in no block, and why."""

    def __getitem__(self, path: str) -> Entry:
        """The entry of a path. Raises KeyError if the model has none."""
        for entry in self.entries:
            if entry.path == path:
                return entry
        raise KeyError(path)

    def count(self, outcome: str) -> int:
        """How many modules had this outcome."""
        return sum(entry.outcome == outcome for entry in self.entries)

    @property
    def converted(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome == CONVERTED]

    @property
    def left_alone(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.outcome == LEFT]

    def __str__(self) -> str:
        rows = [
            (entry.path or "(root)", entry.type, entry.replacement or entry.outcome, entry.reason)
            for entry in self.entries
        ]
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:3]] if rows else []
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows]
        lines += [f"block {block}" for block in self.blocks]
        lines += [f"no block: {path or '(root)'}: {reason}" for path, reason in self.without_blocks.items()]
        counts = f"{self.count(CONVERTED)} converted, {self.count(LEFT)} left alone"
        return "\n".join([*lines, f"{counts}, {len(self.blocks)} blocks" if self.blocks else counts])
