"""The differentiable layers: exact forward, exact or unbiased gradients, and what is saved."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import rng
from layer_checks import assert_close_sums
from packed_columns import packed_bytes as column_bytes
from saved_memory import packed_bytes, saved_bytes

pytestmark = pytest.mark.usefixtures("device")

ops = torch.ops.actnn


def decoded(x, bits, group_size=256, seed=1234):
    """The copy of x that a layer with this state computes its gradients from."""
    packed = ops.quantize(x, bits, group_size, "dithered", rng(seed))
    return ops.dequantize(packed, x.shape, x.stride(), x.dtype, bits, group_size)


def decoded_columns(x, bits, group_rows=256, seed=1234):
    """The same of an input [..., channels], and of [N, C, ...] that is channels_last: groups are of one channel where
    there are 64 rows, and 8 channels in channels_last."""
    last = x if x.is_contiguous() else x.movedim(1, -1)
    if last.shape[:-1].numel() < 64 or (not x.is_contiguous() and x.shape[1] < 8):
        return decoded(x, bits, group_rows, seed)
    packed = ops.quantize_columns(last, bits, group_rows, "dithered", rng(seed))
    rows = last.shape[:-1].numel()
    copy = ops.dequantize_columns(packed, rows, last.shape[-1], x.dtype, bits, group_rows).view(last.shape)
    return copy if x.is_contiguous() else copy.movedim(-1, 1)


def expand(value, dimensions):
    return [value] * dimensions if isinstance(value, int) else list(value)


def conv(x, weight, bias, *, stride=1, padding=0, dilation=1, transposed=False, output_padding=0, groups=1, bits=4,
         group_size=256, state=None):  # fmt: skip
    d = weight.dim() - 2
    return ops.convolution(x, weight, bias, expand(stride, d), expand(padding, d), expand(dilation, d), transposed,
                           expand(output_padding, d), groups, bits=bits, group_size=group_size,
                           rng_state=state)  # fmt: skip


def torch_conv(x, weight, bias, *, stride=1, padding=0, dilation=1, transposed=False, output_padding=0, groups=1):
    d = weight.dim() - 2
    return torch.convolution(x, weight, bias, expand(stride, d), expand(padding, d), expand(dilation, d), transposed,
                             expand(output_padding, d), groups)  # fmt: skip


CONVOLUTIONS = {
    "1d": ((2, 4, 17), (6, 4, 3), {"padding": 1}),
    "2d": ((2, 4, 9, 8), (6, 4, 3, 3), {"padding": 1, "stride": 2}),
    "2d asymmetric": ((2, 4, 9, 8), (6, 4, 3, 1), {"padding": (1, 0), "stride": (2, 1)}),
    "2d groups, dilation": ((2, 4, 9, 8), (6, 2, 3, 3), {"groups": 2, "dilation": 2}),
    "2d depthwise": ((2, 4, 9, 8), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
    "2d, many channels": ((2, 9, 9, 8), (6, 9, 3, 3), {"padding": 1}),
    "3d, many channels": ((2, 8, 5, 6, 7), (4, 8, 3, 3, 3), {"padding": 1}),
    "3d": ((2, 3, 5, 6, 7), (4, 3, 3, 3, 3), {"padding": 1}),
    "1d transposed": ((2, 4, 9), (4, 3, 3), {"transposed": True, "stride": 2, "output_padding": 1}),
    "2d transposed": ((2, 4, 5, 6), (4, 3, 3, 3), {"transposed": True, "stride": 2, "padding": 1, "groups": 2}),
    "3d transposed": ((1, 4, 3, 4, 3), (4, 2, 2, 2, 2), {"transposed": True, "stride": 2}),
    "empty batch": ((0, 4, 9, 8), (6, 4, 3, 3), {}),
}


def convolution_case(name, dtype=torch.float32, channels_last=False):
    x_shape, w_shape, options = CONVOLUTIONS[name]
    x = torch.randn(x_shape).to(dtype)
    weight = (torch.randn(w_shape) * 0.3).to(dtype)
    if channels_last and len(x_shape) == 4:
        x, weight = x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last)
    if channels_last and len(x_shape) == 5:
        x, weight = x.to(memory_format=torch.channels_last_3d), weight.to(memory_format=torch.channels_last_3d)
    channels = w_shape[1] * options.get("groups", 1) if options.get("transposed") else w_shape[0]
    bias = torch.randn(channels).to(dtype)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), options


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_equals_autograd_on_the_decoded_input(name, dtype, channels_last):
    x, weight, bias, options = convolution_case(name, dtype, channels_last)
    y = conv(x, weight, bias, **options, bits=2, state=rng())
    exact = torch_conv(x, weight, bias, **options)
    assert torch.equal(y, exact) and y.stride() == exact.stride()
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, weight, bias), grad)
    exact_grads = torch.autograd.grad(exact, (x, weight, bias), grad)
    assert torch.equal(grads[0], exact_grads[0]) and torch.equal(grads[2], exact_grads[2])
    copy = (decoded if x.is_contiguous() else decoded_columns)(x.detach(), 2)
    (expected,) = torch.autograd.grad(torch_conv(copy, weight, bias, **options), weight, grad)
    assert torch.equal(grads[1], expected)
    assert [g.stride() for g in grads] == [g.stride() for g in exact_grads]


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (2, 2, 3, 5), (0, 5), (63, 5), (8, 8, 5), (300, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_equals_autograd_on_the_decoded_input(shape, dtype):
    x = torch.randn(shape).to(dtype).requires_grad_()
    weight = torch.randn(4, 5).to(dtype).requires_grad_()
    bias = torch.randn(4).to(dtype).requires_grad_()
    y = ops.linear(x, weight, bias, 3, 256, "dithered", rng())
    exact = F.linear(x, weight, bias)
    assert torch.equal(y, exact)
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, weight, bias), grad)
    exact_grads = torch.autograd.grad(exact, (x, weight, bias), grad)
    # torch multiplies other shapes in another way, whose sums are rounded in another order.
    tolerance = {"rtol": 0, "atol": 0} if len(shape) in (2, 3) else {}
    torch.testing.assert_close(grads[0], exact_grads[0], **tolerance)
    torch.testing.assert_close(grads[2], exact_grads[2], **tolerance)
    copy = decoded_columns(x.detach(), 3)
    (expected,) = torch.autograd.grad(F.linear(copy, weight, bias), weight, grad)
    torch.testing.assert_close(grads[1], expected, **tolerance)


def batch_norm_case(shape, dtype=torch.float32, affine=True):
    x = torch.randn(shape).to(dtype).requires_grad_()
    channels = shape[1]
    weight = torch.randn(channels).requires_grad_() if affine else None
    bias = torch.randn(channels).requires_grad_() if affine else None
    return x, weight, bias, torch.randn(channels), torch.rand(channels) + 0.5


def batch_norm_gradients(x, y, weight, bias, mean, var, training, grad, bits):
    """The gradients with a copy of the normalized value in its place, but the statistics of the exact forward."""
    dims = [d for d in range(x.dim()) if d != 1]
    if training:
        var, mean = torch.var_mean(x.float(), dims, correction=0)

    def channels(vector):
        return vector.view(1, -1, *[1] * (x.dim() - 2))

    deviation = (var + 1e-5).sqrt()
    normalized = ((x.float() - channels(mean)) / channels(deviation)).to(x.dtype)
    copy = decoded(y if weight is None else normalized, bits).double()
    grad = grad.double()
    grad_normalized = grad if weight is None else grad * channels(weight)
    if training:
        products = (grad_normalized * copy).mean(dims, keepdim=True)
        grad_normalized = grad_normalized - grad_normalized.mean(dims, keepdim=True) - copy * products
    grad_input = (grad_normalized / channels(deviation)).to(x.dtype)
    return [grad_input] if weight is None else [grad_input, (grad * copy).sum(dims).float(), grad.sum(dims).float()]


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 7), (4, 5, 7, 6), (2, 5, 3, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cudnn", [True, False])
def test_batch_norm_equals_autograd_on_the_decoded_copy(
    shape, dtype, training, affine, channels_last, cudnn, monkeypatch
):
    monkeypatch.setattr(torch.backends.cudnn, "enabled", cudnn)
    x, weight, bias, mean, var = batch_norm_case(shape, dtype, affine)
    if channels_last and len(shape) == 4:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    means, variances = [mean.clone() for _ in range(3)], [var.clone() for _ in range(3)]
    y = ops.batch_norm(x, weight, bias, means[0], variances[0], training, 0.1, 1e-5, 4, 256, "dithered", rng())
    exact = F.batch_norm(x, means[1], variances[1], weight, bias, training, 0.1, 1e-5)
    assert torch.equal(y, exact) and y.stride() == exact.stride()
    assert torch.equal(means[0], means[1]) and torch.equal(variances[0], variances[1])
    assert torch.equal(means[0], mean) == (not training)
    inputs = [t for t in (x, weight, bias) if t is not None]
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, inputs, grad)
    expected = batch_norm_gradients(x.detach(), y.detach(), weight, bias, mean, var, training, grad, 4)
    # The GPU may round a normalized value, and with it the grid of its group, to the other neighbour.
    slack = 5 if x.is_cuda and dtype != torch.float32 else 1
    tolerance = slack * {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
    exact_grads = torch.autograd.grad(exact, inputs, grad)
    assert grads[0].stride() == exact_grads[0].stride()
    if affine:
        assert_close_sums(grads[2], exact_grads[2], dtype)
    if not training:
        torch.testing.assert_close(grads[0], exact_grads[0], **{} if x.is_cuda else {"rtol": 0, "atol": 0})


def test_batch_norm_without_running_statistics():
    x, weight, bias, _, _ = batch_norm_case((4, 3, 5))
    y = ops.batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5)
    assert torch.equal(y, F.batch_norm(x, None, None, weight, bias, True))
    with pytest.raises(ValueError, match="running_mean and running_var must be given in evaluation mode"):
        ops.batch_norm(x, weight, bias, None, None, False, 0.1, 1e-5)


def mean_gradient(run, parameters, draws):
    """Mean over draws of the gradients, and the standard error of each."""
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    square = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for seed in range(draws):
        for i, g in enumerate(torch.autograd.grad(run(rng(seed)), parameters)):
            total[i] += g.double()
            square[i] += g.double() ** 2
    means = [t / draws for t in total]
    errors = [((s / draws - m**2).clamp_min(0) / draws).sqrt() for s, m in zip(square, means, strict=True)]
    return means, errors


def assert_unbiased(run, exact, parameters, draws=600, allowance=0.0):
    means, errors = mean_gradient(run, parameters, draws)
    for mean, error, wanted in zip(means, errors, torch.autograd.grad(exact(), parameters), strict=True):
        assert (error > 0).any()
        # 5 sigma for every entry; a systematic error would grow with the number of draws.
        limit = 5 * error + allowance * wanted.abs().max() + 1e-6 * wanted.abs().max()
        assert ((mean - wanted).abs() <= limit).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_convolution_gradient_is_unbiased(bits):
    x, weight, bias, options = convolution_case("2d")
    grad = torch.randn_like(torch_conv(x, weight, bias, **options))
    assert_unbiased(
        lambda state: (conv(x, weight, bias, **options, bits=bits, group_size=32, state=state) * grad).sum(),
        lambda: (torch_conv(x, weight, bias, **options) * grad).sum(),
        [weight],
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_linear_gradient_is_unbiased(bits):
    x, weight = torch.randn(32, 20), torch.randn(7, 20).requires_grad_()
    grad = torch.randn(32, 7)
    assert_unbiased(
        lambda state: (ops.linear(x, weight, None, bits, 64, "dithered", state) * grad).sum(),
        lambda: (F.linear(x, weight) * grad).sum(),
        [weight],
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_batch_norm_gradients_are_unbiased_to_one_over_n(bits):
    x, weight, bias, _, _ = batch_norm_case((16, 3, 12, 12))
    grad = torch.randn_like(x)

    def run(state):
        return (ops.batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5, bits, 256, "dithered", state) * grad).sum()

    def exact():
        return (F.batch_norm(x, None, None, weight, bias, True) * grad).sum()

    assert_unbiased(run, exact, [weight], draws=300)
    # The variance of a copy, at most step^2 / 4 with a range of about 6.5 deviations, over n = 16 * 144 elements.
    assert_unbiased(run, exact, [x], draws=300, allowance=(6.5 / (2**bits - 1)) ** 2 / 4 / (16 * 144))


@pytest.mark.parametrize("bits", range(1, 9))
def test_layers_save_packed_bytes_only(bits):
    x = torch.randn(4, 8, 10, 10).requires_grad_()
    weight = torch.randn(8, 8, 3, 3).requires_grad_()
    assert saved_bytes(lambda: conv(x, weight, None, bits=bits))[0] == packed_bytes(x.numel(), bits)
    matrix = torch.randn(5, 10).requires_grad_()
    assert saved_bytes(lambda: ops.linear(x, matrix, None, bits))[0] == column_bytes(320, 10, bits, 256)
    # Groups of other sizes than columns have.
    assert saved_bytes(lambda: ops.linear(x, matrix, None, bits, 512))[0] == packed_bytes(x.numel(), bits, 512)
    gamma, beta = torch.randn(8).requires_grad_(), torch.randn(8).requires_grad_()
    inverse_deviations = 8 * 4
    assert (
        saved_bytes(lambda: ops.batch_norm(x, gamma, beta, None, None, True, 0.1, 1e-5, bits))[0]
        == packed_bytes(x.numel(), bits) + inverse_deviations
    )


def test_exact_layers_save_little():
    x = torch.randn(4, 8, 10, 10).requires_grad_()
    assert saved_bytes(lambda: ops.relu(x))[0] == x.numel() // 8
    assert saved_bytes(lambda: ops.dropout(x, 0.3))[0] == 16
    assert saved_bytes(lambda: ops.max_pool2d(x, [2, 2]))[0] == x.numel() // 4
    assert saved_bytes(lambda: ops.avg_pool2d(x, [2, 2]))[0] == 0
    assert saved_bytes(lambda: ops.adaptive_avg_pool2d(x, [3, 3]))[0] == 0


def test_linear_keeps_its_weight_only_for_the_gradient_of_its_input():
    weight = torch.randn(24, 16).requires_grad_()
    for wants_grad in (False, True):
        x = torch.randn(64, 16, requires_grad=wants_grad)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
            y = ops.linear(x, weight, None, 4)
        assert (weight.shape in kept) == wants_grad
        y.sum().backward()


def test_only_what_a_wanted_gradient_needs_is_saved():
    x = torch.randn(2, 4, 6, 6)
    weight, bias = torch.randn(4, 4, 3, 3), torch.randn(4)

    def saved(layer, *inputs):
        return saved_bytes(lambda: layer(*inputs))[0]

    frozen = saved(conv, x.clone().requires_grad_(), weight, bias.clone().requires_grad_())
    assert frozen == weight.numel() * 4  # the weight itself, by reference
    assert saved(conv, x, weight, bias) == 0
    with torch.no_grad():
        assert saved(conv, x, weight.clone().requires_grad_(), bias) == 0
    with torch.inference_mode():
        assert saved(conv, x.clone(), weight.clone(), bias.clone()) == 0
    mean, var = torch.zeros(4), torch.ones(4)
    evaluated = saved(lambda t: ops.batch_norm(t, None, None, mean, var, False, 0.1, 1e-5), x.clone().requires_grad_())
    assert evaluated <= 4 * 4 * 4  # statistics


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_wanted_gradients_are_computed(wanted):
    tensors = [torch.randn(s) for s in ((2, 4, 6, 6), (4, 4, 3, 3), (4,))]
    for t, w in zip(tensors, wanted, strict=True):
        t.requires_grad_(w)
    conv(*tensors).sum().backward()
    assert [t.grad is not None for t in tensors] == list(wanted)
    tensors = [torch.randn(s) for s in ((3, 4), (5, 4), (5,))]
    for t, w in zip(tensors, wanted, strict=True):
        t.requires_grad_(w)
    ops.linear(*tensors).sum().backward()
    assert [t.grad is not None for t in tensors] == list(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [
    lambda: torch.randn(3, 5), lambda: torch.randn(0, 4), lambda: torch.randn(7, 9).t(),
    lambda: torch.randn(4, 10)[:, ::2], lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    lambda: torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40]),
])  # fmt: skip
def test_relu_is_exact(dtype, make):
    x = make().to(dtype).requires_grad_()
    y, exact = ops.relu(x), F.relu(x)
    torch.testing.assert_close(y, exact, rtol=0, atol=0, equal_nan=True)
    grad = torch.randn_like(exact)
    assert torch.equal(*(torch.autograd.grad(out, x, grad)[0] for out in (y, exact)))


def test_relu_in_place():
    x = torch.randn(4, 5, requires_grad=True)
    y = x * 1
    version = y._version
    out = ops.relu_(y)
    assert out is y or out.data_ptr() == y.data_ptr()
    assert y._version > version
    assert torch.equal(y, F.relu(x))
    grad = torch.randn(4, 5)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(F.relu(x), x, grad)[0])
    square = (x * x).exp()  # exp saves its result
    ops.relu_(square)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        ops.relu_(x)


def test_dropout_mask_is_the_state_and_its_gradient_the_mask():
    x = torch.randn(300, requires_grad=True)
    state = rng(3)
    y = ops.dropout(x, 0.25, state)
    assert state.tolist() == [3, 1]
    assert torch.equal(y, ops.dropout(x, 0.25, rng(3)))
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, kept / 0.75)
    z = x * 1
    ops.dropout_(z, 0.25, rng(3))
    assert torch.equal(z, y)
    assert torch.equal(torch.autograd.grad(z.sum(), x)[0], grad)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(probability):
    x = torch.ones(200_000)
    y = ops.dropout(x, probability, rng(11))
    sigma = math.sqrt(probability / (1 - probability) / x.numel())
    assert abs(y.mean().item() - 1) < 5 * sigma


def test_default_noise_follows_manual_seed():
    x, weight = torch.randn(8, 64), torch.randn(3, 64, requires_grad=True)

    def gradient():
        return torch.autograd.grad(ops.linear(x, weight, None, 1).sum(), weight)[0]

    torch.manual_seed(5)
    first, second = gradient(), gradient()
    torch.manual_seed(5)
    torch.randn(0)
    assert torch.equal(gradient(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("layer", [
    lambda x, weight, bias: conv(x, weight[:, :, None, None], bias),
    lambda x, weight, bias: ops.linear(x, weight, bias, 2),
    lambda x, weight, bias: ops.batch_norm(x, weight[0], bias, None, None, True, 0.1, 1e-5),
])  # fmt: skip
def test_retain_graph_and_freed_buffers(layer):
    x = torch.randn(4, 8, 8, 8, requires_grad=True)
    inputs = [x, torch.randn(8, 8, requires_grad=True), torch.randn(8, requires_grad=True)]
    y = layer(*inputs).square().sum()
    first = torch.autograd.grad(y, inputs, retain_graph=True)
    second = torch.autograd.grad(y, inputs)
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, inputs)


def test_double_backward_is_refused_where_the_copy_would_make_it_wrong():
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, requires_grad=True)
    matrix = torch.randn(3, 6, requires_grad=True)
    for y in (
        conv(x, weight, None),
        ops.linear(x, matrix),
        ops.batch_norm(x, None, None, None, None, True, 0.1, 1e-5),
        ops.max_pool2d(x, [2, 2]),
    ):
        with pytest.raises(NotImplementedError, match="cannot be differentiated"):
            torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("layer", [
    ops.relu, lambda t: ops.dropout(t, 0.5, rng()), lambda t: ops.avg_pool2d(t, [2, 2]),
    lambda t: ops.adaptive_avg_pool2d(t, [1, 1]), lambda t: ops.adaptive_avg_pool2d(t, [2, 3]),
])  # fmt: skip
def test_double_backward_is_right_where_nothing_is_lost(layer):
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    v = torch.randn_like(layer(x), requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x), x, v, create_graph=True)
    (back,) = torch.autograd.grad((grad * x.detach()).sum(), v)
    torch.testing.assert_close(back, layer(x).detach())


def test_gradient_checkpointing_recomputes_the_same():
    x, weight = torch.randn(4, 8), torch.randn(8, 8, requires_grad=True)

    def block(t):
        return ops.dropout(ops.relu(ops.linear(t, weight, None, 2)), 0.25)

    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(block(x).square().sum(), weight)
    torch.manual_seed(1)
    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.square().sum(), weight)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_as_torch_does(dtype, device):
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3, requires_grad=True)
    matrix = torch.randn(3, 6, requires_grad=True)
    with torch.autocast(device, dtype=dtype):
        for y, exact in (
            (conv(x, weight, None), F.conv2d(x, weight)),
            (ops.linear(x, matrix), F.linear(x, matrix)),
        ):
            assert y.dtype == dtype
            assert torch.equal(y, exact)
    (conv_grad,) = torch.autograd.grad(conv(x, weight, None).sum(), weight)
    assert conv_grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gradients_reach_float32_parameters(dtype, device):
    x, matrix = torch.randn(16, 6), torch.randn(3, 6, requires_grad=True)
    with torch.autocast(device, dtype=dtype):
        y = ops.linear(x, matrix, None, 8)
    y.float().sum().backward()
    assert matrix.grad.dtype == torch.float32
    torch.testing.assert_close(matrix.grad, x.sum(0).expand(3, 6), rtol=0.05, atol=0.2)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: conv(torch.ones(1, 1, 5, dtype=torch.float64), torch.ones(1, 1, 3), None), "input must be float32"),
    (lambda: conv(torch.ones(1, 5), torch.ones(1, 1, 3), None), "input must have rank 3"),
    (lambda: conv(torch.ones(1, 1, 5), torch.ones(1, 3), None), "weight must have 1 to 3 spatial dimensions"),
    (lambda: conv(torch.ones(1, 1, 5), torch.ones(1, 1, 3), None, bits=9), "bits must be in 1..8, got 9"),
    (lambda: conv(torch.ones(1, 1, 5), torch.ones(1, 1, 3), None, group_size=33), "group_size must be a positive"),
    (lambda: ops.convolution(torch.ones(1, 1, 5), torch.ones(1, 1, 3), None, [1, 1], [0], [1], False, [0], 1),
     "stride must have 1 entry, got"),
    (lambda: ops.linear(torch.ones(3, 4), torch.ones(2, 5)), "input must have in_features = 5"),
    (lambda: ops.linear(torch.ones(3, 4), torch.ones(4)), "weight must have shape"),
    (lambda: ops.linear(torch.ones(3, 4), torch.ones(2, 4), torch.ones(3)), "bias must have shape"),
    (lambda: ops.batch_norm(torch.ones(3), None, None, None, None, True, 0.1, 1e-5), "input must have shape"),
    (lambda: ops.batch_norm(torch.ones(3, 4), torch.ones(3), None, None, None, True, 0.1, 1e-5), "weight must have"),
    (lambda: ops.relu(torch.ones(3, dtype=torch.int32)), "input must be float32"),
    (lambda: ops.dropout(torch.ones(3), 1.5), r"probability must be in \[0, 1\], got 1.5"),
    (lambda: ops.dropout(torch.ones(3), math.nan), "probability must be in"),
    (lambda: ops.max_pool2d(torch.ones(3, 4), [2, 2]), "input must be .N, C, H, W. or .C, H, W."),
    (lambda: ops.max_pool2d(torch.ones(1, 1, 4, 4), [0, 2]), "kernel_size must be at least 1"),
    (lambda: ops.max_pool2d(torch.ones(1, 1, 4, 4), [2, 2], padding=[2, 2]), "padding must be at most half"),
    (lambda: ops.max_pool2d(torch.ones(1, 1, 4, 4), [9, 9]), "the window must fit"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call()
