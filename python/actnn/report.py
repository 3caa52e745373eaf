"""What a conversion did."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .kept_bytes import KeptBytes, bits_of, measure_kept_bytes

CONVERTED, TRAVERSED, LEFT = "converted", "traversed", "left alone"

_BITS = ("bits", "normalized_bits", "derivative_bits")


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
    """The path of the module whose forward runs it, and its number there: "layer1.0#0"."""
    steps: tuple[str, ...]
    """Paths of layers, and names of functions: "layer1.0.conv1", "add"."""
    plan: list[dict[str, Any]]
    """What is kept of its values, and with how many bits."""
    kept_bytes: int | None = None
    """What it kept for backward when that was measured last, without copies that it found; None before."""

    @property
    def bits(self) -> tuple[int, ...]:
        """The bits of its packed copies, derivatives and masks, ascending."""
        return tuple(sorted({stage[key] for stage in self.plan for key in _BITS if key in stage}))


@dataclass
class Report:
    """What `convert` did: one entry per module, parents before children; the blocks."""

    entries: list[Entry] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    without_blocks: dict[str, str] = field(default_factory=dict)
    """Paths of modules and layers with a batch norm in reach that are in no block, and why."""
    kept: KeptBytes | None = None
    """What was measured last."""

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

    def measure(self, model: nn.Module, run: Callable[[], object]) -> KeptBytes:
        """Measures what `run` keeps for backward (`measure_kept_bytes`), and notes it in the entries and blocks.

        `model` is the converted one; of a `QModule`, its `model`. Bits of adaptive layers are noted anew, too. Raises
        TypeError as `measure_kept_bytes`, ValueError for a model without the modules of the report.
        """
        kept = measure_kept_bytes(model, run)
        modules = dict(model.named_modules(remove_duplicate=False))
        if missing := next((entry.path for entry in self.entries if entry.path not in modules), None):
            raise ValueError(f"measure: model must be the one of the report, but it has no module '{missing}'")
        self.kept = kept
        self.entries = [
            replace(
                entry,
                bits=entry.bits if entry.block else bits_of(modules[entry.path]),
                kept_bytes=kept.modules.get(entry.path, 0),
            )
            for entry in self.entries
        ]
        self.blocks = [replace(block, kept_bytes=kept.blocks.get(block.name, 0)) for block in self.blocks]
        return kept

    def __str__(self) -> str:
        rows = [("module", "type", "outcome", "block", "bits", "kept bytes", "")]
        rows += [_row(entry) for entry in self.entries]
        lines = _table(rows)
        if self.blocks:
            lines += ["", *_table([("block", "bits", "kept bytes", "steps"), *map(_block_row, self.blocks)])]
        if self.without_blocks:
            lines += ["", *(f"no block: {path or '(root)'}: {reason}" for path, reason in self.without_blocks.items())]
        counts = f"{self.count(CONVERTED)} converted, {self.count(LEFT)} left alone"
        counts += f", {len(self.blocks)} blocks" if self.blocks else ""
        return "\n".join([*lines, "", counts, *self._totals()])

    def _totals(self) -> list[str]:
        if self.kept is None:
            return []
        in_blocks = f"{sum(self.kept.blocks.values()):,} by blocks, {sum(self.kept.modules.values()):,} by layers"
        elsewhere = f", {self.kept.elsewhere:,} elsewhere" if self.kept.elsewhere else ""
        return [f"{self.kept.total:,} bytes kept for backward: {in_blocks}{elsewhere}"]


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
