"""Captured models beside their exact twins, with programs computed by torch's functions."""

import copy
import types
from dataclasses import replace

import reference_programs
import torch
from actnn.capture.lowering import LoweringOptions, lower

OPTIONS = LoweringOptions(
    run=reference_programs.run_program, describe=reference_programs.describe_program, replaces_functions=False
)


def _call(module, *args, **kwargs):
    return type(module)._call_impl(module, *args, **kwargs)


def captured(model, **options):
    """What calls the model through its lowered graphs, and the list that these are added to."""
    lowered = []

    def backend(graph, inputs):
        lowered.append(lower(graph, replace(OPTIONS, **options)))
        return lowered[-1].module.forward

    code = _call.__code__.replace(co_name=f"{type(model).__name__}_{id(lowered)}")
    entry = torch._dynamo.optimize(backend)(types.FunctionType(code, _call.__globals__))
    return lambda *args, **kwargs: entry(model, *args, **kwargs), lowered


def outcome(call, model, inputs, **kwargs):
    """Results, gradients of inputs and parameters, and buffers."""
    inputs = [x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    torch.manual_seed(0)
    results = [t for t in torch.utils._pytree.tree_leaves(call(*inputs, **kwargs)) if isinstance(t, torch.Tensor)]
    model.zero_grad()
    torch.manual_seed(0)
    sum((t * torch.linspace(-1, 1, t.numel()).reshape(t.shape)).sum() for t in results).backward()
    gradients = [x.grad for x in inputs if x.is_floating_point()] + [p.grad for p in model.parameters()]
    return [*results, *gradients, *(buffer.clone() for buffer in model.buffers())]


def assert_computes_the_same(model, *inputs, graphs=1, **kwargs):
    """Calls the model and its lowered form; returns the lowered graphs."""
    exact = copy.deepcopy(model)
    call, lowered = captured(model)
    reference_programs.runs.clear()
    found = outcome(call, model, inputs, **kwargs)
    assert len(lowered) == graphs
    assert len(reference_programs.runs) == sum(len(one.programs) for one in lowered)
    for a, b in zip(found, outcome(exact, exact, inputs, **kwargs), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    return lowered


VIEWS = {"reshape", "permute", "flatten", "unsqueeze", "squeeze", "select", "split", "chunk", "unbind"}


def programs(lowered):
    """The steps of each program, without views."""
    return [
        " ".join(step.path if step.is_layer else step.op for step in program.steps if step.op not in VIEWS)
        for graph in lowered
        for program in graph.programs
    ]


def outside(lowered):
    """Function and reason of what is in no program."""
    return {(call.target, call.reason) for graph in lowered for call in graph.outside}
