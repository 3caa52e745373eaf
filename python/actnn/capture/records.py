"""What has been captured of a module, as plain data."""

from dataclasses import dataclass, field
from typing import Any

WITHOUT_GRADIENTS = "nothing requires a gradient"
"""The reason of a graph that has nothing to save."""


@dataclass(frozen=True)
class CapturedProgram:
    """A part of a graph that runs as one node of autograd."""

    name: str
    steps: tuple[str, ...]
    """Paths of layers, and functions with the path of the module that calls them."""
    bits_of_steps: tuple[int | None, ...]
    saves: list[dict[str, Any]]
    """What it keeps, as the library says."""


@dataclass(frozen=True)
class OutsideCall:
    """A call outside of programs."""

    place: str
    """The path of the module that calls it, and the function."""
    reason: str
    """Why it is in no program."""


@dataclass
class Graph:
    """One captured graph."""

    number: int
    cause: str
    """Why it was captured, when there were others already; empty for the first."""
    programs: list[CapturedProgram]
    outside: list[OutsideCall]
    reason: str = ""
    """Why nothing of it was lowered; empty if something may have been."""
    error: str = ""
    """Why it runs without blocks, if that is an error of the lowering; empty if there was none."""


@dataclass
class Record:
    """All graphs of a module."""

    graphs: list[Graph] = field(default_factory=list)
    breaks: dict[str, str] = field(default_factory=dict)
    """Places at which the graph was cut, and their cause in one line."""
    troubles: list[str] = field(default_factory=list)
    """What TorchDynamo could not capture, and why."""
    fallback: str = ""
    """Why calls are not captured any more; empty if they are."""

    def clear(self) -> None:
        """Forgets everything."""
        self.graphs.clear()
        self.breaks.clear()
        self.troubles.clear()
        self.fallback = ""

    def note(self, trouble: str) -> None:
        """Adds a trouble, once."""
        if trouble not in self.troubles:
            self.troubles.append(trouble)
