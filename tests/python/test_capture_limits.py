"""Where the graph is not, or not any more, captured; errors; other users of TorchDynamo."""

import copy
import os
import subprocess
import sys
import textwrap

import actnn
import pytest
import torch
from actnn.capture import backend, dynamo
from captured_models import Net, check_same, images, mlp, pair
from configurations import eight_bits
from saved_memory import saved_bytes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Named(nn.Module):
    """Captured anew for each name."""

    def __init__(self):
        super().__init__()
        self.linear, self.name = nn.Linear(64, 64), "a"

    def forward(self, x):
        return self.linear(x).sigmoid() if self.name else x


def test_the_limit_of_captures_is_never_reached_silently():
    exact, converted, report = pair(Named)
    x = torch.randn(64, 64)
    limit = torch._dynamo.config.recompile_limit
    with pytest.warns(UserWarning, match=r"recompile_limit.*module\.name == ") as said:
        for i in range(limit + 4):
            converted.name = f"name {i}"
            check_same(exact, converted, x)
    assert len(said) == 1 and len(report.graphs) == limit and "recompile_limit" in str(report)
    kept = report.measure(converted, lambda: converted(x).sum())
    assert kept.total < 0.6 * actnn.measure_kept_bytes(exact, lambda: exact(x).sum()).total


def test_many_models_do_not_share_limits():
    models = [mlp() for _ in range(12)]
    reports = [actnn.convert(model) for model in models]
    for model in models:
        for count in (2, 3, 4):
            model(torch.randn(count, 8))
    assert [len(report.graphs) for report in reports] == [2] * 12


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        return x + self.layers(x)


