"""Converted modules in what somebody else compiles: the model, or a function that calls it.

TorchDynamo traces a converted module's call into a graph of its own inside of the caller's, and the compiler, when it
traces on, is given what has become of that graph. So programs are part of whatever is compiled, by any backend.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import fx, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from .backend import Root, Settings, compile_graph
from .compilation import splits_graphs
from .dynamo import is_capturing
from .records import Record
from .values import PATH, SOURCE

AS_IT_IS, WITH_FUNCTIONS, WITH_PROGRAMS = "as it is", "with compressed functions", "with programs"
NOT_AT_ALL = "not at all"
LOWERED = "actnn_lowered"
"""Where a graph's `meta` has what runs in its place: compilers ask more than once."""


class Converted(Protocol):
    """What leads the calls of a converted module."""

    settings: Settings
    record: Record

    @property
    def module(self) -> nn.Module | None: ...


_numbers = itertools.count()
_calls: weakref.WeakValueDictionary[str, Converted] = weakref.WeakValueDictionary()


def traced_as(name: str) -> str:
    """How a converted module is traced here and now: as it is for exports, and in the graph of one around it.

    Not at all if it is a shallow copy that is called, which shares the module's call: run, that one sees who calls it.

    Asked when the trace is made, and a constant for TorchDynamo, which itself answers `is_exporting` with yes, always,
    in older versions. What splits a graph for DistributedDataParallel takes no graphs inside of it.
    """
    if _caller() not in (None, _calls[name].module):
        return NOT_AT_ALL
    if torch.compiler.is_exporting() or is_capturing():
        return AS_IT_IS
    return WITH_FUNCTIONS if splits_graphs() else WITH_PROGRAMS


def _caller() -> nn.Module | None:
    """The module whose call TorchDynamo is tracing."""
    tx = torch._dynamo.symbolic_convert.InstructionTranslator.current_tx().output.current_tx
    while tx is not None and tx.f_code is not nn.Module._wrapped_call_impl.__code__:
        tx = getattr(tx, "parent", None)
    found = tx and tx.symbolic_locals.get("self")
    return getattr(found.realize(), "value", None) if found else None


def name_of_call(call: Converted) -> str:
    """By which the functions here know it: constants only, which TorchDynamo can put into a graph."""
    name = f"{next(_numbers)}"  # numbers become symbols
    _calls[name] = call
    return name


def lowered_for(name: str) -> Callable:
    """What lowers the graphs of a module's calls."""
    return functools.partial(_lowered, name)


def _lowered(name: str, inner: fx.GraphModule) -> Callable:
    call = _calls[name]
    if LOWERED not in inner.meta:
        settings = replace(call.settings, compile=None, is_traced=True)
        cause = "torch.compile has traced a call of the model"
        with _disable_current_modes():  # of the compiler, for examples
            inputs = _locate(inner.graph, call.module)
            inner.meta[LOWERED] = compile_graph(inner, inputs, settings, call.record, cause, Root())
    return inner.meta[LOWERED]


def _locate(graph: fx.Graph, module: nn.Module) -> list:
    """Says of calls which part of the module they are in, and of placeholders which buffer they are, by their identity:
    the names are those of whoever called the module. Returns examples of the placeholders."""
    paths = {str(id(part)): path for path, part in module.named_modules()}
    for node in graph.nodes:
        parts = [key.partition("@")[0] for key in node.meta.get("nn_module_stack", ())]
        node.meta[PATH] = next((paths[part] for part in reversed(parts) if part in paths), "")
    placeholders = graph.find_nodes(op="placeholder")
    inputs = [node.meta["example_value"] for node in placeholders]
    mode = next((example.fake_mode for example in inputs if isinstance(example, FakeTensor)), None)
    if mode is not None:
        buffers = {path: b for path, b in module.named_buffers() if b.layout == torch.strided and not b.is_nested}
        fakes = {id(mode.from_tensor(buffer, static_shapes=True)): path for path, buffer in buffers.items()}
        for node, example in zip(placeholders, inputs, strict=True):
            if path := fakes.get(id(example)):
                owner, _, name = path.rpartition(".")
                node.meta[SOURCE] = f"{owner}._buffers['{name}']"
    return inputs
