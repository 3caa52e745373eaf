"""actnn.CompressFunctions: functional calls keep less, and give what torch's give."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn import CompressFunctions
from actnn.functional import REDIRECTED
from devices import DEVICES
from saved_memory import packed_bytes, saved_bytes

X2 = (4, 8, 10, 10)

# name: (call, shapes of x and other tensors, bytes kept at 2 bits besides the tensors themselves; None: torch's own)
EXACT = {
    "F.relu": (lambda x: F.relu(x), [X2], 400),
    "F.relu inplace": (lambda x: F.relu(x * 1, inplace=True), [X2], 400),
    "torch.relu": (lambda x: torch.relu(x), [X2], 400),
    "Tensor.relu": (lambda x: x.relu(), [X2], 400),
    "Tensor.relu_": (lambda x: (x * 1).relu_(), [X2], 400),
    "torch.relu_": (lambda x: torch.relu_(x * 1), [X2], 400),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.1), [X2], 400),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x * 1, 0.1), [X2], 400),
    "F.hardtanh_": (lambda x: F.hardtanh_(x * 1, -0.5, 0.5), [X2], 400),
    "F.max_pool2d": (lambda x: F.max_pool2d(x, 2), [X2], 800),
    "F.max_pool2d stride": (lambda x: F.max_pool2d(x, (3, 2), 1, padding=1, ceil_mode=True), [X2], 4 * 8 * 10 * 11),
    "F.max_pool2d indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], [X2], None),
    "torch.max_pool2d": (lambda x: torch.max_pool2d(x, (2,), stride=(2, 2)), [X2], 800),
    "F.avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), [X2], 0),
    "F.avg_pool2d divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), [X2], 0),
    "F.avg_pool3d": (lambda x: F.avg_pool3d(x, 2), [(2, 3, 4, 6, 6)], 0),
    "F.adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, None)), [X2], 0),
    "F.adaptive_avg_pool2d 1": (lambda x: F.adaptive_avg_pool2d(x, 1), [X2], 0),
    "F.adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, 2), [(2, 3, 4, 6, 6)], 0),
    "F.dropout evaluation": (lambda x: F.dropout(x, 0.5, training=False), [X2], 0),
    "F.dropout 0": (lambda x: F.dropout(x, 0.0), [X2], None),
}  # fmt: skip

# The weight's gradient comes from a copy: what is kept of the input is packed.
COPIES = {
    "F.conv1d": (lambda x, w: F.conv1d(x, w, padding=1), [(4, 8, 64), (6, 8, 3)]),
    "F.conv2d": (lambda x, w: F.conv2d(x, w, stride=2, padding=(1, 0), dilation=(1, 2)), [X2, (6, 8, 3, 3)]),
    "F.conv2d same": (lambda x, w: F.conv2d(x, w, padding="same", dilation=2), [X2, (6, 8, 3, 5)]),
    "F.conv2d valid": (lambda x, w: F.conv2d(x, w, None, 1, "valid"), [X2, (6, 8, 3, 3)]),
    "torch.conv2d groups": (lambda x, w: torch.conv2d(x, w, groups=2), [X2, (6, 4, 3, 3)]),
    "F.conv3d": (lambda x, w: F.conv3d(x, w), [(2, 4, 4, 8, 8), (4, 4, 3, 3, 3)]),
    "F.conv_transpose2d": (lambda x, w: F.conv_transpose2d(x, w, stride=2, output_padding=1), [X2, (8, 4, 3, 3)]),
    "F.conv_transpose1d": (lambda x, w: F.conv_transpose1d(x, w, None, 2, 1, 1, 2, 1), [(4, 8, 64), (8, 3, 3)]),
    "F.linear": (lambda x, w: F.linear(x, w), [(16, 4, 32), (8, 32)]),
    "F.batch_norm": (lambda x, w: F.batch_norm(x, None, None, w, training=True), [X2, (8,)]),
    "torch.batch_norm": (lambda x, w: torch.batch_norm(x, w, None, None, None, True, 0.1, 1e-5, True), [X2, (8,)]),
}  # fmt: skip

# Calls that stay torch's own, bit for bit.
UNTOUCHED = {
    "float64": (lambda x: F.relu(x.double()), [X2]),
    "conv2d same, even kernel": (lambda x, w: F.conv2d(x, w, padding="same"), [X2, (6, 8, 2, 2)]),
    "conv2d without a batch": (lambda x, w: F.conv2d(x, w), [X2[1:], (6, 8, 3, 3)]),
    "linear with a vector": (lambda x, w: F.linear(x, w), [(6, 8), (8,)]),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), [(3, 4, 8)]),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), [(2, 5, 8)]),
}  # fmt: skip


def tensors(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    made = [tensor.to(torch.get_default_device(), dtype) for tensor in made]
    return [t.requires_grad_() for t in made]


def outputs_and_gradients(call, inputs):
    """The loss is not the sum of squares: batch normalization leaves that constant."""
    output = call(*inputs)
    weights = torch.arange(output.numel(), dtype=output.dtype).cos().view_as(output)
    return output, torch.autograd.grad(output, inputs, weights)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_functions(name, dtype, device):
    call, shapes, kept = EXACT[name]
    if dtype == torch.bfloat16 and "pool3d" in name:
        pytest.skip("torch has no such pooling on the CPU")
    inputs = tensors(shapes, dtype)
    expected = outputs_and_gradients(call, inputs)
    with CompressFunctions(bits=2):
        actual = outputs_and_gradients(call, inputs)
        bytes_kept, _ = saved_bytes(lambda: call(*inputs))
    # Where windows overlap, CUDA adds in another order at every run.
    tolerance = {"rtol": 0.02, "atol": 0.03} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(actual, expected, **tolerance)
    if kept is not None:
        assert bytes_kept == kept


@pytest.mark.parametrize("name", COPIES)
def test_functions_that_keep_a_copy(name, device):
    call, shapes = COPIES[name]
    inputs = tensors(shapes)
    expected, gradients = outputs_and_gradients(call, inputs)
    with CompressFunctions(bits=8):
        actual, from_copies = outputs_and_gradients(call, inputs)
    torch.testing.assert_close(actual, expected)
    for gradient, from_copy in zip(gradients, from_copies, strict=True):
        assert (from_copy - gradient).norm() < 0.05 * gradient.norm()
        assert gradient.dtype == from_copy.dtype and gradient.shape == from_copy.shape
    before, _ = saved_bytes(lambda: call(inputs[0] * 1, inputs[1]))
    with CompressFunctions(bits=2, group_size=64):
        after, _ = saved_bytes(lambda: call(inputs[0] * 1, inputs[1]))
    assert before >= inputs[0].nbytes
    assert after <= packed_bytes(inputs[0].numel(), 2, 64) + 4 * 8  # the copy; 1 / deviation


@pytest.mark.parametrize("name", UNTOUCHED)
def test_everything_else_is_torchs_own(name, device):
    call, shapes = UNTOUCHED[name]
    inputs = tensors(shapes)
    expected = outputs_and_gradients(call, inputs)
    with CompressFunctions():
        actual = outputs_and_gradients(call, inputs)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_out_arguments_are_torchs_own():
    x, weight, out = torch.randn(3, 4), torch.randn(2, 4), torch.empty(3, 2)
    with CompressFunctions():
        assert F.linear(x, weight, out=out) is out
    assert torch.equal(out, F.linear(x, weight))


def test_what_the_operations_cannot_do_is_torchs_own(device):
    x = torch.randn(3, 4)
    nested = torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged, requires_grad=True)
    with CompressFunctions():
        assert torch.equal(torch.func.grad(lambda t: F.relu(t).sum())(x), (x > 0).float())
        assert torch.equal(torch.vmap(F.relu)(x), F.relu(x))
        assert torch.equal(torch.relu(x.to_sparse()).to_dense(), F.relu(x))
        F.relu(nested).values().sum().backward()
    assert torch.equal(nested.grad.values(), (torch.cat([x, x[:2]]) > 0).float())


def test_dropout_keeps_its_random_state_only(device):
    x = torch.randn(1000, 100, requires_grad=True)
    calls = [
        lambda: F.dropout(x, 0.25),
        lambda: torch.dropout(x, 0.25, True),
        lambda: F.dropout(x * 1, 0.25, inplace=True),
    ]
    for call in calls:
        with CompressFunctions():
            kept, y = saved_bytes(call)
        assert kept == 16
        share = (y != 0).float().mean().item()
        assert abs(share - 0.75) < 6 * math.sqrt(0.25 * 0.75 / x.numel())
        (grad,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(grad, (y != 0) / 0.75)


def test_nothing_is_kept_that_no_gradient_needs(device):
    x, weight = torch.randn(8, 32), torch.randn(4, 32)
    with CompressFunctions():
        assert saved_bytes(lambda: F.linear(x, weight))[0] == 0
        with torch.no_grad():
            assert saved_bytes(lambda: F.relu(F.linear(x, weight.clone().requires_grad_())))[0] == 0
        assert not F.relu(x).requires_grad and F.relu(x.clone().requires_grad_()).requires_grad


def test_layers_of_a_model_are_covered(device):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(inplace=True),
        torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(8 * 64, 5),
    )  # fmt: skip
    x = torch.randn(8, 3, 16, 16)
    expected, exact = saved_bytes(lambda: model(x))[::-1]
    statistics = model[1].running_mean.clone()
    with CompressFunctions(bits=2):
        compressed, actual = saved_bytes(lambda: model(x))
    torch.testing.assert_close(actual, expected)
    assert compressed < exact / 8
    assert not torch.equal(statistics, model[1].running_mean)
    actual.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_autocast(device):
    x, weight = torch.randn(16, 32, requires_grad=True), torch.randn(8, 32, requires_grad=True)
    with torch.autocast(device, torch.bfloat16), CompressFunctions(bits=8):
        y = F.relu(F.linear(x, weight))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


def model(x, weight, matrix):
    y = F.relu(F.conv2d(x, weight, padding=1) - 0.5)
    return F.linear(F.adaptive_avg_pool2d(F.max_pool2d(y, 2), 2).flatten(1), matrix)


def model_under_the_mode(x, weight, matrix):
    with CompressFunctions(bits=8):
        return model(x, weight, matrix)


@pytest.mark.parametrize("device_type", DEVICES)
@pytest.mark.parametrize("inside", [False, True])
def test_compile_traces_the_redirected_calls(inside, device_type):
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    x, weight, matrix = (torch.randn(s, device=device_type) for s in [(2, 3, 8, 8), (4, 3, 3, 3), (5, 16)])
    torch._dynamo.reset()
    if inside:
        y = torch.compile(model_under_the_mode, backend=backend, fullgraph=True)(x, weight, matrix)
    else:
        with CompressFunctions(bits=8):
            y = torch.compile(model, backend=backend, fullgraph=True)(x, weight, matrix)
    torch.testing.assert_close(y, model(x, weight, matrix))
    (graph,) = graphs
    assert [name for name in graph if name.startswith("actnn.")] == [
        "actnn.convolution", "actnn.relu", "actnn.max_pool2d", "actnn.adaptive_avg_pool2d", "actnn.linear"
    ]  # fmt: skip


@pytest.mark.parametrize("device_type", DEVICES)
def test_compile_gives_gradients(device_type):
    inputs = [torch.randn(s, device=device_type, requires_grad=True) for s in [(2, 3, 8, 8), (4, 3, 3, 3), (5, 16)]]
    torch._dynamo.reset()
    with CompressFunctions(bits=8):
        output = torch.compile(model, backend="aot_eager", fullgraph=True)(*inputs)
    expected = torch.autograd.grad(model(*inputs).square().sum(), inputs)
    for actual, exact in zip(torch.autograd.grad(output.square().sum(), inputs), expected, strict=True):
        assert (actual - exact).norm() < 0.02 * exact.norm()


def test_the_arguments_are_those_of_torch():
    for function, redirected in REDIRECTED.items():
        if inspect.isfunction(function) and "kwargs" not in inspect.signature(function).parameters:
            ours = [name for name in inspect.signature(redirected).parameters if name not in ("quantization", "out")]
            assert ours == list(inspect.signature(function).parameters), function


@pytest.mark.parametrize(("arguments", "message"), [
    ({"bits": 0}, "bits must be an integer in 1..8, got 0"),
    ({"bits": 9}, "bits must be an integer in 1..8, got 9"),
    ({"bits": 2.5}, "bits must be an integer in 1..8, got float 2.5"),
    ({"bits": "4"}, "bits must be an integer in 1..8, got str '4'"),
    ({"group_size": 100}, "group_size must be a positive multiple of 32, got 100"),
    ({"group_size": 0}, "group_size must be a positive multiple of 32, got 0"),
    ({"group_size": 64.0}, "group_size must be a positive multiple of 32, got 64.0"),
    ({"group_size": None}, "group_size must be a positive multiple of 32, got None"),
    ({"rounding": None}, 'rounding must be "dithered", "stochastic" or "nearest", got NoneType None'),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    number = all(isinstance(value, int) for value in arguments.values())
    with pytest.raises(ValueError if number else TypeError, match=message):
        CompressFunctions(**arguments)


def test_a_rounding_that_there_is_not():
    with pytest.raises(ValueError, match='rounding must be "dithered", "stochastic" or "nearest", got str \'up\''):
        CompressFunctions(rounding="up")


def test_errors_are_raised_as_outside():
    with CompressFunctions(), pytest.raises(TypeError):
        F.linear(torch.ones(2, 2))
    with CompressFunctions(), pytest.raises((RuntimeError, ValueError)):
        F.linear(torch.ones(2, 3), torch.ones(2, 2))
    assert F.relu(torch.ones(1)).item() == 1  # and the mode has ended
