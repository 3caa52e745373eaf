"""The text of a program: what the library is told of the steps of a piece of a graph."""

from __future__ import annotations

import json
import operator
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .block_bits import BlockBits
from .partition import Steps, inputs_of, results_of
from .sizes import Sizes
from .slices import Slices
from .steps import Step
from .values import UnsupportedError, elements, elements_of, example, is_in_layer, name_of, path_of, rows_of, source_of

SMALL = 16
"""Copies of values that are this much smaller than the largest one are kept exact: they cost little, and what gates a
large value (squeeze and excitation) adds noise to all of it."""
SMALL_TOGETHER = 8
"""The same for all such values of a program together."""


@dataclass
class ProgramStep:
    """One step, as reports show it."""

    op: str
    path: str
    """The module that it is part of, as in state dictionaries; empty for the captured module itself."""
    is_layer: bool
    """Whether that module is a layer of torch's, or of a class derived from one, and not one with layers in it."""
    bits: int | None = None
    """Of what the step saves; None if that is nothing, or exact."""


@dataclass
class Program:
    """A part of a graph that runs as one node of autograd."""

    name: str
    steps: list[ProgramStep]
    body: dict[str, Any]
    """What the text says, as data."""
    inputs: list[fx.Node]
    parameters: list[fx.Node]
    buffers: list[fx.Node]
    integers: list[fx.Node]
    results: list[fx.Node]
    value_of: dict[fx.Node, int]
    """The number of each value."""
    nodes: list[fx.Node]
    counters: list[fx.Node]
    """The nodes that count batches for its batch norms, which do that themselves."""
    plan: dict[str, Any] | None = None
    """What the library says of it; None if it was not asked."""
    imports: list[tuple[int, fx.Node]] = field(default_factory=list)
    """The copies that it is given: which program (by `id`) exports the copy of which value."""
    exports: list[tuple[fx.Node, int]] = field(default_factory=list)
    """The values whose copies it returns, and of how many tensors these are."""

    @property
    def text(self) -> str:
        return json.dumps(self.body)

    def use(self, bits: BlockBits, name: str) -> None:
        """Takes its bits from these, where its name in the whole model is this one."""
        steps = json.dumps([(step["op"], step["inputs"]) for step in self.body["program"]["steps"]])
        name = f"{name} {zlib.crc32(steps.encode()):08x}"
        self.body["name"] = bits.prefix + name
        self.body["options"]["value_bits"] = {str(k): v for k, v in bits.of_blocks.get(name, {}).items()}

    def describe(self, describe: Callable[[str], str]) -> None:
        """Asks the library for the plan."""
        self.plan = json.loads(describe(self.text))
        for step in self.steps:
            step.bits = None
        for save in self.plan["saves"]:
            place = save.get("step")
            if place is not None and save.get("form") != "exact" and save.get("bits") is not None:
                step = self.steps[place]
                step.bits = save["bits"] if step.bits is None else max(step.bits, save["bits"])


def program_of(
    piece: Sequence[fx.Node], steps: Steps, sizes: Sizes, options: Mapping[str, Any], name: str, root: str
) -> Program:
    """The program of a piece. Raises UnsupportedError if one of its sizes is not known outside of it."""
    writer = _Writer(piece, steps, sizes, root)
    for node in piece:
        writer.add(node)
    results = results_of(piece)
    program = {
        "inputs": len(writer.inputs),
        "integers": len(writer.integers),
        "dtypes": writer.dtypes,
        "steps": writer.written,
        "results": [writer.values[node] for node in results],
    }
    body = {"program": program, "options": dict(options) | {"exact": _exact(writer, program["results"])}}
    return Program(
        name, writer.names, body, writer.inputs, writer.parameters, writer.buffers, writer.integers, results,
        writer.values, list(piece), writer.counters,
    )  # fmt: skip


