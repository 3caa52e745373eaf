"""A module's forward with blocks: how it is found, and what it depends on."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from ..conf import Config
from .cutting import Steps, find_blocks, inputs_of, ranks_of
from .shapes import sums_agree
from .steps import Step, UnsupportedError, attributes_of, operands, step_of
from .tracing import UntraceableError, is_hooked, trace

PARAMETERS = {"convolution": ("weight", "bias"), "batch_norm": ("weight", "bias")}
BUFFERS = {"batch_norm": ("running_mean", "running_var", "num_batches_tracked")}
_OF_MODULES = frozenset({*vars(nn.Module()), "forward"})


@dataclass
class Block:
    """A part of a forward that runs as one node of autograd."""

    steps: tuple[tuple[str, bool], ...]
    """Paths of layers, from the module whose forward it is part of, and names of functions; whether it is a layer."""
    program: dict[str, Any]
    ranks: frozenset[int]
    """Dimensions that its inputs may have."""
    parameters: list[tuple[nn.Module, str]]
    buffers: list[tuple[nn.Module, str]]
    norms: list[nn.Module]
    sums_agree: Callable[[tuple, tuple], bool]
    """Whether all of its sums are of equal shapes, by the shapes of inputs and parameters."""
    one_by_one: Callable[..., Tensor]
    """The same steps as the model has them, of the module and the inputs."""


@dataclass
class Plan:
    """What a forward does, and whether that is still so."""

    watched: "Watched"
    reason: str = ""
    """Why no graph can stand for it."""
    blocks: list[Block] = field(default_factory=list)
    outside: dict[str, str] = field(default_factory=dict)
    """Layers that are no steps, and why."""
    containers: list[nn.Module] = field(default_factory=list)
    """Modules that are never called, because their children are."""
    asks: bool = False
    """Whether it depends on the arguments' types."""
    function: Callable[..., Any] | None = None
    """The forward: of the module, what runs its blocks, and the arguments."""
    executors: dict[tuple, list[Any]] = field(default_factory=dict)
    """The library's form of the blocks, by the options that it was made with."""


def find_plan(module: nn.Module, config: Config, count: int, kind: type = Tensor) -> Plan:
    """Looks for blocks in the forward of `module` for `count` arguments of the type `kind`."""
    try:
        traced = trace(module, count, kind)
    except UntraceableError as error:
        return Plan(Watched(module, [], []), str(error))
    graph = traced.graph
    called = [module.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    watched = Watched(module, _parents(module, graph, traced.containers), list(dict.fromkeys(called)))
    steps, outside = _steps(graph, module, config)
    pieces = find_blocks(graph, steps, module)
    with graph.inserting_before(next(iter(graph.nodes))):
        runner = graph.placeholder("_blocks")
    blocks = [_cut_out(graph, runner, index, piece, steps) for index, piece in enumerate(pieces)]
    return Plan(watched, "", blocks, outside, traced.containers, traced.asks, _function(graph))


def _cut_out(graph: fx.Graph, runner: fx.Node, index: int, piece: list[fx.Node], steps: Steps) -> Block:
    """Puts a call of a block in the place of its nodes."""
    block = _block(piece, steps)
    with graph.inserting_after(piece[-1]):
        call = graph.call_method("run", (runner, index, *inputs_of(piece)))
    piece[-1].replace_all_uses_with(call)
    for node in reversed(piece):
        graph.erase_node(node)
    return block


def _steps(graph: fx.Graph, module: nn.Module, config: Config) -> tuple[Steps, dict[str, str]]:
    steps, outside = {}, {}
    for node in graph.nodes:
        try:
            if (step := step_of(node, module, config)) is not None:
                steps[node] = step
        except UnsupportedError as error:
            if node.op == "call_module":
                outside[node.target] = str(error)
    return steps, outside


def _block(piece: list[fx.Node], steps: Steps) -> Block:
    values = {value: i for i, value in enumerate([*inputs_of(piece), *piece])}
    parameters, buffers, written = [], [], []
    for node in piece:
        step = steps[node]
        fields = {"op": step.op, "inputs": [values[value] for value in operands(node)]}
        for key, names, lists in (("parameters", PARAMETERS, parameters), ("buffers", BUFFERS, buffers)):
            if step.op in names:
                fields[key] = [_place(lists, step.layer, name, key) for name in names[step.op]]
        written.append(fields | step.fields | ({"in_place": True} if step.op == "add" and step.in_place else {}))
    program = {"inputs": len(values) - len(piece), "steps": written, "output": len(values) - 1}
    return Block(
        tuple(_name(node, steps[node]) for node in piece),
        program,
        ranks_of(piece, steps),
        parameters,
        buffers,
        [steps[node].layer for node in piece if steps[node].op == "batch_norm"],
        sums_agree(program),
        _one_by_one(piece),
    )


def _place(collected: list[tuple[nn.Module, str]], layer: nn.Module, name: str, kind: str) -> int | None:
    """Adds a layer's parameter or buffer, and returns its index; None if the layer has none."""
    if getattr(layer, f"_{kind}").get(name) is None:
        return None
    collected.append((layer, name))
    return len(collected) - 1


def _name(node: fx.Node, step: Step) -> tuple[str, bool]:
    return (node.target, True) if node.op == "call_module" else (step.fields.get("kind", step.op), False)


def _one_by_one(piece: list[fx.Node]) -> Callable[..., Tensor]:
    graph = fx.Graph()
    copies = {value: graph.placeholder(f"input{i}") for i, value in enumerate(inputs_of(piece))}
    for node in piece:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[piece[-1]])
    return _function(graph)


def _function(graph: fx.Graph) -> Callable[..., Any]:
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(code.src, namespace)
    return namespace["forward"]


def _parents(module: nn.Module, graph: fx.Graph, containers: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules through which the forward finds what it calls and reads."""
    paths = {""}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            parts = node.target.split(".")
            paths.update(".".join(parts[:i]) for i in range(1, len(parts)))
    between = [module.get_submodule(path) for path in sorted(paths)]
    return [parent for parent in dict.fromkeys([*between, *containers]) if parent is not module]


class Watched:
    """Whether anything has changed that a forward was read from: attributes, children, hooks, options of layers.

    What it cannot see are changes inside of objects that are attributes, and in whatever else a forward may read.
    """

    def __init__(self, module: nn.Module, parents: list[nn.Module], called: list[nn.Module]) -> None:
        self.parents, self.called = parents, called
        self.before = self._now(module)

    def is_unchanged(self, module: nn.Module) -> bool:
        (parts, states), (old_parts, old_states) = self._now(module), self.before
        return len(parts) == len(old_parts) and all(map(operator.is_, parts, old_parts)) and states == old_states

    def _now(self, module: nn.Module) -> tuple[list[Any], list[tuple]]:
        parts = _parts(module)
        for module in self.parents:
            parts += [*_parts(module), is_hooked(module), "forward" in vars(module)]
        return parts, [_state(module) for module in self.called]


def _parts(module: nn.Module) -> list[Any]:
    own = vars(module)
    return [
        type(module),
        type(module).forward,
        *own["_modules"].values(),
        *(own[name] for name in own if name not in _OF_MODULES),
    ]


def _state(module: nn.Module) -> tuple:
    own = vars(module)
    tensors = tuple(name for kind in ("_parameters", "_buffers") for name, t in own[kind].items() if t is not None)
    return type(module), "forward" in own, is_hooked(module), tensors, attributes_of(module)
