"""A captured graph, with programs and the library's functions in it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from . import function_steps, layer_steps, part_steps, written_out  # noqa: F401  (they fill the tables of steps)
from .block_bits import BlockBits
from .composites import expand_composites
from .factories import make_without_models
from .frozen_linears import find_frozen_linears
from .functions import name_of_target, replace_functions
from .losses import join_losses
from .masks import join_equal_masks, leave_out_causal_masks
from .partition import Reasons, Steps, find_programs
from .pattern_nodes import PRODUCTS, SUMS, is_number, operands
from .patterns import join_patterns
from .programs import Program, common_path, program_of, put_into_graph
from .records import WITHOUT_GRADIENTS
from .sharing import share_copies
from .sizes import Sizes, read_from_inputs
from .steps import step_of
from .values import UnsupportedError, example, path_of, requires_grad
from .writes import overwrites


@dataclass(frozen=True)
class LoweringOptions:
    """What a graph is lowered with."""

    root: str = "module"
    """The name of the local that holds the captured module."""
    program: Mapping[str, Any] = field(default_factory=dict)
    """The options of programs, as the library reads them."""
    bits: BlockBits | None = None
    """Of single values of programs, instead of those in `program`."""
    under: Callable[[str], str] = lambda name: name
    """The name of a program in the whole model."""
    quantization: Mapping[str, Any] = field(
        default_factory=lambda: {"bits": 4, "group_size": 256, "rounding": "dithered"}
    )
    """Of single functions."""
    skipped: Callable[[str], bool] = lambda path: False
    """Whether the module at a path stays exact."""
    exact: frozenset[Callable] = frozenset()
    """Functions whose calls stay exact, such as `BATCH_NORMS`."""
    makes_programs: bool = True
    replaces_functions: bool = True
    is_traced: bool = False
    """Whether a compiler traces what the graph becomes: tensors that are more than their memory are nothing for it."""
    run: Callable | None = None
    """What the graph calls for a program; None: the library's op."""
    describe: Callable[[str], str] | None = None
    """What is asked for plans; None: the library, if programs run there."""


@dataclass(frozen=True)
class Outside:
    """A call outside of programs."""

    name: str
    """Of its node."""
    target: str
    """The function or method."""
    path: str
    """The module that calls it; empty for the captured module itself."""
    reason: str
    """Why it is in no program."""
    replaced: bool = False
    """Whether the library computes it."""


@dataclass
class Lowered:
    """What has become of a graph."""

    module: fx.GraphModule
    programs: list[Program]
    outside: list[Outside]
    reason: str = ""
    """Why nothing was lowered; empty if something may have been."""
    run: Callable | None = None
    """What the graph calls for each program, in their order."""
    plan_again: Callable[[], bool] = lambda: True
    """Takes over the bits of single values as they are now. False if that takes another graph."""


def lower(graph_module: fx.GraphModule, options: LoweringOptions) -> Lowered:
    """Puts programs and functions into a copy of a graph of TorchDynamo's.

    The lowered graph computes what the given one computes: what no step is certain to compute stays as it is, with a
    reason. Without gradients to compute the given module is the result.
    """
    if not torch.is_grad_enabled():
        return Lowered(graph_module, [], [], "gradients are off")
    if not any(requires_grad(node) for node in graph_module.graph.nodes):
        return Lowered(graph_module, [], [], WITHOUT_GRADIENTS)
    module = _copy_of(graph_module)
    graph = module.graph
    leave_out_causal_masks(graph)
    expand_composites(graph)
    make_without_models(graph)
    if options.makes_programs and not options.is_traced:
        find_frozen_linears(graph, lambda node: _is_skipped(node, options))
    if options.makes_programs or options.replaces_functions:
        join_patterns(graph, lambda node: _is_skipped(node, options))
        leave_out_causal_masks(graph)  # of attention that was written out, too
    join_equal_masks(graph)
    joined = join_losses(graph, lambda node: _is_skipped(node, options)) if options.replaces_functions else {}
    sizes = read_from_inputs(graph)
    # Without programs nothing is asked of steps: what failed with them is tried again without.
    steps, reasons = _steps(graph, options) if options.makes_programs else ({}, {})
    programs = _programs(graph, steps, reasons, sizes, options) if options.makes_programs else []
    run, describe = options.run, options.describe
    if run is None:
        run, describe = torch.ops.actnn.run_program.default, describe or torch.ops.actnn.describe_program
    share = _sharing(graph, programs, steps, describe, options)
    share()
    calls = put_into_graph(graph, programs, run)
    names = {node: name_of_target(node) for node in graph.nodes} | joined
    replaced = dict(joined)
    if options.replaces_functions:
        replaced |= replace_functions(graph, options.quantization, lambda node: _is_skipped(node, options))
    outside = _outside(graph, run, steps, names, reasons, replaced, options)
    graph.lint()
    module.recompile()

    def plan_again() -> bool:
        before = [_shared(program) for program in programs]
        share()
        if before != [_shared(program) for program in programs]:
            return False
        for program, call in zip(programs, calls, strict=True):
            call.args = (program.text, *call.args[1:])
        module.recompile()
        return True

    return Lowered(module, programs, outside, run=run, plan_again=plan_again)


