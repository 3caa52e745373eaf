"""torch.compile: whole graphs, dynamic shapes, eager mode's gradients, packed tensors between forward and backward."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

ops = torch.ops.actnn


def rng(seed=7):
    return torch.tensor([seed, 0], dtype=torch.int64)


def network(x, conv_weight, gamma, matrix, states):
    y = ops.convolution(x, conv_weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, 4, 256, True, states[0])
    y = ops.batch_norm(y, gamma, None, None, None, True, 0.1, 1e-5, 4, 256, True, states[1])
    y = ops.relu(y)
    y = ops.max_pool2d(y, [2, 2])
    y = ops.dropout(y, 0.25, states[2])
    y = ops.adaptive_avg_pool2d(y, [2, 2])
    return ops.linear(y.flatten(1), matrix, None, 4, 256, True, states[3])


def parameters():
    return [torch.randn(6, 4, 3, 3, requires_grad=True), torch.rand(6, requires_grad=True),
            torch.randn(3, 24, requires_grad=True)]  # fmt: skip


def states():
    return [rng(i) for i in range(4)]


def gradients(function, x, tensors):
    x = x.clone().requires_grad_()
    used = states()
    out = function(x, *tensors, used)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *tensors]), *used]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_network_compiles_whole_and_gives_the_gradients_of_eager_mode(backend, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend, fullgraph=True, dynamic=dynamic)
    tensors = parameters()
    for batch in (2, 3, 5) if dynamic else (2, 2):
        x = torch.randn(batch, 4, 8, 8)
        for actual, expected in zip(gradients(compiled, x, tensors), gradients(network, x, tensors), strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)


def test_dynamic_shapes_do_not_recompile():
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=True)
    tensors = parameters()
    gradients(compiled, torch.randn(7, 4, 8, 8), tensors)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (5, 9, 11):
            gradients(compiled, torch.randn(batch, 4, 8, 8), tensors)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_backward_receives_packed_tensors(backend):
    torch._dynamo.reset()

    def layers(x, first, second):
        y = ops.linear(x, first, None, 2, 256, True, None)
        return ops.linear(ops.relu(y), second, None, 2, 256, True, None)

    x = torch.randn(512, 64)
    first, second = torch.randn(128, 64, requires_grad=True), torch.randn(32, 128, requires_grad=True)
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


def test_compiled_noise_is_fresh_at_every_call():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, w: ops.linear(x, w, None, 1, 256, True, None), backend="aot_eager", fullgraph=True
    )
    x, weight = torch.randn(8, 64), torch.randn(3, 64, requires_grad=True)
    first, second = (torch.autograd.grad(compiled(x, weight).sum(), weight)[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_evaluation_compiles():
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x, tensors = torch.randn(2, 4, 8, 8), parameters()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, *tensors, states()), network(x, *tensors, states()))


def test_compiled_autograd_gives_the_same_gradients():
    torch._dynamo.reset()
    x, weight = torch.randn(16, 8), torch.randn(4, 8, requires_grad=True)

    def gradient():
        y = F.gelu(ops.relu(ops.linear(x, weight, None, 4, 256, True, rng())))
        weight.grad = None
        y.sum().backward()
        return weight.grad

    expected = gradient()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        torch.testing.assert_close(gradient(), expected)
