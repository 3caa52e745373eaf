"""Batch norm with the activations whose derivatives are packed: torch's forward, gradients of the copies."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import assert_same_bits, rng
from layer_checks import DTYPES, assert_unbiased, ops, saved_bytes

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(16, 8), (5, 3, 9), (2, 40, 5, 5), (2, 64, 8, 8), (3, 100, 2, 2), (3, 256, 2, 2)]
FUNCTIONS = {"relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
RANGES = {"relu6": (0.0, 1.0), "silu": (-0.09984, 1.09984), "hardswish": (-0.5, 1.5)}


def parameters(channels):
    """Weights of both signs and sizes, so that results reach both flat parts; 0 among them."""
    weight = torch.tensor([3.0, -2.0, 0.0, 1e-3, 5.0, 0.3])[torch.arange(channels) % 6]
    bias = torch.tensor([0.5, 2.5, 1.5, -0.7, 0.0])[torch.arange(channels) % 5]
    return weight.requires_grad_(), bias.requires_grad_()


def exact(x, weight, bias, activation, mean=None, var=None, training=True):
    return FUNCTIONS[activation](F.batch_norm(x.float(), mean, var, weight, bias, training, 0.1, 1e-5))


def run(x, weight, bias, activation, bits=4, derivative_bits=4, state=None, running=(None, None), training=True):
    return ops.batch_norm_act(x, weight, bias, *running, training, 0.1, 1e-5, 0.0, bits, True, state, activation,
                              derivative_bits)  # fmt: skip


def planes_of(activation, derivative_bits):
    return 1 if activation == "relu6" else derivative_bits


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_forward_is_torchs(shape, dtype, activation, training):
    x = (torch.randn(shape) * 2 + 1).to(dtype).requires_grad_()
    weight, bias = parameters(shape[1])
    running = torch.randn(shape[1]), torch.rand(shape[1]) + 0.5
    expected = exact(x, weight, bias, activation, *(r.clone() for r in running), training)
    y = run(x, weight, bias, activation, running=[r.clone() for r in running], training=training)
    assert y.dtype == dtype and y.shape == x.shape
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        kept = [r.clone() for r in running]
        assert torch.equal(run(x, weight, bias, activation, running=kept, training=training), y)


def kept(x, weight, bias, activation, bits, derivative_bits, state):
    """(d, x-hat) as kept: gradients of z for gradients of 1, and what the input's gradient has of the copies."""
    matrix = x.movedim(1, -1).reshape(-1, x.shape[1]).contiguous()
    has_bend = activation == "relu6"
    channels, decode, _ = ops.norm_act_channels(*ops.channel_moments(matrix), weight, bias, 1e-5, has_bend)
    planes = planes_of(activation, derivative_bits)
    _, packed = ops.norm_act(matrix, None, channels, 1.0, bits, True, True, state, activation, planes)
    of_d, of_s = torch.zeros(2, x.shape[1], 4)
    of_d[:, 0], of_s[:, 1] = 1, 1
    of_d[:, 3] = of_s[:, 3] = decode[:, 4]
    d, s = (
        ops.norm_act_input_gradient(packed, g, None, numbers, 1.0, bits, activation=activation, derivative_bits=planes)
        for g, numbers in ((torch.ones_like(matrix), of_d), (torch.zeros_like(matrix), of_s))
    )
    return matrix, d.double(), (decode[:, 0] * s + decode[:, 1]).double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize(("bits", "derivative_bits"), [(2, 1), (4, 4), (8, 7)])
