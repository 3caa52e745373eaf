"""Batch norm with leaky ReLU: the forward of torch, gradients of the copies, the bytes of the CPU on every device."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import assert_same_bits, rng
from layer_checks import DTYPES, assert_unbiased, ops, saved_bytes
from packed_norm_act import packed_bytes
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(16, 8), (5, 3, 9), (4, 16, 6, 7), (2, 40, 5, 5), (2, 64, 8, 8), (1, 100, 3, 2, 4), (3, 256, 2, 2)]
SLOPES = [0.0, 0.1, 1.0]


def parameters(channels, affine=True):
    """Weights of both signs, 0, tiny ones with a kink far away; float32."""
    if not affine:
        return None, None
    weight = torch.tensor([1.0, -0.7, 0.0, 1e-3, 2.5, -1e-6, 0.3])[torch.arange(channels) % 7]
    bias = torch.tensor([0.1, -0.4, 0.5, 0.7, 0.0, -0.2, 2.0, -0.5, 1.5])[torch.arange(channels) % 9]
    return weight.requires_grad_(), bias.requires_grad_()


def exact(x, weight, bias, slope, mean=None, var=None, training=True):
    y = F.batch_norm(x.float(), mean, var, weight, bias, training, 0.1, 1e-5)
    return F.leaky_relu(y, slope) if slope != 1 else y


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_statistics_of_a_batch_alone_need_no_momentum(momentum):
    x = torch.randn(300, 5) * 2 + 1
    channels, _, rstd = ops.batch_norm_channels(x, None, None, None, None, None, momentum, 1e-5, False)
    expected = (x.var(0, correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd, expected)
    torch.testing.assert_close(channels[:, 1], -x.mean(0) * expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_forward_is_torchs(shape, dtype, slope, affine, training):
    x = (torch.randn(shape) * 2 + 1).to(dtype).requires_grad_()
    weight, bias = parameters(shape[1], affine)
    running = torch.randn(shape[1]), torch.rand(shape[1]) + 0.5
    expected_running = [r.clone() for r in running]
    y = ops.batch_norm_act(x, weight, bias, *running, training, 0.1, 1e-5, slope, 4)
    expected = exact(x, weight, bias, slope, *expected_running, training)
    assert y.dtype == dtype and y.shape == x.shape
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
    for actual, wanted in zip(running, expected_running, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        kept = [r.clone() for r in running]
        assert torch.equal(ops.batch_norm_act(x, weight, bias, *kept, False, 0.1, 1e-5, slope, 4),
                           ops.batch_norm_act(x, weight, bias, *running, False, 0.1, 1e-5, slope, 2))  # fmt: skip


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_result_is_channels_last(memory_format):
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    y = ops.batch_norm_act(x, None, None, None, None, True, 0.1, 1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert grad.shape == x.shape


def form(slope, bits):
    """(activation, slope, bits of codes) of the pass: the side is one of `bits`; a slope of 1 is no activation."""
    return ("identity", 0.0, bits) if slope == 1 else ("leaky_relu", slope, bits - 1)


def passes(x, weight, bias, slope, bits, state):
    """(matrix, packed, decode) of a forward."""
    matrix = x.movedim(1, -1).reshape(-1, x.shape[1]).contiguous()
    mean, var = ops.channel_moments(matrix)
    channels, decode, _ = ops.norm_act_channels(mean, var, weight, bias, 1e-5, slope != 1)
    _, packed = ops.norm_act(matrix, None, channels, *form(slope, bits), True, "dithered", state)
    return matrix, packed, decode


def copies(matrix, packed, decode, slope, bits):
    """(side, x-hat) as kept, float64 from float32; all sides are one without an activation."""
    activation, _, code_bits = form(slope, bits)
    plain = decode.clone()
    plain[:, 2], plain[:, 3] = 1, 0  # z = s
    s = ops.norm_act_output(packed, plain, len(matrix), torch.float32, activation, 1.0, code_bits).double()
    sides = decode.clone()
    sides[:, 2], sides[:, 3] = 0, 1  # z = 1 above, 0 below
    side = ops.norm_act_output(packed, sides, len(matrix), torch.float32, activation, 0.0, code_bits) == 1
    return side, decode[:, 0].double() * s + decode[:, 1].double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_gradients_are_those_of_the_copies(shape, slope, bits):
    x = (torch.randn(shape) * 2 + 1).requires_grad_()
    weight, bias = parameters(shape[1])
    y = ops.batch_norm_act(x, weight, bias, None, None, True, 0.1, 1e-5, slope, bits, "dithered", rng())
    grad = torch.randn_like(y)
    actual = torch.autograd.grad(y, (x, weight, bias), grad)
    matrix, packed, decode = passes(x.detach(), weight.detach(), bias.detach(), slope, bits, rng())
    side, normalized = copies(matrix, packed, decode, slope, bits)
    assert side.all() if slope == 1 else torch.equal(side, exact(matrix, weight, bias, 1.0) > 0)
    dy = grad.movedim(1, -1).reshape(matrix.shape).double()
    dz = torch.where(side, dy, slope * dy) if slope != 1 else dy
    deviation = (matrix.double().var(0, correction=0) + 1e-5).sqrt()
    centred = dz - dz.mean(0) - normalized * (dz * normalized).mean(0)
    wanted = weight.detach().double() / deviation * centred
    torch.testing.assert_close(actual[0].movedim(1, -1).reshape(matrix.shape).double(), wanted, rtol=1e-3, atol=1e-4)
    scale = 1 + decode[:, 1].abs().max().item()
    torch.testing.assert_close(actual[1].double(), (dz * normalized).sum(0), rtol=1e-4, atol=1e-4 * scale)
    torch.testing.assert_close(actual[2].double(), dz.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_unbiased(slope, bits):
    x = torch.randn(8, 14, 4, 4).requires_grad_()
    weight, bias = parameters(14)
    factor = torch.randn(8, 14, 4, 4)

    def run(state):
        y = ops.batch_norm_act(x, weight, bias, None, None, True, 0.1, 1e-5, slope, bits, "dithered", state)
        return (y * factor).sum()

    # The input's gradient has a square of the copy: off by Var[x-hat] / n, n = 128.
    assert_unbiased(run, lambda: (exact(x, weight, bias, slope) * factor).sum(), (x, weight), allowance=0.03)


@pytest.mark.parametrize("slope", SLOPES)
def test_evaluation_has_exact_gradients_of_the_input(slope):
    x = torch.randn(4, 14, 3, 3).requires_grad_()
    weight, bias = parameters(14)
    mean, var = torch.randn(14), torch.rand(14) + 0.5
    y = ops.batch_norm_act(x, weight, bias, mean, var, False, 0.1, 1e-5, slope, 2)
    expected = exact(x, weight, bias, slope, mean, var, False)
    grad = torch.randn_like(expected)
    actual, wanted = (torch.autograd.grad(out, (x, bias), grad) for out in (y, expected))
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "all"])
def test_only_what_is_wanted(frozen):
    x = torch.randn(4, 8, 3, 3).requires_grad_(frozen not in ("x", "all"))
    weight, bias = (p.detach().requires_grad_(name != frozen != "all") for name, p in
                    zip(("weight", "bias"), parameters(8), strict=True))  # fmt: skip
    if frozen == "all":
        weight, bias = weight.detach(), bias.detach()

    def run():
        return ops.batch_norm_act(x, weight, bias, None, None, True, 0.1, 1e-5)

    y = run()
    if frozen == "all":
        assert not y.requires_grad
        return
    y.square().sum().backward()
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        assert (tensor.grad is None) == (name == frozen)


@pytest.mark.parametrize("slope", [0.0, 1.0])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_saved(slope, bits):
    x = torch.randn(8, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = parameters(64)
    y_bytes = 8 * 64 * 256 * 4
    saved = saved_bytes(lambda: ops.batch_norm_act(x, weight, bias, None, None, True, 0.1, 1e-5, slope, bits))
    header, steps = 16, 8 * 64 * 256 // 256 * 4
    assert saved == header + steps + 8 * 64 * 256 * bits // 8 + 64 * 5 * 4 + 64 * 4 < y_bytes


def test_backward_twice_and_second_derivatives():
    x = torch.randn(4, 8).requires_grad_()
    y = ops.batch_norm_act(x, None, None, None, None, True, 0.1, 1e-5)
    first, again = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    with pytest.raises(NotImplementedError, match="batch_norm_act: its backward cannot be differentiated"):
        torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_half_precision_parameters():
    x = torch.randn(4, 8, 3, 3).to(torch.bfloat16).requires_grad_()
    weight, bias = (p.detach().to(torch.bfloat16).requires_grad_() for p in parameters(8))
    running = torch.zeros(8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    ops.batch_norm_act(x, weight, bias, *running, True, 0.1, 1e-5).float().square().sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("change", "message"), [
    ({"input": torch.ones(3)}, r"input must have shape \[N, C\] or \[N, C, ...\], got shape \[3\]"),
    ({"input": torch.ones(2, 4, dtype=torch.float64)}, "input must be"),
    ({"weight": torch.ones(5)}, r"weight must have shape \[C\] = \[4\], got shape \[5\]"),
    ({"bits": 1}, r"bits must be in 2\.\.8, got 1"),
    ({"bits": 9}, r"bits must be in 2\.\.8, got 9"),
    ({"training": False}, "running_mean and running_var must be given in evaluation mode"),
])  # fmt: skip
def test_bad_arguments(change, message):
    arguments = {"input": torch.ones(2, 4), "weight": None, "bias": None, "running_mean": None, "running_var": None,
                 "training": True, "momentum": 0.1, "eps": 1e-5, "negative_slope": 0.0, "bits": 4} | change  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        ops.batch_norm_act(**arguments)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(16, 8), (130, 24), (3000, 64), (517, 256), (70, 2048)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [1, 3, 7])
def test_cuda_gives_the_bytes_of_the_cpu(shape, dtype, bits):
    x = (torch.randn(shape, device="cpu") * 2 + 1).to(dtype)
    weight, bias = (p.detach().cpu() for p in parameters(shape[1]))
    moments = ops.channel_moments(x)
    for actual, wanted in zip(ops.channel_moments(x.cuda()), moments, strict=True):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-5, atol=1e-6)
    of_channels = {
        device: ops.norm_act_channels(*(t.to(device) for t in (*moments, weight, bias)), 1e-5, True)
        for device in ("cpu", "cuda")
    }
    for actual, wanted in zip(of_channels["cuda"], of_channels["cpu"], strict=True):
        assert_same_bits(actual, wanted)
    channels, decode, _ = of_channels["cpu"]
    grad = torch.randn(shape, device="cpu").to(dtype)
    gradients = torch.randn(shape[1], 6, device="cpu")
    gradients[:, 3] = decode[:, 4]
    results = {}
    for device in ("cpu", "cuda"):
        tensors = [t.to(device) for t in (x, channels, decode, grad, gradients)]
        kind = "leaky_relu", 0.1, bits
        y, packed = ops.norm_act(tensors[0], None, tensors[1], *kind, True, "dithered", rng(device=device))
        results[device] = (
            *(y, packed, ops.norm_act_output(packed, tensors[2], len(x), dtype, *kind)),
            ops.norm_act_input_gradient(packed, tensors[3], None, tensors[4], *kind),
        )
        results[device + " sums"] = ops.norm_act_sums(packed, tensors[3], tensors[3], tensors[2], *kind)
    for actual, wanted in zip(results["cuda"], results["cpu"], strict=True):
        assert_same_bits(actual, wanted)
    torch.testing.assert_close(results["cuda sums"].cpu(), results["cpu sums"], rtol=1e-4, atol=1e-3)


# The copy is shared with those who read the result.


def normalized(x, bits=3, state=None):
    return ops.batch_norm_act(x, None, None, None, None, True, 0.1, 1e-5, 0.0, bits, "dithered", state)


def convolution(y, weight, **options):
    return ops.convolution(y, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, **options)


def decoded_result(x, bits):
    """The copy of the result of `normalized(x, bits, rng())`."""
    matrix, packed, decode = passes(x.detach(), None, None, 0.0, bits, rng())
    y = ops.norm_act_output(packed, decode, len(matrix), torch.float32, *form(0.0, bits))
    return y.view(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_convolution_reads_the_copy(bits):
    x = torch.randn(2, 16, 6, 6).requires_grad_()
    weight = torch.randn(8, 16, 3, 3).requires_grad_()
    y = normalized(x, bits, rng())
    z = convolution(y, weight)
    grad = torch.randn_like(z)
    (actual,) = torch.autograd.grad(z, weight, grad)
    copy = decoded_result(x, bits)
    expected = torch.ops.aten.convolution_backward(grad, copy, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                                                   [False, True, False])[1]  # fmt: skip
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_saves_the_same_twice():
    x = torch.randn(2, 16, 6, 6).requires_grad_()
    weight = torch.randn(8, 16, 3, 3).requires_grad_()

    def run():
        return convolution(normalized(x, 4, rng()), weight)

    y = checkpoint(run, use_reentrant=False)
    grad = torch.randn_like(y)
    wanted = torch.autograd.grad(run(), (x, weight), grad)
    for a, w in zip(torch.autograd.grad(y, (x, weight), grad), wanted, strict=True):
        torch.testing.assert_close(a, w)


def test_a_linear_layer_reads_the_copy():
    x = torch.randn(32, 16).requires_grad_()
    weight = torch.randn(8, 16).requires_grad_()
    z = ops.linear(normalized(x, 4, rng()), weight)
    grad = torch.randn_like(z)
    (actual,) = torch.autograd.grad(z, weight, grad)
    torch.testing.assert_close(actual, grad.T @ decoded_result(x, 4), rtol=1e-4, atol=1e-4)


def kept_by_the_convolution(make):
    """Bytes that a convolution saves besides its weight, of what `make` gives; and what comes before saves."""
    weight = torch.randn(8, 64, 3, 3).requires_grad_()
    x = torch.randn(4, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = make(x)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        z = convolution(y, weight)
    z.sum().backward()
    return sum(saved.values()) - weight.untyped_storage().nbytes()


def test_the_copy_is_found_where_it_is_valid():
    elements = 4 * 64 * 16 * 16
    # The very tensors that the normalization saved: codes and the side, decode.
    shared = packed_bytes(4 * 256, 64, 2, "leaky_relu") + 64 * 5 * 4
    own = 16 + elements * 4 // 8 + elements // 256 * 4
    assert kept_by_the_convolution(normalized) == shared
    # Changed, a part, another tensor, another layout.
    assert kept_by_the_convolution(lambda x: normalized(x).mul_(2)) == own
    assert kept_by_the_convolution(lambda x: normalized(x) * 1) == own
    assert kept_by_the_convolution(lambda x: normalized(torch.cat([x, x], 1))[:, :64]) == own
    assert kept_by_the_convolution(lambda x: normalized(x).contiguous()) == own


@pytest.mark.parametrize("options", [{"compress": False}, {"simulate": True}])
def test_who_wants_another_copy_gets_it(options):
    x = torch.randn(2, 16, 6, 6).requires_grad_()
    weight = torch.randn(8, 16, 3, 3).requires_grad_()
    y = normalized(x, 2, rng())
    z = convolution(y, weight, **options)
    grad = torch.randn_like(z)
    (actual,) = torch.autograd.grad(z, weight, grad)
    copy = decoded_result(x, 2)
    other = torch.ops.aten.convolution_backward(grad, copy, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                                                [False, True, False])[1]  # fmt: skip
    assert (actual - other).norm() > 0.01 * other.norm()


def test_the_copy_goes_with_the_graph():
    """A tensor that outlives the graph of its copy gets a copy of its own."""
    x = torch.randn(2, 16, 6, 6).requires_grad_()
    weight = torch.randn(8, 16, 3, 3).requires_grad_()
    y = normalized(x)
    y.sum().backward()
    y = y.detach()
    convolution(y, weight).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_add_act(shape, dtype, slope):
    x, residual = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
    y = ops.add_act(x, residual, slope, 3)
    total = x.float() + residual.float()
    assert torch.equal(y, F.leaky_relu(total, slope).to(dtype))
    grad = torch.randn_like(y)
    for actual in torch.autograd.grad(y, (x, residual), grad):
        assert torch.equal(actual, torch.where(total > 0, grad, (slope * grad.float()).to(dtype)))
    with torch.no_grad():
        assert torch.equal(ops.add_act(x, residual, slope, 3), y)


def test_a_convolution_reads_the_copy_of_a_sum():
    x, residual = (torch.randn(4, 64, 8, 8).requires_grad_() for _ in range(2))
    weight = torch.randn(8, 64, 3, 3).requires_grad_()
    draws = []
    for seed in range(200):
        y = ops.add_act(x, residual, 0.0, 3, "dithered", rng(seed))
        z = convolution(y, weight, compress=True)
        draws.append(torch.autograd.grad(z.sum(), weight)[0])
    wanted = torch.autograd.grad(F.conv2d(F.relu(x + residual), weight, padding=1).sum(), weight)[0]
    errors = [(d - wanted).norm() / wanted.norm() for d in (draws[0], torch.stack(draws).mean(0))]
    assert 0 < errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize(("change", "message"), [
    (lambda: {"input": torch.ones(3)}, r"input must have shape \[N, C\] or \[N, C, ...\], got shape \[3\]"),
    (lambda: {"residual": torch.ones(3, 4)}, r"residual must have shape and device of input, \[2, 4\]"),
    (lambda: {"residual": torch.ones(2, 4).half()}, "residual must have the dtype of input, Float, got Half"),
    (lambda: {"bits": 1}, r"bits must be in 2\.\.8, got 1"),
])  # fmt: skip
def test_bad_arguments_of_add_act(change, message):
    arguments = {"input": torch.ones(2, 4), "residual": torch.ones(2, 4), "bits": 3} | change()
    with pytest.raises((ValueError, TypeError), match=message):
        ops.add_act(**arguments)


def test_a_network_learns_as_with_exact_layers():
    torch.manual_seed(0)
    weights = [torch.randn(shape, device="cpu").mul(0.2).to(torch.get_default_device()).requires_grad_() for shape in
               ((16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3))]  # fmt: skip
    x = torch.randn(8, 3, 12, 12)

    def loss(normalize):
        y = x
        for weight in weights:
            y = normalize(convolution(y, weight, bits=8))
        return y.mean((2, 3)).softmax(1)[:, 0].log().neg().sum()

    expected = torch.autograd.grad(loss(lambda y: F.relu(F.batch_norm(y, None, None, training=True))), weights)
    draws = [torch.autograd.grad(loss(lambda y: normalized(y, 5)), weights) for _ in range(30)]
    for i, wanted in enumerate(expected):
        mean = torch.stack([draw[i] for draw in draws]).mean(0)
        assert (mean - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [5, 64])
@pytest.mark.parametrize("rows", [3, 600])
@pytest.mark.parametrize("bits", [None, 0, 3])
def test_two_packings_at_once_are_those_of_two_passes(dtype, channels, rows, bits):
    """That of the sum, and that of the norm; each has the random numbers of its own call."""
    x, residual = torch.randn(rows, channels).to(dtype), torch.randn(rows, channels).to(dtype)
    maps, norm_maps = torch.randn(channels, 5), torch.randn(channels, 5)
    maps[::2, 4] = 0
    y, *actual = ops.norm_add_act(x, residual, maps, norm_maps, "leaky_relu", 0.1, bits, 2, True, "dithered", rng())
    state = rng()
    expected_y, packed = ops.norm_act(x, residual, maps, "leaky_relu", 0.1, bits, True, "dithered", state)
    _, normalized = ops.norm_act(x, None, norm_maps, "identity", 0.0, 2, True, "dithered", state)
    assert torch.equal(y, expected_y)
    for a, wanted in zip(actual, (packed, normalized), strict=True):
        assert torch.equal(a, wanted)
