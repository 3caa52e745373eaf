"""A module's forward with blocks: how it is found, and what it depends on."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from ..conf import Config
from ..layers import QSyncBatchNorm
from .cutting import Steps, find_blocks, inputs_of, ranks_of
from .norm_act import CONFIG
from .shapes import sums_agree
from .steps import Step, UnsupportedError, attributes_of, operands, step_of
from .tracing import Kind, UntraceableError, is_hooked, trace

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

    def groups(self) -> tuple[str | None, ...]:
        """The name of the process group that each norm takes its statistics over, now; None: none."""
        return tuple(norm.group_name() if isinstance(norm, QSyncBatchNorm) else None for norm in self.norms)

    def program_over(self, groups: tuple[str | None, ...]) -> dict[str, Any]:
        """The program, with these groups of its norms."""
        steps, names = [], iter(groups)
        for step in self.program["steps"]:
            name = next(names) if step["op"] == "batch_norm" else None
            steps.append(step if name is None else step | {"group_name": name})
        return self.program | {"steps": steps}


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
    asked: frozenset[int] = frozenset()
    """The arguments that were tensors, and may be meant to be lists."""
    function: Callable[..., Any] | None = None
    """The forward: of the module, what runs its blocks, and the arguments, the tensors of lists one after the other."""
    executors: dict[tuple, list[Any]] = field(default_factory=dict)
    """The library's form of the blocks, by the options and process groups that it was made with."""


def find_plan(module: nn.Module, config: Config, kinds: tuple[Kind, ...]) -> Plan:
    """Looks for blocks in the forward of `module` for arguments of these kinds."""
    try:
        traced = trace(module, kinds)
    except UntraceableError as error:
        return Plan(Watched(module, [], []), str(error), asked=error.asked)
    graph = traced.graph
    called = [module.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    norms = [layer for layer in called if CONFIG in vars(layer)]
    called += [child for layer in norms for child in layer.modules() if child is not layer]
    parents = _parents(module, graph, [*traced.containers, *norms])
    watched = Watched(module, parents, list(dict.fromkeys(called)))
    steps, outside = _steps(graph, module, config)
    pieces = find_blocks(graph, steps, module)
    with graph.inserting_before(next(iter(graph.nodes))):
        runner = graph.placeholder("_blocks")
    blocks = [_cut_out(graph, runner, index, piece, steps) for index, piece in enumerate(pieces)]
    return Plan(watched, "", blocks, outside, traced.containers, traced.asked, _function(graph))


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
    inputs = inputs_of(piece)
    values = {value: i for i, value in enumerate(inputs)}
    parts, names, parameters, buffers, written = [], [], [], [], []
    for node in piece:
        operands_of_part = [values[value] for value in operands(node)]
        for part in steps[node].parts:
            fields = {"op": part.op, "inputs": operands_of_part}
            for key, own, lists in (("parameters", PARAMETERS, parameters), ("buffers", BUFFERS, buffers)):
                if part.op in own:
                    fields[key] = [_place(lists, part.layer, name, key) for name in own[part.op]]
            written.append(fields | part.fields | ({"in_place": True} if part.op == "add" and part.in_place else {}))
            operands_of_part = [len(inputs) + len(written) - 1]
            parts.append(part)
        names += _names(node, steps[node])
        (values[node],) = operands_of_part
    program = {"inputs": len(inputs), "steps": written, "output": len(inputs) + len(written) - 1}
    return Block(
        tuple(names),
        program,
        ranks_of(piece, steps),
        parameters,
        buffers,
        [part.layer for part in parts if part.op == "batch_norm"],
        sums_agree(program),
        _one_by_one(piece),
    )


def _place(collected: list[tuple[nn.Module, str]], layer: nn.Module, name: str, kind: str) -> int | None:
    """Adds a layer's parameter or buffer, and returns its index; None if the layer has none."""
    if getattr(layer, f"_{kind}").get(name) is None:
        return None
    collected.append((layer, name))
    return len(collected) - 1


def _names(node: fx.Node, step: Step) -> list[tuple[str, bool]]:
    """Of a step, and of those behind it."""
    if node.op != "call_module":
        return [(step.fields.get("kind", step.op), False)]
    behind = [name for inner, part in step.behind for name in _names(inner, part)]
    return [
        (node.target, True),
        *((f"{node.target}.{name}" if is_layer else name, is_layer) for name, is_layer in behind),
    ]


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
