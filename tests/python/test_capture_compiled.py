"""Converted models in what somebody else compiles: their programs are part of the compiled graphs."""

import copy
import warnings

import actnn
import pytest
import torch
from actnn.capture.call import call_of
from captured_models import Net, check_same, images, mlp, pair
from configurations import eight_bits
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

WAYS = {
    "model": lambda model, **options: torch.compile(model, **options),
    "function": lambda model, **options: torch.compile(lambda x: model(x), **options),
    "method": lambda model, **options: model.compile(**options) or model,
    "around": lambda model, **options: torch.compile(nn.Sequential(model, nn.Identity()), **options),
}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


class Graphs:
    """A backend that keeps the operations of each forward graph that AOTAutograd makes."""

    def __init__(self):
        self.of_forward = []
        self.backend = aot_autograd(fw_compiler=self._forward, bw_compiler=lambda graph, _: make_boxed_func(graph))

    def _forward(self, graph, inputs):
        self.of_forward.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph)

    def programs(self):
        """How many programs each graph has."""
        return [targets.count(torch.ops.actnn.program_forward.default) for targets in self.of_forward]


class Named(nn.Module):
    """Has a result with a name, and paths two levels deep."""

    def __init__(self):
        super().__init__()
        self.net = nn.ModuleDict({"first": Net()})
        self.norm = nn.LayerNorm(2)

    def forward(self, x):
        return {"result": self.norm(self.net["first"](x))}


class Around(nn.Module):
    """Calls a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + 0.0


class Remembering(Net):
    """Changes itself."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        result = super().forward(x)
        self.seen.append(result.detach())
        self.last = result.mean()
        return result


class Broken(Net):
    """Cannot be captured in one graph."""

    def forward(self, x):
        x = self.features(x)
        torch._dynamo.graph_break()
        return self.fc(x.mean((2, 3)))


def converted_as(compiled, model):
    """What is called in its place, with its parameters."""
    called = lambda *args: compiled(*args)  # noqa: E731
    called.parameters, called.zero_grad = model.parameters, model.zero_grad
    return called


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Net, mlp])
def test_the_programs_are_in_the_one_graph(make, way):
    exact, converted, report = pair(make)
    graphs, compile_it = Graphs(), WAYS[way]
    compiled = converted_as(compile_it(converted, backend=graphs.backend, fullgraph=True), converted)
    for _ in range(2):
        check_same(exact, compiled, torch.randn(64, 8) if make is mlp else images())
    assert len(report.graphs) == 1 and graphs.programs() == [len(report.graphs[0].programs)]
    assert graphs.programs()[0] > 0 and not report.graphs[0].error and not report.record.troubles
    _, captured, expected = pair(make)
    captured(torch.randn(64, 8) if make is mlp else images())
    assert report.graphs[0].programs == expected.graphs[0].programs


def test_paths_are_those_of_the_model():
    model = Named()
    report = actnn.convert(model, eight_bits(), skip=["norm", "net.first.fc"])
    graphs = Graphs()
    compiled = torch.compile(lambda x: model(x)["result"].sum(), backend=graphs.backend, fullgraph=True)
    compiled(images()).backward()
    steps = [step for program in report.graphs[0].programs for step in program.steps]
    assert "net.first.conv" in steps and "net.first.bn" in steps and "norm" not in steps
    places = {call.place: call.reason for call in report.graphs[0].outside}
    assert places["norm: layer_norm"] == places["net.first.fc: linear"] == "it is to stay exact"
    assert torch.ops.aten.native_layer_norm.default in graphs.of_forward[0]


class DropsAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.last = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).view(2, 8, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.3)
        return self.last(y.transpose(1, 2).reshape(2, 8, 32))


def test_attention_that_drops_is_in_a_program():
    torch.manual_seed(0)
    model = DropsAttention()
    report = actnn.convert(model, eight_bits())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = compiled(torch.randn(2, 8, 32))
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        (y * weights).sum().backward()
    assert len(report.blocks) == 1
    # The result is linear in the last weight, and in the values: with what backward drops, as with what forward did.
    assert torch.allclose((y * weights).sum(), (model.last.weight * model.last.weight.grad).sum(), rtol=0.05)
    of_values = (model.qkv.weight[64:] * model.qkv.weight.grad[64:]).sum()
    of_values = of_values + (model.qkv.bias[64:] * model.qkv.bias.grad[64:]).sum()
    assert torch.allclose((y * weights).sum(), of_values, rtol=0.05)


