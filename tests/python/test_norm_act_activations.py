"""Batch norm with ReLU6, whose masks are exact, and with smooth activations, whose derivative is that of the copy.

That of hardswish is of the piece that its masks name.
"""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import assert_same_bits, rng
from layer_checks import DTYPES, assert_unbiased, ops, saved_bytes
from packed_norm_act import JUMPS, packed_bytes

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(16, 8), (5, 3, 9), (2, 40, 5, 5), (2, 64, 8, 8), (3, 100, 2, 2), (3, 256, 2, 2)]
FUNCTIONS = {"relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}
SMOOTH = ["silu", "hardswish"]


def parameters(channels):
    """Weights of both signs and sizes, so that results reach both flat parts; 0 among them."""
    weight = torch.tensor([3.0, -2.0, 0.0, 1e-3, 5.0, 0.3])[torch.arange(channels) % 6]
    bias = torch.tensor([0.5, 2.5, 1.5, -0.7, 0.0])[torch.arange(channels) % 5]
    return weight.requires_grad_(), bias.requires_grad_()


def exact(x, weight, bias, activation, mean=None, var=None, training=True):
    return FUNCTIONS[activation](F.batch_norm(x.float(), mean, var, weight, bias, training, 0.1, 1e-5))


def run(x, weight, bias, activation, bits=5, state=None, running=(None, None), training=True):
    return ops.batch_norm_act(x, weight, bias, *running, training, 0.1, 1e-5, 0.0, bits, "dithered", state, activation)


def form(activation, bits):
    """(activation, slope, bits of codes) of the pass: the side of ReLU6's kink at 0 is one of `bits`."""
    return activation, 0.0, bits - (activation == "relu6")


def derivative(activation, z):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(FUNCTIONS[activation](z).sum(), z)[0]


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


def passes(x, weight, bias, activation, bits, state):
    """(matrix, packed, decode) of a forward."""
    matrix = x.movedim(1, -1).reshape(-1, x.shape[1]).contiguous()
    moments = ops.channel_moments(matrix)
    channels, decode, _ = ops.norm_act_channels(*moments, weight, bias, 1e-5, activation == "relu6")
    _, packed = ops.norm_act(matrix, None, channels, *form(activation, bits), True, "dithered", state)
    return matrix, packed, decode


def gradients_for(decode, scale, of_copy):
    """`NormActGradient` of which the input's gradient is scale dz + of_copy s."""
    gradients = torch.zeros(len(decode), 6)
    gradients[:, 0], gradients[:, 1], gradients[:, 3:] = scale, of_copy, decode[:, [4, 2, 3]]
    return gradients


def kept(x, weight, bias, activation, bits, state):
    """(matrix, derivative, x-hat, z) as kept: the gradient of z for gradients of 1, and what that of x has of s."""
    matrix, packed, decode = passes(x, weight, bias, activation, bits, state)
    d, s = (
        ops.norm_act_input_gradient(packed, g, None, gradients_for(decode, *of), *form(activation, bits))
        for g, of in ((torch.ones_like(matrix), (1, 0)), (torch.zeros_like(matrix), (0, 1)))
    )
    return matrix, d.double(), (decode[:, 0] * s + decode[:, 1]).double(), decode[:, 2] * s + decode[:, 3]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_gradients_are_those_of_the_copies(shape, activation, bits):
    x = (torch.randn(shape) * 2 + 1).requires_grad_()
    weight, bias = parameters(shape[1])
    y = run(x, weight, bias, activation, bits, rng())
    grad = torch.randn_like(y)
    actual = torch.autograd.grad(y, (x, weight, bias), grad)
    matrix, d, normalized, copy = kept(x.detach(), weight.detach(), bias.detach(), activation, bits, rng())
    # ReLU6 has the derivative of the exact value, SiLU that of the copy, hardswish that of the copy on its exact piece.
    z = F.batch_norm(matrix, None, None, weight, bias, True).detach()
    at_jumps = torch.zeros_like(z, dtype=torch.bool)
    for jump in JUMPS.get(activation, ()):
        at_jumps |= (z - jump).abs() < 1e-5
    derivatives = {
        "relu6": lambda: derivative("relu6", z.double()),
        "silu": lambda: derivative("silu", copy.double()),
        "hardswish": lambda: torch.where(z.abs() < 3, copy.double() / 3 + 0.5, (z > 0).double()),
    }[activation]()
    torch.testing.assert_close(d[~at_jumps], derivatives[~at_jumps], rtol=1e-5, atol=1e-6)
    dz = grad.movedim(1, -1).reshape(matrix.shape).double() * d
    deviation = (matrix.double().var(0, correction=0) + 1e-5).sqrt()
    wanted = weight.detach().double() / deviation * (dz - dz.mean(0) - normalized * (dz * normalized).mean(0))
    torch.testing.assert_close(actual[0].movedim(1, -1).reshape(matrix.shape).double(), wanted, rtol=1e-3, atol=1e-4)
    scale = 1 + normalized.abs().max().item()
    torch.testing.assert_close(actual[1].double(), (dz * normalized).sum(0), rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(actual[2].double(), dz.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 5])
def test_gradients_of_relu6_are_unbiased(bits):
    x = torch.randn(8, 14, 4, 4).requires_grad_()
    weight, bias = parameters(14)
    factor = torch.randn(8, 14, 4, 4)

    def loss(state):
        return (run(x, weight, bias, "relu6", bits, state) * factor).sum()

    # The input's gradient has a square of the copy: off by Var[x-hat] / n, n = 128. That of the bias is exact.
    assert_unbiased(loss, lambda: (exact(x, weight, bias, "relu6") * factor).sum(), (x, weight), allowance=0.03)


@pytest.mark.parametrize(
    ("activation", "bits", "noise", "bias_left"),
    [("silu", 5, 0.08, 0.002), ("silu", 8, 0.01, 3e-4), ("hardswish", 5, 0.08, 0.002), ("hardswish", 8, 0.01, 3e-4)],
)
def test_gradients_of_smooth_activations_are_nearly_unbiased(activation, bits, noise, bias_left):
    """Relative to their size: the error of one draw, and what is left of it in the mean."""
    x = torch.randn(16, 12, 8, 8).requires_grad_()
    weight, bias = (p.detach().clamp(-1.5, 1.5).requires_grad_() for p in parameters(12))
    factor = torch.randn(16, 12, 8, 8)
    wanted = torch.autograd.grad((exact(x, weight, bias, activation) * factor).sum(), (x, weight, bias))
    draws = 100
    drawn = [torch.autograd.grad((run(x, weight, bias, activation, bits, rng(seed)) * factor).sum(), (x, weight, bias))
             for seed in range(draws)]  # fmt: skip
    for i, gradient in enumerate(wanted):
        errors = torch.stack([draw[i] - gradient for draw in drawn]).double()
        size = gradient.double().norm()
        sigma = errors.var(0).sum().sqrt() / size
        assert 0 < sigma < noise
        assert errors.mean(0).norm() / size < bias_left + 2 * sigma / draws**0.5


def drawn_elements(activation, bits, draws=1500):
    """Of a matrix: (z, a copy's greatest error in z, means of drawn derivatives and outputs, and their sigma)."""
    x = torch.randn(64, 5) * 2 + 1
    weight, bias = torch.tensor([3.0, -2.0, 0.3, 1.0, 1.5]), torch.tensor([0.5, 2.5, 0.0, -1.0, -3.0])
    total, square = torch.zeros(2, 2, 64, 5, dtype=torch.float64)
    state, kind = rng(), form(activation, bits)
    for _ in range(draws):
        matrix, packed, decode = passes(x, weight, bias, activation, bits, state)
        gradients = gradients_for(decode, 1, 0)
        derivatives = ops.norm_act_input_gradient(packed, torch.ones_like(x), None, gradients, *kind)
        drawn = torch.stack([derivatives, ops.norm_act_output(packed, decode, 64, torch.float32, *kind)]).double()
        total += drawn
        square += drawn**2
    steps = packed[16 : 16 + 4 * 5].view(torch.bfloat16).view(5, 2)[:, 1].float().abs()
    mean = total / draws
    sigma = ((square / draws - mean**2).clamp_min(0) / draws).sqrt()
    z = F.batch_norm(matrix.double(), None, None, weight.double(), bias.double(), True)
    return z, (steps * weight.abs() / 2).double().expand(64, 5), mean, sigma


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("bits", [3, 5])
def test_the_bias_of_smooth_activations_is_of_second_order(activation, bits):
    """A copy's error is uniform in +-h: a function f is off by f'' h^2 / 6 on average."""
    z, h, (derivatives, outputs), (of_derivatives, of_outputs) = drawn_elements(activation, bits)
    # The greatest third and second derivatives. That of hardswish is linear on each piece, and the piece is known.
    bias_of_derivatives, bias_of_outputs = (0.31 * h**2 / 6, 0.5 * h**2 / 6) if activation == "silu" else (0, h**2 / 18)
    rest = 1e-6 + h * 2.0**-8  # of positions, which are rounded to 1/256 of a step
    assert ((derivatives - derivative(activation, z)).abs() <= 5 * of_derivatives + bias_of_derivatives + rest).all()
    assert ((outputs - FUNCTIONS[activation](z)).abs() <= 5 * of_outputs + bias_of_outputs + rest).all()
    assert (of_derivatives > 0).any() and (of_outputs > 0).any()


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_what_is_saved(activation):
    x = torch.randn(8, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = parameters(64)
    saved = saved_bytes(lambda: run(x, weight, bias, activation, 3))
    planes = {"relu6": 2 + 2, "silu": 3, "hardswish": 3 + 2}[activation]  # codes and masks
    packed = 16 + 8 * 64 * 4 + 8 * 64 * 256 * planes // 8
    assert packed == packed_bytes(8 * 256, 64, form(activation, 3)[2], activation)
    assert saved == packed + 64 * 5 * 4 + 64 * 4


def weight_gradient(activation, options, x, conv_weight, state):
    y = run(x, None, torch.full((16,), 3.0), activation, 5, state)
    z = ops.convolution(y, conv_weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, **options)
    return y, torch.autograd.grad(z.square().sum(), conv_weight)[0]


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_a_convolution_reads_the_copy(activation):
    x = torch.randn(2, 16, 6, 6).mul(4).requires_grad_()
    conv_weight = torch.randn(8, 16, 3, 3).requires_grad_()
    y, actual = weight_gradient(activation, {}, x, conv_weight, rng())
    matrix, packed, decode = passes(x.detach(), None, torch.full((16,), 3.0), activation, 5, rng())
    copy = ops.norm_act_output(packed, decode, len(matrix), torch.float32, *form(activation, 5))
    if activation != "relu6":
        z = kept(x.detach(), None, torch.full((16,), 3.0), activation, 5, rng())[3]
        expected = F.silu(z)
        if activation == "hardswish":
            exact_z = F.batch_norm(matrix, None, None, None, torch.full((16,), 3.0), True)
            expected = torch.where(exact_z.abs() < 3, z * (z / 6 + 0.5), z * (exact_z > 0))
        torch.testing.assert_close(copy, expected, rtol=1e-5, atol=1e-6)
    copy = copy.view(2, 6, 6, 16).movedim(-1, 1)
    if activation == "relu6":
        assert ((copy == 6) == (y == 6)).all() and ((copy == 0) | (y > 0)).all()
    z = F.conv2d(y, conv_weight, padding=1)
    expected = torch.ops.aten.convolution_backward(2 * z, copy, conv_weight, None, [1, 1], [1, 1], [1, 1], False,
                                                   [0, 0], 1, [False, True, False])[1]  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_gradients_of_a_convolution_behind_it(activation):
    x = torch.randn(2, 16, 6, 6).requires_grad_()
    conv_weight = torch.randn(8, 16, 3, 3).requires_grad_()
    _, exact_gradient = weight_gradient(activation, {"compress": False}, x, conv_weight, rng())
    draws = [weight_gradient(activation, {}, x, conv_weight, rng(seed))[1] for seed in range(100)]
    errors = [(g - exact_gradient).norm() / exact_gradient.norm() for g in (draws[0], torch.stack(draws).mean(0))]
    assert 0 < errors[1] < 0.3 * errors[0]


def test_a_residual_is_added_in_the_pass_of_relu6():
    x, residual, grad = torch.randn(3, 70, 24).mul(3).unbind(0)
    maps = torch.rand(24, 5)
    plain = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]).expand(24, 5).contiguous()
    y, packed = ops.norm_act(x, residual, plain, "relu6", 0.0, 0, True, "dithered", rng())
    total = x + residual
    assert torch.equal(y, F.relu6(total))
    pass_on = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).expand(24, 6).contiguous()
    grad_sum = torch.empty_like(grad)
    ops.norm_act_input_gradient_out(packed, grad, None, pass_on, "relu6", 0.0, 0, x, maps, None, 0,
                                    torch.empty_like(grad), grad_sum)  # fmt: skip
    assert torch.equal(grad_sum, grad * derivative("relu6", total))