class _Writer:
    def __init__(self, piece: Sequence[fx.Node], steps: Steps, sizes: Sizes, root: str) -> None:
        self.steps, self.sizes, self.root = steps, sizes, root
        self.inside = set(piece)
        self.slices = Slices(piece, steps)
        self.inputs = inputs_of(piece, steps)
        self.values = {value: i for i, value in enumerate(self.inputs)}
        self.dtypes = [name_of(example(value).dtype) for value in self.inputs]
        self.sizes_of_values = [elements(value) for value in self.inputs]
        self.rows_of_values = [rows_of(example(value)) for value in self.inputs]
        self.makers: dict[int, dict[str, Any]] = {}
        self.outputs: dict[tuple[fx.Node, int], int] = {}
        self.parameters: list[fx.Node] = []
        self.buffers: list[fx.Node] = []
        self.integers: list[fx.Node] = []
        self.counters: list[fx.Node] = []
        self.written: list[dict[str, Any]] = []
        self.names: list[ProgramStep] = []

    def add(self, node: fx.Node) -> None:
        step = self.steps[node]
        if step.op == "identity":
            self.values[node] = self.values[step.operands[0]]
            return
        if step.op == "output":
            outputs = len(example(step.operands[0]))
            self.values[node] = self.outputs[step.operands[0], step.fields["index"] % outputs]
            return
        if step.op == "slice":
            if node not in self.values:
                self._split(node)
            return
        text = {"op": step.op, "inputs": [self.values[value] for value in step.operands]}
        text |= {key: self._field(key, value) for key, value in step.fields.items()}
        text |= {key: _place(self.parameters, value) for key, value in step.parameters.items()}
        text |= {key: _place(self.buffers, value) for key, value in step.buffers.items()}
        if step.op == "batch_norm" and (counter := _counter_of(node, step, self.counters)) is not None:
            self.counters.append(counter)
            text["num_batches_tracked"] = _place(self.buffers, counter.args[0])
        self._write(text, node, step.fields.get("kind", step.op))
        found = example(node)
        if not isinstance(found, (tuple, list)):
            self.values[node] = self._number(found)
            return
        for i, part in enumerate(found):
            self.outputs[node, i] = self._number(part)

    def _split(self, node: fx.Node) -> None:
        """All slices of a value at once: backward puts their gradients together, and does not add what is zero."""
        (value,), dimension = self.steps[node].operands, self.steps[node].fields["dimension"]
        slices, parts = self.slices.with_others(node)
        text = {"op": "split", "inputs": [self.values[value]], "dimension": dimension}
        self._write(text | {"sizes": [end - begin for begin, end in parts]}, node, "split")
        numbers = {both: self._number(example(value).narrow(dimension, both[0], both[1] - both[0])) for both in parts}
        self.values |= {one: numbers[both] for one, both in slices.items()}

    def _write(self, text: dict[str, Any], node: fx.Node, name: str) -> None:
        self.written.append(text)
        self.names.append(ProgramStep(name, path_of(node, self.root), is_in_layer(node)))

    def _number(self, value: Tensor) -> int:
        """The number of one more value, which the last step makes."""
        number = len(self.dtypes)
        self.dtypes.append(name_of(value.dtype))
        self.sizes_of_values.append(elements_of(value))
        self.rows_of_values.append(rows_of(value))
        self.makers[number] = self.written[-1]
        return number

    def _field(self, key: str, value: Any) -> Any:
        if key not in ("sizes", "size") or value is None:
            return list(value) if isinstance(value, (tuple, list)) else value
        return [size if isinstance(size, int) else {"integer": self._integer(size)} for size in value]

    def _integer(self, size: fx.Node | torch.SymInt) -> int:
        value = example(size)
        node = self.sizes.node_of(value) if isinstance(value, torch.SymInt) else None
        node = size if node is None and isinstance(size, fx.Node) else node
        if node is None or not self._is_before(node):
            raise UnsupportedError("one of its sizes is computed inside of it")
        return _place(self.integers, node)

    def _is_before(self, node: fx.Node) -> bool:
        """Whether an integer does not come from a value inside."""
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one in self.inside:
                return False
            if one.op in ("call_function", "call_method") and isinstance(example(one), (int, torch.SymInt)):
                waiting += one.all_input_nodes
        return True


def _place(collected: list[fx.Node], node: fx.Node | None) -> int | None:
    """The index of a node in a list, which it is added to; None if there is none."""
    if node is None:
        return None
    if node not in collected:
        collected.append(node)
    return collected.index(node)


