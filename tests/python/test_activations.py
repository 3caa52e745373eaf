"""Activation functions and softmax: exact forward, exact or unbiased gradients, and what is saved."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import assert_same_bits, rng
from layer_checks import DTYPES, assert_unbiased, decoded, ops, packed_bytes, saved_bytes
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("device")

# The op of actnn, torch's function
OF_INPUT = {
    "gelu": (lambda x, *q: ops.gelu(x, "none", *q), F.gelu),
    "gelu tanh": (lambda x, *q: ops.gelu(x, "tanh", *q), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (ops.silu, F.silu),
}
OF_DERIVATIVE = {
    "hardswish": (ops.hardswish, F.hardswish),
    "sigmoid": (ops.sigmoid, torch.sigmoid),
    "tanh": (ops.tanh, torch.tanh),
}
SMOOTH = OF_INPUT | OF_DERIVATIVE
IN_PLACE = {"silu": (ops.silu_, F.silu), "hardswish": (ops.hardswish_, F.hardswish)}
PIECEWISE = {
    "leaky_relu": (ops.leaky_relu, F.leaky_relu),
    "leaky_relu 0.3": (lambda x: ops.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 0.3)),
    "leaky_relu -0.5": (lambda x: ops.leaky_relu(x, -0.5), lambda x: F.leaky_relu(x, -0.5)),
    "leaky_relu 0": (lambda x: ops.leaky_relu(x, 0.0), lambda x: F.leaky_relu(x, 0.0)),
    "hardtanh": (ops.hardtanh, F.hardtanh),
    "hardtanh 0.1": (lambda x: ops.hardtanh(x, -0.3, 0.1), lambda x: F.hardtanh(x, -0.3, 0.1)),
    "relu6": (lambda x: ops.hardtanh(x, 0, 6), F.relu6),
}
INPUTS = {
    "matrix": lambda: torch.randn(30, 50) * 3,
    "empty": lambda: torch.randn(0, 4),
    "scalar": lambda: torch.randn(()),
    "transposed": lambda: torch.randn(7, 9).t(),
    "not dense": lambda: torch.randn(4, 10)[:, ::2],
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


def gradient(f, x, grad):
    return torch.autograd.grad(f(x), x, grad)[0]


@pytest.mark.parametrize("name", OF_INPUT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_smooth_gradient_is_the_one_of_the_decoded_input(name, dtype, make):
    op, exact = OF_INPUT[name]
    x = INPUTS[make]().to(dtype).requires_grad_()
    y = op(x, 3, 64, "dithered", rng())
    assert_same_bits(y, exact(x))
    grad = torch.randn_like(y)
    copy = decoded(x.detach(), 5, 64).requires_grad_()
    assert_same_bits(torch.autograd.grad(y, x, grad)[0], gradient(exact, copy, grad))


@pytest.mark.parametrize("name", OF_INPUT)
def test_smooth_inputs_of_many_rows_are_in_columns(name):
    op, exact = OF_INPUT[name]
    x = (torch.randn(100, 24) * torch.logspace(-3, 3, 24)).requires_grad_()
    y = op(x, 6, 64, "dithered", rng())
    grad = torch.randn_like(y)
    packed = ops.quantize_columns(x.detach(), 6, 64, "dithered", rng())
    copy = ops.dequantize_columns(packed, 100, 24, x.dtype, 6, 64).requires_grad_()
    assert_same_bits(torch.autograd.grad(y, x, grad)[0], gradient(exact, copy, grad))


@pytest.mark.parametrize("name", [*OF_INPUT, "silu in place"])
@pytest.mark.parametrize("rows", [40, 100])  # in storage order, in columns
def test_a_linear_layer_behind_reads_the_function_of_the_copy(name, rows):
    op, exact = IN_PLACE["silu"] if name == "silu in place" else OF_INPUT[name]
    x, weight = torch.randn(rows, 32, requires_grad=True), torch.randn(8, 32, requires_grad=True)
    y = op(x * 1, 4, 256, "dithered", rng())
    (packed,) = ops.shared_copy(y)
    z = ops.linear(y, weight)
    grad = torch.randn_like(z)
    actual = torch.autograd.grad(z, weight, grad)[0]
    if rows >= 64:
        copy = ops.dequantize_columns(packed, rows, 32, x.dtype, 5, 256)
    else:
        copy = ops.dequantize(packed, x.shape, x.stride(), x.dtype, 5, 256)
    torch.testing.assert_close(actual, grad.t() @ exact(copy), rtol=1e-5, atol=1e-5)


def test_a_convolution_behind_reads_the_function_of_the_copy():
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 16, 1, 1, requires_grad=True)

    def run():
        return ops.convolution(ops.silu_(x * 1), weight, None, [1], [0], [1], False, [0], 1)

    assert saved_bytes(run) == saved_bytes(lambda: ops.silu_(x * 1)) == 16 + 4 * 16 + 5 * x.numel() // 8
    z = run()
    grad = torch.randn_like(z)
    wanted = torch.einsum("nohw,nihw->oi", grad, F.silu(x)).detach()
    actual = torch.autograd.grad(z, weight, grad)[0].flatten(1)
    assert 0 < (actual - wanted).norm() < 0.1 * wanted.norm()


def test_a_checkpoint_saves_the_same_twice():
    x, weight = torch.randn(100, 32, requires_grad=True), torch.randn(8, 32, requires_grad=True)

    def run():
        return ops.linear(ops.gelu(x, "none", 5, 256, "dithered", rng()), weight, None, 5, 256, "dithered", rng())

    grad = torch.randn(100, 8)
    y = checkpoint(run, use_reentrant=False)
    wanted = torch.autograd.grad(run(), (x, weight), grad)
    for a, w in zip(torch.autograd.grad(y, (x, weight), grad), wanted, strict=True):
        assert (a - w).norm() < 0.05 * w.norm()


def test_bits_read_as_another_dtype_have_no_copy():
    y = ops.gelu(torch.randn(100, 32, dtype=torch.bfloat16, requires_grad=True))
    assert ops.shared_copy(y) and not ops.shared_copy(y.view(torch.float16))


def test_what_has_changed_is_not_read_of_the_copy():
    x, weight = torch.randn(100, 32, requires_grad=True), torch.randn(8, 32, requires_grad=True)
    y = ops.gelu(x)
    with torch.no_grad():
        y.mul_(100)
    assert not ops.shared_copy(y)
    z = ops.linear(y, weight)
    grad = torch.randn_like(z)
    wanted = grad.t() @ y
    assert (torch.autograd.grad(z, weight, grad)[0] - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("name", OF_DERIVATIVE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_smooth_gradient_is_the_one_of_the_decoded_derivative(name, dtype, make):
    op, exact = OF_DERIVATIVE[name]
    x = INPUTS[make]().to(dtype).requires_grad_()
    y, expected = op(x, 3, 64, "dithered", rng()), exact(x)
    assert_same_bits(y, expected)
    derivative = gradient(exact, x, torch.ones_like(expected))
    grad = torch.randn_like(expected)
    actual = torch.autograd.grad(y, x, grad)[0]
    assert_same_bits(actual, grad * decoded(derivative, 3, 64))
    if x.numel() > 1:
        assert not torch.equal(actual, gradient(exact, x, grad))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("bits", [1, 4])
def test_smooth_gradient_is_unbiased(name, bits):
    op, exact = SMOOTH[name]
    allowance = 0.01 if name in OF_INPUT else 0.0  # the copy's variance times half the third derivative
    x, grad = (torch.randn(20, 20) * 2).requires_grad_(), torch.randn(20, 20)
    assert_unbiased(
        lambda state: (op(x, bits, 64, "dithered", state) * grad).sum(),
        lambda: (exact(x) * grad).sum(),
        [x],
        allowance=allowance,
    )


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("make", ["matrix", "not dense", "channels_last"])
def test_smooth_in_place(name, make):
    op, exact = IN_PLACE[name]
    x = INPUTS[make]().requires_grad_()
    y = x * 1
    version = y._version
    out = op(y, 3, 256, "dithered", rng())
    assert out.data_ptr() == y.data_ptr() and y._version > version
    assert_same_bits(y, exact(x * 1))
    grad = torch.randn_like(y)
    expected = gradient(lambda t: SMOOTH[name][0](t, 3, 256, "dithered", rng()), x, grad)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], expected)
    with torch.no_grad():
        assert torch.equal(op(x.detach().clone()), exact(x))
    with torch.inference_mode():
        assert torch.equal(op(x.detach().clone()), exact(x))
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        op(x)


@pytest.mark.parametrize("name", PIECEWISE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", INPUTS)
def test_piecewise_is_exact(name, dtype, make):
    op, exact = PIECEWISE[name]
    x = INPUTS[make]().to(dtype).requires_grad_()
    y, expected = op(x), exact(x)
    assert_same_bits(y, expected)
    grad = torch.randn_like(expected)
    actual, wanted = (torch.autograd.grad(out, x, grad)[0] for out in (y, expected))
    assert torch.equal(actual, wanted) and actual.stride() == wanted.stride()


@pytest.mark.parametrize("name", PIECEWISE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_piecewise_at_corners_and_special_values(name, dtype):
    op, exact = PIECEWISE[name]
    values = [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-7, -1e-7, 1.0, -1.0, 6.0, 0.1, -0.3]
    x = torch.tensor(values).to(dtype).requires_grad_()
    torch.testing.assert_close(op(x), exact(x), rtol=0, atol=0, equal_nan=True)
    for grad in (torch.ones_like(x), torch.full_like(x, math.inf), torch.full_like(x, -2.0)):
        if not (math.isinf(float(grad[0])) and name in ("leaky_relu 0",)):  # torch gives 0 * inf = NaN there
            torch.testing.assert_close(gradient(op, x, grad), gradient(exact, x, grad), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("op", "exact"), [
    (lambda x: ops.leaky_relu_(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    (lambda x: ops.leaky_relu_(x, -0.2), lambda x: F.leaky_relu(x, -0.2)),
    (lambda x: ops.hardtanh_(x, -0.5, 0.5), lambda x: F.hardtanh(x, -0.5, 0.5)),
])  # fmt: skip
@pytest.mark.parametrize("make", ["matrix", "not dense", "channels_last"])
def test_piecewise_in_place(op, exact, make):
    x = INPUTS[make]().requires_grad_()
    y = x * 1
    version = y._version
    out = op(y)
    assert out.data_ptr() == y.data_ptr() and y._version > version
    assert_same_bits(y, exact(x * 1))
    grad = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], gradient(exact, x, grad))
    with torch.inference_mode():
        assert torch.equal(op(x.detach().clone()), exact(x))
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        op(x)


@pytest.mark.parametrize("name", PIECEWISE)
def test_piecewise_double_backward_is_right(name):
    op, exact = PIECEWISE[name]
    x, v = torch.randn(5, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    backs = []
    for f in (op, exact):
        (grad,) = torch.autograd.grad(f(x), x, v, create_graph=True)
        backs.append(torch.autograd.grad((grad * x.detach()).sum(), v)[0])
    torch.testing.assert_close(*backs)


PRELU = [((5,), 1), ((7, 4), 4), ((7, 4), 1), ((2, 3, 5, 4), 3), ((2, 3, 5, 4), 1), ((0, 3, 4), 3)]


@pytest.mark.parametrize(("shape", "channels"), PRELU)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_prelu_equals_autograd_on_the_decoded_negative_part(shape, channels, dtype, channels_last):
    x = torch.randn(shape).to(dtype)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    weight = torch.randn(channels).to(dtype).requires_grad_()
    y, exact = ops.prelu(x, weight, 3, 256, "dithered", rng()), F.prelu(x, weight)
    assert_same_bits(y, exact)
    grad = torch.randn_like(exact)
    grads, exact_grads = (torch.autograd.grad(out, (x, weight), grad) for out in (y, exact))
    assert torch.equal(grads[0], exact_grads[0]) and grads[0].stride() == exact_grads[0].stride()
    copy = decoded(x.detach().clamp(max=0), 3)
    product = torch.where(x > 0, 0, grad * copy)
    other = [d for d in range(x.dim()) if d != 1]
    expected = product.float().sum(other) if channels > 1 else product.float().sum().reshape(1)
    torch.testing.assert_close(grads[1], expected.to(dtype))


def test_prelu_weight_gradient_is_unbiased():
    x, weight, grad = torch.randn(8, 3, 20), torch.randn(3, requires_grad=True), torch.randn(8, 3, 20)
    for bits in (1, 4):
        assert_unbiased(lambda state, bits=bits: (ops.prelu(x, weight, bits, 256, "dithered", state) * grad).sum(),
                        lambda: (F.prelu(x, weight) * grad).sum(), [weight])  # fmt: skip


SOFTMAX = {"softmax": (ops.softmax, F.softmax), "log_softmax": (ops.log_softmax, F.log_softmax)}


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize(("shape", "dim"), [((7, 9), -1), ((7, 9), 0), ((2, 5, 4, 3), 1), ((6,), 0), ((0, 4), 1),
                                            ((), 0)])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_softmax_equals_the_formula_on_the_decoded_output(name, shape, dim, dtype, channels_last):
    op, exact_op = SOFTMAX[name]
    x = torch.randn(shape).to(dtype)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    state = rng()
    y, exact = op(x, dim, 4, 64, "dithered", state), exact_op(x, dim)
    assert_same_bits(y, exact)
    grad = torch.randn_like(exact)
    (actual,) = torch.autograd.grad(y, x, grad)
    assert actual.stride() == torch.autograd.grad(exact, x, grad)[0].stride()
    replay = rng()
    if name == "softmax":
        first, second = (decoded(exact.detach(), 4, 64, replay) for _ in range(2))
        assert x.numel() < 20 or not torch.equal(first, second)  # independent
        expected = first * (grad - (grad * second).sum(dim, keepdim=True))
    else:
        expected = grad - decoded(exact.detach().exp(), 4, 64, replay) * grad.sum(dim, keepdim=True)
    assert torch.equal(state, replay)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("bits", [1, 4])
def test_softmax_gradient_is_unbiased(name, bits):
    op, exact = SOFTMAX[name]
    x, grad = torch.randn(10, 12, requires_grad=True), torch.randn(10, 12)
    assert_unbiased(lambda state: (op(x, -1, bits, 32, "dithered", state) * grad).sum(),
                    lambda: (exact(x, -1) * grad).sum(), [x], draws=800)  # fmt: skip


def test_saved_bytes():
    x = torch.randn(4, 8, 10, 10).requires_grad_()
    for bits in (1, 4, 8):
        packed = packed_bytes(x.numel(), bits)
        for op, _ in OF_INPUT.values():
            assert saved_bytes(lambda op=op, bits=bits: op(x, bits)) == packed_bytes(x.numel(), max(bits, 5))
        for op, _ in OF_DERIVATIVE.values():
            assert saved_bytes(lambda op=op, bits=bits: op(x, bits)) == packed
        assert saved_bytes(lambda bits=bits: ops.softmax(x, 1, bits)) == 2 * packed
        assert saved_bytes(lambda bits=bits: ops.softmax(x, 1, bits, 256, "nearest")) == packed
        assert saved_bytes(lambda bits=bits: ops.log_softmax(x, 1, bits)) == packed
        weight = torch.randn(8).requires_grad_()
        mask = x.numel() // 8
        assert saved_bytes(lambda bits=bits, weight=weight: ops.prelu(x, weight, bits)) == packed + mask
        frozen = weight.detach()
        assert saved_bytes(lambda bits=bits, frozen=frozen: ops.prelu(x, frozen, bits)) == mask + frozen.nbytes
    for op, _ in PIECEWISE.values():
        assert saved_bytes(lambda op=op: op(x)) == x.numel() // 8


ALL = {k: v[0] for k, v in (SMOOTH | PIECEWISE).items()} | {
    "prelu": lambda x: ops.prelu(x, torch.full((1,), 0.25, dtype=x.dtype, device=x.device)),
    "softmax": lambda x: ops.softmax(x, 1),
    "log_softmax": lambda x: ops.log_softmax(x, 1),
}
QUANTIZED = [k for k in ALL if k not in PIECEWISE]


@pytest.mark.parametrize("name", ALL)
def test_saves_nothing_where_no_gradient_is_wanted(name):
    x = torch.randn(6, 7)
    assert saved_bytes(lambda: ALL[name](x)) == 0
    x.requires_grad_()
    with torch.no_grad():
        assert not ALL[name](x).requires_grad
    with torch.inference_mode():
        assert not ALL[name](x.detach().clone()).requires_grad


@pytest.mark.parametrize("name", QUANTIZED)
def test_double_backward_is_refused(name):
    x = torch.randn(6, 7, requires_grad=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated"):
        torch.autograd.grad(ALL[name](x).sum(), x, create_graph=True)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_torchs_type(name, input_dtype, device):
    exacts = {**{k: v[1] for k, v in (SMOOTH | PIECEWISE).items()}, "softmax": lambda t: F.softmax(t, 1),
              "log_softmax": lambda t: F.log_softmax(t, 1),
              "prelu": lambda t: F.prelu(t, torch.full((1,), 0.25, dtype=t.dtype, device=t.device))}  # fmt: skip
    x = torch.randn(6, 7).to(input_dtype).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        y, expected = ALL[name](x), exacts[name](x)
    assert y.dtype == expected.dtype and torch.equal(y, expected)
    assert torch.autograd.grad(y.float().sum(), x)[0].dtype == input_dtype


def network(x, weight, states):
    y = ops.gelu(x, approximate="tanh", rng_state=states[0])
    y = ops.leaky_relu(ops.silu(y, 4, 256, "dithered", states[1]), 0.1)
    y = ops.prelu(ops.hardtanh(y, -2, 2), weight, 4, 256, "dithered", states[2])
    return ops.softmax(y, 1, 4, 256, "dithered", states[3])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    weight = torch.randn(1, requires_grad=True)
    for batch in (4, 6) if dynamic else (4,):
        x = torch.randn(batch, 50, requires_grad=True)
        results = [torch.autograd.grad(f(x, weight, [rng(i) for i in range(4)]).square().sum(), (x, weight))
                   for f in (compiled, network)]  # fmt: skip
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected)


def test_in_place_compiles_whole():
    torch._dynamo.reset()

    def run(x, state):
        y = ops.silu_(x * 1, 4, 256, "dithered", state)
        return ops.leaky_relu_(y + 1, 0.1)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 50, requires_grad=True)
    results = [torch.autograd.grad(f(x, rng()).square().sum(), x)[0] for f in (compiled, run)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.gelu(torch.ones(3, dtype=torch.int32)), "actnn::gelu: input must be float32, float16 or bfloat16"),
    (lambda: ops.gelu(torch.ones(3), "erf"), "actnn::gelu: approximate must be 'none' or 'tanh', got 'erf'"),
    (lambda: ops.gelu(torch.ones(3), bits=9), "actnn::gelu: bits must be in 1..8, got 9"),
    (lambda: ops.silu(torch.ones(3), 4, 33), "actnn::silu: group_size must be a positive multiple of 32, got 33"),
    (lambda: ops.silu_(torch.ones(3, dtype=torch.float64)), "actnn::silu: input must be float32"),
    (lambda: ops.hardswish(torch.ones(3), 0), "actnn::hardswish: bits must be in 1..8, got 0"),
    (lambda: ops.tanh(torch.ones(3), 4, 256, "dithered", torch.ones(2)),
     "actnn::tanh: rng_state must be a contiguous int64"),
    (lambda: ops.sigmoid(torch.ones(3), 4, 256, "dithered", torch.ones(2, dtype=torch.int64, device="meta")),
     "actnn::sigmoid: rng_state must be on the input's device"),
    (lambda: ops.leaky_relu(torch.ones(3, dtype=torch.float64)), "actnn::leaky_relu: input must be float32"),
    (lambda: ops.hardtanh(torch.ones(3), 2, 1), "actnn::hardtanh: min_val must be at most max_val, got 2 and 1"),
    (lambda: ops.prelu(torch.ones(3, 4), torch.ones(3)), r"weight must have shape \[1\] or \[C\] = \[4\], got shape"),
    (lambda: ops.prelu(torch.ones(3, 4), torch.ones(4).half()), "actnn::prelu: weight must have the input's dtype"),
    (lambda: ops.prelu(torch.ones(3, 4), torch.ones(4, device="meta")), "actnn::prelu: weight must be on the input's"),
    (lambda: ops.prelu(torch.ones(3, 4), torch.ones(4), 9), "actnn::prelu: bits must be in 1..8, got 9"),
    (lambda: ops.softmax(torch.ones(3, 4), 2), r"softmax: dim must be in -2..1 for an input of shape \[3, 4\], got 2"),
    (lambda: ops.log_softmax(torch.ones(3, 4), -3), "actnn::log_softmax: dim must be in -2..1"),
    (lambda: ops.softmax(torch.ones(3, 4), 1, 9), "actnn::softmax: bits must be in 1..8, got 9"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        call()
