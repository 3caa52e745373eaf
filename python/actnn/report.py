"""What a conversion did."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .capture.records import Graph, Record
from .kept_bytes import KeptBytes, bits_of, measure_kept_bytes

CONVERTED, TRAVERSED, LEFT = "converted", "traversed", "left alone"
NOT_YET = "the graph has not been captured yet: run the model once, or report.measure"
NO_GRAPH = "no graph has been captured so far: record.breaks and record.troubles say why"


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
    bits: float | None = None
    """Of an element of its packed copy, on average where bits are allocated; in a block: of the copy that the block's
    plan has for it. None if it has no packed copy: exact, a mask, positions, computed again."""
    kept_bytes: int | None = None
    """What it kept for backward when that was measured last, without what its block kept; None before."""


@dataclass(frozen=True)
class Block:
    """A part of a model that runs as one node of autograd."""

    name: str
    """The path of the innermost module that has all of its steps, and a number: "layer1.0#0"."""
    steps: tuple[str, ...]
    """Paths of layers, and functions with the path of what calls them: "layer1.0.conv1", "layer1.0: add"."""
    bits_of_steps: tuple[int | None, ...]
    """Of what each step keeps; None if that is nothing, or exact."""
    plan: list[dict[str, Any]]
    """What is kept of its values, and with how many bits."""
    kept_bytes: int | None = None
    """What it kept for backward when that was measured last, without copies that it found; None before."""

    @property
    def bits(self) -> tuple[int, ...]:
        """The bits of what it keeps in fewer bits than it came with, ascending."""
        return tuple(sorted({bits for bits in self.bits_of_steps if bits is not None}))


@dataclass
class Report:
    """What `convert` did: one entry per module, parents before children, and what has been captured since then."""

    entries: list[Entry] = field(default_factory=list)
    """Of layers that the captured graph computes the outcome is "converted", too; they stay torch's."""
    record: Record | None = None
    """The captured graphs; None if layers were converted."""
    layers_only: str = ""
    """Why layers were converted, where blocks were asked for."""
    kept: KeptBytes | None = None
    """What was measured last."""

    def __getitem__(self, path: str) -> Entry:
        """The entry of a path. Raises KeyError if the model has none."""
        for entry in self.entries:
            if entry.path == path:
                return self._in_blocks().get(path, entry)
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

    @property
    def graphs(self) -> list[Graph]:
        """What has been captured, in order; empty before the first call."""
        return [] if self.record is None else self.record.graphs

    @property
    def blocks(self) -> list[Block]:
        """Of all graphs; empty before the first call."""
        return [block for graph in self.graphs for block in blocks_of(graph, self.kept)]

    @property
    def without_blocks(self) -> dict[str, str]:
        """Calls and modules that are in no block, by their place, and why; the model itself is ""."""
        if self.record is None:
            return {"": self.layers_only} if self.layers_only else {}
        found = {"": reason} if (reason := self.record.fallback or self._why_no_graph()) else {}
        for graph in self.graphs:
            if reason := graph.error or graph.reason:
                found[f"graph {graph.number}"] = reason
            for outside in graph.outside:
                found.setdefault(outside.place, outside.reason)
        return found

    def measure(self, model: nn.Module, run: Callable[[], object]) -> KeptBytes:
        """Measures what `run` keeps for backward (`measure_kept_bytes`), and notes it in the entries and blocks. The
        graph is captured on the way, if it was not.

        `model` is the converted one; of a `QModule`, its `model`. Bits of adaptive layers are noted anew, too. Raises
        TypeError as `measure_kept_bytes`, ValueError for a model without the modules of the report.
        """
        kept = measure_kept_bytes(model, run)
        modules = dict(model.named_modules(remove_duplicate=False))
        if missing := [entry.path for entry in self.entries if entry.path not in modules]:
            raise ValueError(
                f"Report.measure: model must be the one of the report, but it has no module {missing[0]!r}"
            )
        self.kept = kept
        self.entries = [
            replace(entry, bits=bits_of(modules[entry.path]), kept_bytes=kept.modules.get(entry.path, 0))
            for entry in self.entries
        ]
        return kept

    def _why_no_graph(self) -> str:
        if self.graphs:
            return ""
        return NO_GRAPH if self.record.breaks or self.record.troubles else NOT_YET

    def _in_blocks(self) -> dict[str, Entry]:
        """Entries of the modules that blocks compute."""
        entries, found = {entry.path: entry for entry in self.entries}, {}
        for block in self.blocks:
            for step, bits in zip(block.steps, block.bits_of_steps, strict=True):
                path = step.partition(": ")[0]
                if path in entries and path not in found and entries[path].outcome != TRAVERSED:
                    found[path] = replace(entries[path], block=block.name, bits=bits)
        return found

    def __str__(self) -> str:
        in_blocks = self._in_blocks()
        rows = [("module", "type", "outcome", "block", "bits", "kept bytes", "")]
        lines = _table(rows + [_row(in_blocks.get(entry.path, entry)) for entry in self.entries])
        for graph in self.graphs:
            lines += ["", *self._graph(graph)]
        if self.record is not None:
            lines += _paragraph(f"graph break: {place}: {cause}" for place, cause in self.record.breaks.items())
            lines += _paragraph(f"not captured: {trouble}" for trouble in self.record.troubles)
        if reason := self.without_blocks.get("", ""):
            lines += ["", f"no blocks: {reason}"]
        counts = f"{self.count(CONVERTED)} converted, {self.count(LEFT)} left alone"
        if self.graphs:
            counts += f", {len(self.graphs)} graphs, {len(self.blocks)} blocks"
        return "\n".join([*lines, "", counts, *self._totals()])

    def _graph(self, graph: Graph) -> list[str]:
        lines = [f"graph {graph.number}" + (f", captured anew since {graph.cause}" if graph.cause else "")]
        if reason := graph.error or graph.reason:
            lines.append(f"no blocks: {reason}")
        if blocks := blocks_of(graph, self.kept):
            lines += _table([("block", "bits", "kept bytes", "steps"), *map(_block_row, blocks)])
        return [*lines, *(f"no block: {outside.place}: {outside.reason}" for outside in graph.outside)]

    def _totals(self) -> list[str]:
        if self.kept is None:
            return []
        in_blocks = f"{sum(self.kept.blocks.values()):,} by blocks, {sum(self.kept.modules.values()):,} by layers"
        elsewhere = f", {self.kept.elsewhere:,} elsewhere" if self.kept.elsewhere else ""
        return [f"{self.kept.total:,} bytes kept for backward: {in_blocks}{elsewhere}"]


def blocks_of(graph: Graph, kept: KeptBytes | None) -> list[Block]:
    """The programs of a graph."""
    return [
        Block(p.name, p.steps, p.bits_of_steps, p.saves, None if kept is None else kept.blocks.get(p.name, 0))
        for p in graph.programs
    ]


def _paragraph(lines: Any) -> list[str]:
    lines = list(lines)
    return ["", *lines] if lines else []


def _row(entry: Entry) -> tuple[str, ...]:
    outcome = entry.replacement or entry.outcome
    bits = "-" if entry.bits is None else f"{entry.bits:.3g}"
    return (entry.path or "(root)", entry.type, outcome, entry.block or "-", bits, _bytes(entry), entry.reason)


def _block_row(block: Block) -> tuple[str, ...]:
    return (block.name, ", ".join(map(str, block.bits)) or "-", _bytes(block), ", ".join(block.steps))


def _bytes(part: Entry | Block) -> str:
    """A layer in a block has no bytes of its own to show, unless it kept some by itself."""
    in_block = isinstance(part, Entry) and bool(part.block) and not part.kept_bytes
    return "-" if part.kept_bytes is None or in_block else f"{part.kept_bytes:,}"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