def test_gradients_are_those_of_the_copies(shape, activation, bits, derivative_bits):
    x = (torch.randn(shape) * 2 + 1).requires_grad_()
    weight, bias = parameters(shape[1])
    y = run(x, weight, bias, activation, bits, derivative_bits, rng())
    grad = torch.randn_like(y)
    actual = torch.autograd.grad(y, (x, weight, bias), grad)
    matrix, d, normalized = kept(x.detach(), weight.detach(), bias.detach(), activation, bits, derivative_bits, rng())
    low, high = RANGES[activation]
    z = F.batch_norm(matrix, None, None, weight, bias, True).detach().double().requires_grad_()
    (wanted_d,) = torch.autograd.grad(FUNCTIONS[activation](z).sum(), z)
    levels = 2 ** planes_of(activation, derivative_bits) - 1
    step = 1e-12 if activation == "relu6" else (high - low) / levels
    near_bends = torch.zeros_like(z, dtype=torch.bool)
    if activation == "relu6":
        near_bends = (z.abs() < 1e-5) | ((z - 6).abs() < 1e-5)
    assert ((d - wanted_d).abs() <= step * 1.01)[~near_bends].all()
    dz = grad.movedim(1, -1).reshape(matrix.shape).double() * d
    deviation = (matrix.double().var(0, correction=0) + 1e-5).sqrt()
    wanted = weight.detach().double() / deviation * (dz - dz.mean(0) - normalized * (dz * normalized).mean(0))
    torch.testing.assert_close(actual[0].movedim(1, -1).reshape(matrix.shape).double(), wanted, rtol=1e-3, atol=1e-4)
    scale = 1 + normalized.abs().max().item()
    torch.testing.assert_close(actual[1].double(), (dz * normalized).sum(0), rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(actual[2].double(), dz.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize(("bits", "derivative_bits"), [(3, 1), (4, 4)])
def test_gradients_are_unbiased(activation, bits, derivative_bits):
    x = torch.randn(8, 14, 4, 4).requires_grad_()
    weight, bias = parameters(14)
    factor = torch.randn(8, 14, 4, 4)

    def loss(state):
        return (run(x, weight, bias, activation, bits, derivative_bits, state) * factor).sum()

    # The input's gradient has a square of the copy: off by Var[x-hat] / n, n = 128. ReLU6's of the bias is exact.
    wanted = (x, weight) if activation == "relu6" else (x, weight, bias)
    assert_unbiased(loss, lambda: (exact(x, weight, bias, activation) * factor).sum(), wanted, allowance=0.03)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_what_is_saved(activation):
    x = torch.randn(8, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = parameters(64)
    elements = 8 * 64 * 256
    planes = 3 + planes_of(activation, 4)
    saved = saved_bytes(lambda: run(x, weight, bias, activation, 3, 4))
    assert saved == elements * planes // 8 + elements // 256 * 4 + 64 * 5 * 4 + 64 * 4


def weight_gradient(activation, options, x, conv_weight, state):
    y = run(x, None, torch.full((16,), 3.0), activation, 4, 4, state)
    z = ops.convolution(y, conv_weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, **options)
    return y, torch.autograd.grad(z.square().sum(), conv_weight)[0]


def test_a_convolution_reads_the_copy_of_relu6():
    x = torch.randn(2, 16, 6, 6).mul(4).requires_grad_()
    conv_weight = torch.randn(8, 16, 3, 3).requires_grad_()
    y, actual = weight_gradient("relu6", {}, x, conv_weight, rng())
    matrix = x.detach().movedim(1, -1).reshape(-1, 16)
    bias = torch.full((16,), 3.0)
    channels, decode, _ = ops.norm_act_channels(*ops.channel_moments(matrix), None, bias, 1e-5, True)
    _, packed = ops.norm_act(matrix, None, channels, 1.0, 4, True, True, rng(), "relu6", 1)
    copy = ops.norm_act_output(packed, decode, len(matrix), torch.float32, 1.0, 4, "relu6", 1)
    copy = copy.view(2, 6, 6, 16).movedim(-1, 1)
    assert ((copy == 6) == (y == 6)).all() and ((copy == 0) | (y > 0)).all()
    z = F.conv2d(y, conv_weight, padding=1)
    expected = torch.ops.aten.convolution_backward(2 * z, copy, conv_weight, None, [1, 1], [1, 1], [1, 1], False,
                                                   [0, 0], 1, [False, True, False])[1]  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activation", ["silu", "hardswish"])
def test_a_convolution_packs_what_is_smooth_itself(activation):
    x = torch.randn(2, 16, 6, 6).requires_grad_()
    conv_weight = torch.randn(8, 16, 3, 3).requires_grad_()
    _, exact_gradient = weight_gradient(activation, {"compress": False}, x, conv_weight, rng())
    draws = [weight_gradient(activation, {}, x, conv_weight, rng(seed))[1] for seed in range(100)]
    errors = [(g - exact_gradient).norm() / exact_gradient.norm() for g in (draws[0], torch.stack(draws).mean(0))]
    assert 0 < errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_residuals_are_added_in_the_same_pass(activation):
    x, residual, grad = torch.randn(3, 70, 24).mul(3).unbind(0)
    numbers = torch.rand(24, 5)
    plain = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]).expand(24, 5).contiguous()
    planes = planes_of(activation, 7)
    y, packed = ops.norm_act(x, residual, plain, 1.0, 0, True, True, rng(), activation, planes)
    total = (x + residual).requires_grad_()
    expected = FUNCTIONS[activation](total)
    torch.testing.assert_close(y, expected.detach(), rtol=1e-5, atol=1e-5)
    (wanted,) = torch.autograd.grad(expected, total, grad)
    pass_on = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(24, 4).contiguous()
    grad_sum = torch.empty_like(grad)
    ops.norm_act_input_gradient_out(packed, grad, None, pass_on, 1.0, 0, x, numbers, None, 0, torch.empty_like(grad),
                                    grad_sum, activation, planes)  # fmt: skip
    low, high = RANGES[activation]
    assert (grad_sum - wanted).abs().le(grad.abs() * (0 if activation == "relu6" else (high - low) / 127) + 1e-5).all()


MATRIX = torch.ones(4, 8, device="cpu")
NUMBERS = torch.ones(8, 5, device="cpu")


@pytest.mark.parametrize(("call", "message"), [
    (lambda: run(MATRIX, None, None, "gelu"),
     "batch_norm_act: activation must be leaky_relu, relu6, silu or hardswish, got gelu"),
    (lambda: run(MATRIX, None, None, "silu", 4, 8), r"derivative_bits must be in 1\.\.7 for silu, .* got 8"),
    (lambda: run(MATRIX, None, None, "silu", 4, 0), r"derivative_bits must be in 1\.\.7 for silu, .* got 0"),
    (lambda: ops.norm_act(MATRIX, None, NUMBERS, 1.0, 4, True, False, None, "relu6", 2),
     r"norm_act: derivative_bits must be in 1\.\.1 for relu6, .* got 2"),
    (lambda: ops.norm_act(MATRIX, None, NUMBERS, 1.0, 4, True, False, None, "leaky_relu", 1),
     "derivative_bits must be 0 for leaky_relu, which keeps no derivatives, got 1"),
    (lambda: ops.norm_act_output(MATRIX, NUMBERS, 4, torch.float32, 1.0, 4, "silu", 4),
     "norm_act_output: activation must be leaky_relu or relu6, whose result the copies give without bias, got silu"),
    (lambda: ops.norm_act_sums(None, MATRIX, None, NUMBERS, 1.0, 0, MATRIX, NUMBERS, activation="silu",
                               derivative_bits=4),
     "packed copies can be left out for .* leaky_relu with a slope of 1, only"),
])  # fmt: skip
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(16, 8), (130, 24), (3000, 64), (517, 256), (70, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_cuda_gives_the_bytes_of_the_cpu(shape, dtype, activation):
    x = (torch.randn(shape, device="cpu") * 2 + 1).to(dtype)
    weight, bias = (p.detach().cpu() for p in parameters(shape[1]))
    moments = ops.channel_moments(x)
    channels, decode, _ = ops.norm_act_channels(*moments, weight, bias, 1e-5, activation == "relu6")
    grad = torch.randn(shape, device="cpu").to(dtype)
    gradients = torch.randn(shape[1], 4, device="cpu")
    gradients[:, 3] = decode[:, 4]
    kind = {"activation": activation, "derivative_bits": planes_of(activation, 5)}
    results, sums = {}, {}
    for device in ("cpu", "cuda"):
        tensors = [t.to(device) for t in (x, channels, decode, grad, gradients)]
        y, packed = ops.norm_act(tensors[0], None, tensors[1], 1.0, 4, True, True, rng(device=device), **kind)
        results[device] = [y, packed, ops.norm_act_input_gradient(packed, tensors[3], None, tensors[4], 1.0, 4, **kind)]
        if activation == "relu6":
            results[device].append(ops.norm_act_output(packed, tensors[2], len(x), dtype, 1.0, 4, **kind))
        sums[device] = ops.norm_act_sums(packed, tensors[3], tensors[3], tensors[2], 1.0, 4, **kind)
    for actual, wanted in zip(results["cuda"], results["cpu"], strict=True):
        assert_same_bits(actual, wanted)
    torch.testing.assert_close(sums["cuda"].cpu(), sums["cpu"], rtol=1e-4, atol=1e-2)