def _sharing(
    graph: fx.Graph,
    programs: list[Program],
    steps: Steps,
    describe: Callable[[str], str] | None,
    options: LoweringOptions,
) -> Callable[[], None]:
    """What gives programs their bits and plans."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    inside = {node for program in programs for node in program.nodes}
    writes = [order[node] for node in graph.nodes if node not in inside and overwrites(node, steps, order)]

    def share() -> None:
        for program in programs:
            if options.bits is not None:
                program.use(options.bits, options.under(program.name))
        if describe is not None:
            share_copies(programs, describe, order, writes)

    return share


def _shared(program: Program) -> tuple:
    """What other nodes of the graph know of a program: which copies it takes and returns."""
    return program.imports, program.exports


def _copy_of(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(module.graph, copies, return_output_node=True)
    graph.output(output[0])
    for node, copied in copies.items():
        if hasattr(node, "_dynamo_source"):  # compilers look for it
            copied._dynamo_source = node._dynamo_source
    copied_module = fx.GraphModule(module, graph)
    copied_module.meta = dict(module.meta)
    if hasattr(module, "_param_name_to_source"):
        copied_module._param_name_to_source = module._param_name_to_source
    return copied_module


def _steps(graph: fx.Graph, options: LoweringOptions) -> tuple[Steps, Reasons]:
    steps, reasons = {}, {}
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if _is_skipped(node, options):
            reasons[node] = "it is to stay exact"
            continue
        try:
            if (step := step_of(node)) is not None:
                steps[node] = step
        except UnsupportedError as error:
            reasons[node] = str(error)
    return steps, reasons


def _is_skipped(node: fx.Node, options: LoweringOptions) -> bool:
    return options.skipped(path_of(node, options.root))


def _programs(graph: fx.Graph, steps: Steps, reasons: Reasons, sizes: Sizes, options: LoweringOptions) -> list[Program]:
    programs: list[Program] = []
    for piece in find_programs(graph, steps, reasons, options.root):
        try:
            program = program_of(piece, steps, sizes, options.program, "", options.root)
        except UnsupportedError as error:
            reasons.update((node, str(error)) for node in piece)
            continue
        program.name = f"{common_path(program.steps)}#{len(programs)}"
        programs.append(program)
    return programs


def _outside(
    graph: fx.Graph, run: Callable, steps: Steps, names: Mapping[fx.Node, str], reasons: Reasons,
    replaced: Mapping[fx.Node, str], options: LoweringOptions,
) -> list[Outside]:  # fmt: skip
    """The calls that may keep something for backward: not those without a gradient, no views, and no products and sums
    with numbers."""
    found = []
    for node in graph.nodes:
        is_call = node.op in ("call_function", "call_method") and node.target is not run
        is_view = (node in steps and steps[node].is_view) or names.get(node) in VIEWS_OF_TORCH
        keeps_nothing = is_view or _is_output(node) or _is_with_number(node)
        if is_call and requires_grad(node) and not keeps_nothing:
            reason = reasons.get(node, "programs have no such step")
            found.append(Outside(node.name, names[node], path_of(node, options.root), reason, node in replaced))
    return found


def _is_output(node: fx.Node) -> bool:
    return node.target is operator.getitem and not isinstance(example(node.args[0]), Tensor)


def _is_with_number(node: fx.Node) -> bool:
    terms = operands(node, PRODUCTS | SUMS)
    return terms is not None and any(map(is_number, terms))


VIEWS_OF_TORCH = frozenset({"t", "expand", "expand_as", "view", "view_as", "getitem", "detach", "narrow", "movedim"})