MATRIX = torch.ones(4, 8, device="cpu")
MAPS = torch.ones(8, 5, device="cpu")


@pytest.mark.parametrize(("call", "message"), [
    (lambda: run(MATRIX, None, None, "gelu"),
     "batch_norm_act: activation must be identity, leaky_relu, relu6, silu or hardswish, got gelu"),
    (lambda: run(MATRIX, None, None, "silu", 9), r"batch_norm_act: bits must be in 2\.\.8, got 9"),
    (lambda: ops.norm_act(MATRIX, None, MAPS, "silu", 0.0, 9), r"norm_act: bits must be in 0\.\.8 for silu, got 9"),
    (lambda: ops.norm_act(MATRIX, None, MAPS, "relu6", 0.0, 8), r"norm_act: bits must be in 0\.\.7 for relu6, got 8"),
    (lambda: ops.norm_act(MATRIX, MATRIX, MAPS, "silu"), "norm_act: silu takes no residual"),
    (lambda: ops.norm_add_act(MATRIX, MATRIX, MAPS, MAPS, "relu6"),
     "norm_add_act: activation must be leaky_relu or identity, got relu6"),
    (lambda: ops.norm_act_output(MATRIX, MAPS, 4, torch.float32, "relu6", 0.0, 0),
     r"norm_act_output: bits must be in 1\.\.7 for relu6, got 0"),
    (lambda: ops.norm_act_sums(None, MATRIX, None, MAPS, "relu6", 0.0, 0, MATRIX, MAPS),
     "norm_act_sums: packed is needed for the masks of relu6"),
    (lambda: ops.norm_act_sums(None, MATRIX, None, MAPS, "silu", 0.0, 0),
     "norm_act_sums: copies of some bits are needed, or an input or normalized copies in their place"),
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
    gradients = torch.randn(shape[1], 6, device="cpu")
    gradients[:, 3:] = decode[:, [4, 2, 3]]
    kind = form(activation, 5)
    results, sums = {}, {}
    for device in ("cpu", "cuda"):
        tensors = [t.to(device) for t in (x, channels, decode, grad, gradients)]
        y, packed = ops.norm_act(tensors[0], None, tensors[1], *kind, True, "dithered", rng(device=device))
        results[device] = [
            *(y, packed, ops.norm_act_input_gradient(packed, tensors[3], None, tensors[4], *kind)),
            ops.norm_act_output(packed, tensors[2], len(x), dtype, *kind),
        ]
        sums[device] = ops.norm_act_sums(packed, tensors[3], tensors[3], tensors[2], *kind)
    for actual, wanted in zip(results["cuda"], results["cpu"], strict=True):
        assert_same_bits(actual, wanted)
    torch.testing.assert_close(sums["cuda"].cpu(), sums["cpu"], rtol=1e-4, atol=1e-2)
