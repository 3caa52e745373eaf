"""From a captured graph to what runs: programs, functions, and a compiler if one is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..conf import Config
from .block_bits import BlockBits
from .options import BlockOptions
from .records import CapturedProgram, Graph, OutsideCall, Record

if TYPE_CHECKING:  # these import TorchDynamo, which takes seconds
    from .lowering import Lowered, LoweringOptions
    from .programs import ProgramStep

COUNTED_IN = "actnn_counted_in"
"""Where a node of a lowered graph has what its bytes count in: (True, the name of a program), (False, a path)."""


@dataclass(frozen=True)
class Settings:
    """What a conversion was asked for."""

    config: Config
    options: BlockOptions
    skipped: frozenset[str] = frozenset()
    """Paths of the modules that stay exact."""
    compile: str | Callable | None = None
    """What compiles the graphs with their programs."""
    is_traced: bool = False
    """Whether somebody else's compiler traces them."""
    bits: BlockBits = field(default_factory=BlockBits)
    """Of single values; shared by all graphs of the model."""


@dataclass(frozen=True)
class Root:
    """The module whose frame a graph was captured in."""

    name: str = "module"
    """Of the local that holds it."""
    path: str = ""
    """In the converted model; not empty for code between graph breaks."""

    def under(self, path: str) -> str:
        """The path in the model of what has this path in the module."""
        return f"{self.path}.{path}" if self.path and path else self.path or path


class _Watch:
    run: Callable | None = None
    """While kept bytes are measured: what runs a graph, given the record it is in, itself and its inputs."""


watch = _Watch()


def compile_graph(
    graph: fx.GraphModule, inputs: Sequence[Any], settings: Settings, record: Record, cause: str, root: Root
) -> Callable:
    """What runs in the place of a graph; adds it to the record. An error in here is no error of the model's: the graph
    runs without blocks then, and if that has an error, too, as it is, exact."""
    made = Graph(len(record.graphs), cause, [], [])
    record.graphs.append(made)
    module, run, planned = graph, graph.forward, None
    for with_programs in (True, False):
        try:
            lowered = _lower(graph, replace(_options(settings, root), makes_programs=with_programs))
            _describe(made, lowered, root)
            module = lowered.module
            planned = _PlannedGraph(made, lowered, root, settings.compile is not None)
            run = planned.run if settings.compile is None else _compiler(settings.compile)(module, inputs)
            settings.bits.add(planned)
            break
        except Exception as failure:
            made.programs, made.outside = [], []
            module, run = graph, graph.forward
            made.error = made.error or f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    if made.error:
        how = "exact" if module is graph else "with compressed functions, without blocks"
        warnings.warn(f"actnn: a captured graph runs {how}, since it could not be lowered: {made.error}", stacklevel=2)

    def run_graph(*values: Any, planned: _PlannedGraph | None = planned) -> Any:
        if watch.run is not None:
            return watch.run(record, module, values)
        return run(*values)

    return run_graph


class _PlannedGraph:
    def __init__(self, made: Graph, lowered: Lowered, root: Root, is_compiled: bool) -> None:
        self.made, self.lowered, self.root, self.is_compiled = made, lowered, root, is_compiled

    def run(self, *values: Any) -> Any:
        return self.lowered.module.forward(*values)  # another function after each plan

    def plan_again(self) -> bool:
        if not self.lowered.programs:
            return True
        if self.is_compiled or not self.lowered.plan_again():
            return False
        self.made.programs = []
        _describe_programs(self.made, self.lowered, self.root)
        return True


def _lower(graph: fx.GraphModule, options: LoweringOptions) -> Lowered:
    from .lowering import lower

    # Hooks of the caller's are not for examples.
    takes_hooks = torch._C._autograd._saved_tensors_hooks_is_enabled()
    with torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged) if takes_hooks else nullcontext():
        return lower(graph, options)


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def check_compiler(name: str | Callable) -> None:
    """Raises ValueError if torch knows no backend of this name."""
    if not callable(name):
        _compiler(name)


def _compiler(name: str | Callable) -> Callable:
    if callable(name):
        return name
    try:
        return torch._dynamo.backends.registry.lookup_backend(name)
    except torch._dynamo.exc.InvalidBackend:
        names = ", ".join(torch._dynamo.list_backends())
        raise ValueError(
            f"convert: compile must be a backend of torch.compile, got {name!r}; there are {names}"
        ) from None


def _options(settings: Settings, root: Root) -> LoweringOptions:
    from .lowering import LoweringOptions

    config = settings.config
    given = {name: value for name, value in asdict(settings.options).items() if value is not None}
    options = {"bits": config.activation_compression_bits[0], "rounding": config.rounding} | given
    return LoweringOptions(
        root=root.name,
        program=options,
        bits=settings.bits,
        under=lambda name: _name_of_program(name, root),
        quantization={
            "bits": config.activation_compression_bits[0],
            "group_size": config.group_size,
            "rounding": config.rounding,
        },
        skipped=lambda path: root.under(path) in settings.skipped,
        is_traced=settings.is_traced or settings.compile is not None,
    )


def _name(step: ProgramStep, root: Root) -> str:
    path = root.under(step.path)
    return path if step.is_layer else f"{path}: {step.op}".removeprefix(": ")


def _describe(graph: Graph, lowered: Lowered, root: Root) -> None:
    """Notes what the graph has become, and marks its nodes with what they are part of."""
    from .values import path_of

    graph.reason = lowered.reason
    names = _describe_programs(graph, lowered, root)
    for call in lowered.outside:
        if not call.replaced:
            graph.outside.append(OutsideCall(f"{root.under(call.path)}: {call.target}".removeprefix(": "), call.reason))
    in_order = iter(names)
    for node in lowered.module.graph.nodes:
        name = next(in_order) if node.target is lowered.run else None
        node.meta[COUNTED_IN] = (False, root.under(path_of(node, root.name))) if name is None else (True, name)


def _describe_programs(graph: Graph, lowered: Lowered, root: Root) -> list[str]:
    """Notes them, and returns their names."""
    names = []
    for program in lowered.programs:
        name = _name_of_program(program.name, root)
        name = name if graph.number == 0 else f"{name} of graph {graph.number}"
        steps = tuple(_name(step, root) for step in program.steps)
        saves = (program.plan or {}).get("saves", [])
        graph.programs.append(CapturedProgram(name, steps, tuple(step.bits for step in program.steps), saves))
        names.append(name)
    return names


def _name_of_program(name: str, root: Root) -> str:
    return f"{root.path or '(root)'}{name}" if name.startswith("#") else root.under(name)