def _of_all_rows(writer: _Writer) -> set[int]:
    """What attention reads of as many words as the program's largest value has, from the linear layers on: keys and
    values of few heads are small beside an MLP, but are not what attention is to keep exact."""
    largest = writer.rows_of_values[max(range(len(writer.sizes_of_values)), key=writer.sizes_of_values.__getitem__)]
    found: set[int] = set()
    for step in writer.written:
        for value in step["inputs"][:3] if step["op"] == "attention" else ():
            chain = [value]
            while (maker := writer.makers.get(chain[-1])) is not None and maker["op"] != "linear":
                chain.append(maker["inputs"][0])
            if writer.rows_of_values[chain[-1]] == largest:
                found.update(chain)
    return found


def _read_as_wholes(writer: _Writer, results: list[int]) -> set[int]:
    """Values without inputs of which parts alone are read, and without parts that nobody reads."""
    readers: dict[int, set[str]] = {value: set() for value in range(len(writer.dtypes))}
    for step in writer.written:
        for value in step["inputs"]:
            readers[value].add(step["op"])
    inputs = len(writer.inputs)
    return {*results, *(v for v, ops in readers.items() if ops and (v >= inputs or not ops <= {"split", "select"}))}


def _exact(writer: _Writer, results: list[int]) -> list[int]:
    """The values whose copies are kept exact, by the numbers of their elements."""
    sizes = writer.sizes_of_values
    largest, together, exact = max(sizes[value] for value in _read_as_wholes(writer, results)), 0, []
    for value in sorted(set(range(len(sizes))) - _of_all_rows(writer), key=sizes.__getitem__):
        together += sizes[value]
        if sizes[value] * SMALL > largest or together * SMALL_TOGETHER > largest:
            break
        exact.append(value)
    return sorted(exact)


def _counter_of(norm: fx.Node, step: Step, taken: Sequence[fx.Node]) -> fx.Node | None:
    """The node in front of a batch norm by which its module counts the batch; None if there is none, or if somebody
    else reads the counter."""
    mean = step.buffers.get("running_mean")
    if not step.fields["training"] or mean is None or mean.op != "placeholder":
        return None
    source = source_of(mean)
    if not source.endswith("['running_mean']"):
        return None
    wanted = source.removesuffix("['running_mean']") + "['num_batches_tracked']"
    node = norm.prev
    while node.op in ("call_function", "call_method") and mean not in node.all_input_nodes:
        if _counts(node) and source_of(node.args[0]) == wanted and node not in taken:
            return node if all(_counts(user) for user in node.args[0].users) else None
        node = node.prev
    return None


def _counts(node: fx.Node) -> bool:
    is_one_more = node.op == "call_method" and node.target == "add_" and node.args[1:] == (1,) and not node.kwargs
    return is_one_more and not node.users and node.args[0].op == "placeholder"


def common_path(steps: Sequence[ProgramStep]) -> str:
    """The innermost module that has all of them."""
    paths = [step.path.split(".") if step.path else [] for step in steps]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) != 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def put_into_graph(graph: fx.Graph, programs: Sequence[Program], run: Callable) -> list[fx.Node]:
    """Puts a call of each program where its last node stands, and its results in the place of the nodes that made
    them. Returns the calls."""
    calls: list[fx.Node] = []
    now: dict[fx.Node, fx.Node] = {}
    copies: dict[tuple[int, fx.Node], list[fx.Node]] = {}
    for program in programs:
        lists = [
            [now.get(value, value) for value in program.inputs],
            list(program.parameters),
            list(program.buffers),
            [copy for source in program.imports for copy in copies[source]],
            list(program.integers),
        ]
        with graph.inserting_after(program.nodes[-1]):
            call = graph.call_function(run, (program.text, *lists))
        calls.append(call)
        call.meta["example_value"] = tuple(example(result) for result in program.results)
        outputs = _outputs(graph, call, len(program.results) + sum(count for _, count in program.exports))
        for result, output in zip(program.results, outputs, strict=False):
            output.meta["example_value"] = example(result)
            now[result] = output
            result.replace_all_uses_with(output)
        exported = iter(outputs[len(program.results) :])
        for value, count in program.exports:
            copies[id(program), value] = [next(exported) for _ in range(count)]
    for program in programs:
        for node in program.counters:
            graph.erase_node(node)
        for node in reversed(program.nodes):
            graph.erase_node(node)
    return calls


def _outputs(graph: fx.Graph, call: fx.Node, count: int) -> list[fx.Node]:
    outputs, after = [], call
    for i in range(count):
        with graph.inserting_after(after):
            after = graph.call_function(operator.getitem, (call, i))
        outputs.append(after)
    return outputs