def test_the_mode_and_the_sizes_may_change():
    exact, converted, report = pair(Net)
    graphs = Graphs()
    compiled = torch.compile(converted, backend=graphs.backend, fullgraph=True)
    for count in (4, 6, 7, 9):
        check_same(exact, compiled, images(count))
    assert len(graphs.of_forward) == 2  # the second of symbolic sizes
    exact.eval(), converted.eval()
    check_same(exact, compiled, images(5))
    with torch.no_grad():
        assert torch.allclose(compiled(images(1)), exact(images(1)), atol=2.0)
    exact.train(), converted.train()
    check_same(exact, compiled, images(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(images()).dtype == torch.bfloat16
    assert all(graph.programs for graph in report.graphs if not graph.reason)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_forward_that_changes_its_module_keeps_its_programs(way, fullgraph):
    exact, converted, report = pair(Remembering)
    graphs = Graphs()
    compiled = converted_as(WAYS[way](converted, backend=graphs.backend, fullgraph=fullgraph), converted)
    if fullgraph and way != "model":
        with pytest.raises(torch._dynamo.exc.Unsupported, match="side effect"):
            compiled(images())
        return
    for _ in range(2):
        check_same(exact, compiled, images())
    assert len(converted.seen) == 2 and torch.allclose(converted.last, exact.last, atol=1e-4)
    assert graphs.programs() == [len(graph.programs) for graph in report.graphs] and all(graphs.programs())


@pytest.mark.parametrize("way", ["model", "function", "around"])
def test_shallow_copies_run_what_they_are(way):
    class Scaled(Net):
        scale = 1.0

        def forward(self, x):
            return super().forward(x) * self.scale

    exact, converted, _ = pair(Scaled)
    copied = copy.copy(converted)
    copied.scale = exact.scale = 3.0
    check_same(exact, converted_as(WAYS[way](copied, backend="aot_eager"), copied), images())


def test_between_graph_breaks_there_are_programs():
    exact, converted, report = pair(Broken)
    compiled = torch.compile(converted, backend="aot_eager")
    for _ in range(2):
        check_same(exact, compiled, images())
    assert any(graph.programs for graph in report.graphs) and report.record.breaks


def test_a_conversion_and_its_end_are_seen():
    exact, converted, report = pair(Net)
    graphs = Graphs()
    compiled = torch.compile(converted, backend=graphs.backend, fullgraph=True)
    x = images()
    compiled(x).sum().backward()
    again = actnn.convert(converted, eight_bits(), skip=["fc"])
    compiled(x).sum().backward()
    assert len(report.graphs) == len(again.graphs) == 1
    assert {call.place for call in again.graphs[0].outside} == {"fc: linear"}
    actnn.restore(converted)
    check_same(exact, compiled, x, tolerance=1e-4)
    assert graphs.programs()[-1] == 0 and call_of(converted) is None


def test_a_converted_part_is_compiled_with_its_own_settings():
    model = nn.Sequential(mlp(), mlp())
    outer = actnn.convert(model, eight_bits())
    inner = actnn.convert(model[0], eight_bits(), skip=[nn.Linear])
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs.backend, fullgraph=True)
    x = torch.randn(64, 8)
    compiled(x).sum().backward()
    assert len(outer.graphs) == 1 and not inner.graphs[0].error and graphs.programs()[0] > 0
    assert torch.allclose(compiled(x), model[1](model[0](x)), atol=1e-4)


@pytest.fixture
def rank(tmp_path):
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("rank")
@pytest.mark.parametrize("is_inner", [False, True])
def test_graphs_that_are_split_for_ranks(is_inner):
    exact, converted, report = pair(Net)
    parallel = nn.parallel.DistributedDataParallel(Around(converted) if is_inner else converted)
    graphs = Graphs()
    check_same(exact, converted_as(torch.compile(parallel, backend=graphs.backend), converted), images())
    assert not report.record.fallback and not any(graphs.programs())
    if is_inner:  # compressed functions
        targets = {target for graph in graphs.of_forward for target in graph}
        assert not report.graphs and any("actnn" in str(target) for target in targets)
    else:  # programs, uncompiled
        assert report.graphs[0].programs and not graphs.of_forward
    torch._dynamo.reset()
    with torch._dynamo.config.patch(optimize_ddp=False):
        check_same(exact, converted_as(torch.compile(parallel, backend=graphs.backend), converted), images())
    assert graphs.programs()[-1] == len(report.graphs[-1].programs) > 0


def test_what_is_exported_or_captured_around_it_is_exact_or_its_own():
    model = mlp()
    report = actnn.convert(model, eight_bits())
    exported = torch.export.export(model, (torch.randn(4, 8),))
    assert not any("actnn" in str(node.target) for node in exported.graph.nodes) and not report.graphs