class Cut(nn.Module):
    """Its layers are cut from one another, by their hooks."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(Residual() for _ in range(layers))
        for layer in self.layers:
            layer.register_forward_pre_hook(torch._dynamo.disable(lambda *_: None))

    def forward(self, x):
        x = activated(x)
        for layer in self.layers:
            x = layer(x)
        return activated(x)


def activated(x):
    """Says how it ran, without gradients."""
    is_captured = torch.compiler.is_compiling() and not x.requires_grad
    return torch.sigmoid(x) + is_captured


def test_layers_with_one_forward_do_not_share_limits(monkeypatch):
    monkeypatch.setattr(dynamo, "NESTED_LIMIT", 2)
    exact, converted, report = pair(lambda: Cut(3))
    with torch._dynamo.config.patch(recompile_limit=2):
        for count in (2, 3):
            check_same(exact, converted, torch.randn(count, 8, 8))
    layers = {block.name.partition("#")[0] for block in report.blocks}
    assert layers == {"layers.0", "layers.1", "layers.2"} and not report.record.fallback


def test_functions_between_breaks_that_save_nothing_run_as_they_are():
    exact, converted, report = pair(lambda: Cut(2))
    for _ in range(3):
        check_same(exact, converted, torch.randn(2, 8, 8))
    assert len(report.graphs) == 3  # of the layers, and of the function where something is saved


def test_errors_are_the_models_own():
    class Failing(Net):
        def forward(self, x, fails=False):
            y = super().forward(x)
            if fails:
                raise KeyError("of the model")
            return y

    exact, converted, report = pair(Failing)
    x = images()
    for _ in range(5):
        with pytest.raises(KeyError, match="of the model"):
            converted(x, True)
        with pytest.raises(RuntimeError, match="channels"):
            converted(torch.randn(4, 2, 8, 8))
        with pytest.raises(TypeError):
            converted()
    check_same(exact, converted, x)
    assert len(report.graphs) == 1 and not report.record.fallback and not report.record.troubles


def test_an_error_of_the_backend_is_none_of_the_models(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("in here")

    exact, converted, report = pair(Net)
    monkeypatch.setattr(backend, "_options", fail)
    with pytest.warns(UserWarning, match="ZeroDivisionError: in here"):
        check_same(exact, converted, images())
    assert "ZeroDivisionError: in here" in str(report) and report.without_blocks["graph 0"]


def test_after_an_error_of_programs_functions_are_compressed(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("in here")

    exact, converted, report = pair(Net)
    monkeypatch.setattr("actnn.capture.lowering.find_programs", fail)
    with pytest.warns(UserWarning, match="runs with compressed functions, without blocks.*ZeroDivisionError: in here"):
        check_same(exact, converted, images())
    assert "no blocks: ZeroDivisionError: in here" in str(report)
    ours, theirs = (saved_bytes(lambda model=model: model(images()))[0] for model in (converted, exact))
    assert ours < theirs / 2


def test_transforms_tracers_and_dispatch_modes_get_the_model_itself():
    exact, converted, report = pair(mlp)
    x = torch.randn(4, 8)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.allclose(transform(converted)(x), transform(exact)(x), atol=1e-5)
    assert torch.allclose(torch.jit.trace(converted, x)(x), exact(x), atol=1e-5)
    assert torch.allclose(torch.fx.symbolic_trace(converted)(x), exact(x), atol=1e-5)
    exported = torch.export.export(converted, (x,))
    assert not any("actnn" in str(node.target) for node in exported.graph.nodes)
    with FlopCounterMode(display=False) as counter:
        converted(x)
    assert counter.get_total_flops() > 0 and not report.record.fallback
    check_same(exact, converted, x)
    assert not report.graphs[-1].reason and not report.record.troubles


def test_a_compiler_gets_the_graph_with_blocks():
    model, x = mlp(), torch.randn(4, 8)
    report = actnn.convert(model, compile="aot_eager")
    model(x).sum().backward()
    assert len(report.graphs) == 1 and not report.graphs[0].error
    with pytest.raises(ValueError, match=r"must be a backend of torch\.compile, got 'nothing'"):
        actnn.convert(model, compile="nothing")
    with pytest.raises(ValueError, match="compile needs blocks"):
        actnn.convert(model, blocks=False, compile="inductor")
    with pytest.raises(TypeError, match="must be the name of a backend"):
        actnn.convert(model, compile=3)


def test_dynamos_settings_stay():
    before = torch._dynamo.config.optimize_ddp, torch._dynamo.config.fail_on_recompile_limit_hit
    exact, converted, _ = pair(Net)
    check_same(exact, converted, images())
    assert (torch._dynamo.config.optimize_ddp, torch._dynamo.config.fail_on_recompile_limit_hit) == before


def test_a_configuration_may_change():
    config = eight_bits()
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()), torch.randn(64, 64)
    report = actnn.convert(model, config)
    eight = report.measure(model, lambda: model(x).sum()).total
    config.activation_compression_bits = [4]
    assert report.measure(model, lambda: model(x).sum()).total < 0.7 * eight
    config.compress_activation = False
    assert report.measure(model, lambda: model(x).sum()).total > 2 * eight
    assert "compress_activation must be True" in str(report)


def test_first_calls_in_threads():
    script = """
        import threading, torch, actnn
        from captured_models import Net, images
        torch.set_num_threads(1)
        model = Net().eval()
        x = images()
        wanted = model(x).detach()
        actnn.convert(model)
        results, barrier = [], threading.Barrier(4)
        def work():
            barrier.wait()
            for _ in range(4):
                results.append(torch.allclose(model(x), wanted, atol=1e-4))
        for _ in range(2):
            threads = [threading.Thread(target=work) for _ in range(4)]
            [thread.start() for thread in threads], [thread.join() for thread in threads]
            model(x)
        assert results == [True] * 32, results
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment, timeout=200)


def test_batches_of_gradients_go_through_blocks_one_by_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    exact = copy.deepcopy(model)
    actnn.convert(model, actnn.Config("L2", activation_compression_bits=[8]))
    x = torch.randn(5, 6)
    out = model(x)
    assert out.grad_fn.name() == "ActnnBlockBackward"
    ones = torch.eye(out.numel()).view(-1, *out.shape)
    gradients = torch.autograd.grad(out, list(model.parameters()), ones, is_grads_batched=True)
    wanted = torch.autograd.grad(exact(x), list(exact.parameters()), ones, is_grads_batched=True)
    for actual, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.05)
