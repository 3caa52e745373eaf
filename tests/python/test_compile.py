"""torch.compile: whole graphs, dynamic shapes, eager mode's gradients, packed tensors between forward and backward."""

import shutil
import sysconfig
from pathlib import Path

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import DEVICES, rng
from torch import nn

# Not the fixture `device`: the default device that it sets would be part of what is compiled.
pytestmark = pytest.mark.parametrize("device", DEVICES)

ops = torch.ops.actnn


def network(x, conv_weight, gamma, matrix, states):
    y = ops.convolution(x, conv_weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, rng_state=states[0])
    y = ops.batch_norm(y, gamma, None, None, None, True, 0.1, 1e-5, 4, 256, "dithered", states[1])
    y = ops.relu(y)
    y = ops.max_pool2d(y, [2, 2])
    y = ops.dropout(y, 0.25, states[2])
    y = ops.adaptive_avg_pool2d(y, [2, 2])
    return ops.linear(y.flatten(1), matrix, None, 4, 256, "dithered", states[3])


def parameters(device):
    tensors = torch.randn(6, 4, 3, 3), torch.rand(6), torch.randn(3, 24)
    return [t.to(device).requires_grad_() for t in tensors]


def states(device):
    return [rng(i, device=device) for i in range(4)]


def needs_compiler(backend, device):
    """Inductor builds C++ for the CPU; for CUDA, Triton builds its launcher against Python's headers."""
    if backend != "inductor":
        return
    if not any(map(shutil.which, ("cc", "gcc", "g++", "clang"))):
        pytest.skip("inductor needs a C++ compiler")
    if device == "cuda" and not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip("Triton needs Python's headers")


def gradients(function, x, tensors):
    x = x.clone().requires_grad_()
    used = states(x.device)
    out = function(x, *tensors, used)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *tensors]), *used]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_network_compiles_whole_and_gives_the_gradients_of_eager_mode(backend, dynamic, device):
    needs_compiler(backend, device)
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=dynamic)
    tensors = parameters(device)
    for batch in (2, 3, 5) if dynamic else (2, 2):
        x = torch.randn(batch, 4, 8, 8, device=device)
        for actual, expected in zip(gradients(compiled, x, tensors), gradients(network, x, tensors), strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)


def test_dynamic_shapes_do_not_recompile(device):
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=True)
    tensors = parameters(device)
    gradients(compiled, torch.randn(7, 4, 8, 8, device=device), tensors)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (5, 9, 11):
            gradients(compiled, torch.randn(batch, 4, 8, 8, device=device), tensors)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_backward_receives_packed_tensors(backend, device):
    needs_compiler(backend, device)
    torch._dynamo.reset()

    def layers(x, first, second):
        y = ops.linear(x, first, None, 2, 256, "dithered", None)
        return ops.linear(ops.relu(y), second, None, 2, 256, "dithered", None)

    x = torch.randn(512, 64, device=device)
    first, second = (torch.randn(shape, device=device, requires_grad=True) for shape in ((128, 64), (32, 128)))
    compiled = torch.compile(layers, backend=backend, fullgraph=True)
    saved = {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = compiled(x, first, second)
    activations = sum(t.untyped_storage().nbytes() for t in saved.values() if not (t.is_leaf and t.requires_grad))
    exact = 4 * (x.numel() + 512 * 128)
    assert activations < exact / 8
    y.sum().backward()
    assert torch.isfinite(first.grad).all()


def test_compiled_noise_is_fresh_at_every_call(device):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, w: ops.linear(x, w, None, 1, 256, "dithered", None), backend="aot_eager", fullgraph=True
    )
    x, weight = torch.randn(8, 64, device=device), torch.randn(3, 64, device=device, requires_grad=True)
    first, second = (torch.autograd.grad(compiled(x, weight).sum(), weight)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_evaluation_compiles(device):
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x, tensors = torch.randn(2, 4, 8, 8, device=device), parameters(device)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, *tensors, states(device)), network(x, *tensors, states(device)))


def test_compiled_autograd_gives_the_same_gradients(device):
    torch._dynamo.reset()
    x, weight = torch.randn(16, 8, device=device), torch.randn(4, 8, device=device, requires_grad=True)

    def gradient():
        y = F.gelu(ops.relu(ops.linear(x, weight, None, 4, 256, "dithered", rng(device=device))))
        weight.grad = None
        y.sum().backward()
        return weight.grad

    expected = gradient()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        torch.testing.assert_close(gradient(), expected)


def test_kinds_of_layers_do_not_share_the_limit_of_recompilations(device):
    torch._dynamo.reset()
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 5), nn.Softmax(-1),
    ).to(device)  # fmt: skip
    actnn.convert(model, actnn.Config("L3"))
    compiled = torch.compile(model, backend="aot_eager")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for batch in (4, 4, 6):
            compiled(torch.randn(batch, 3, 16, 16, device=device)).square().sum().backward()
