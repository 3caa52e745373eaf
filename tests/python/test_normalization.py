"""Layer, RMS, group and instance norm: exact forward, gradients of the copy, what is saved."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from devices import rng
from layer_checks import DTYPES, assert_close_sums, assert_unbiased, decoded, ops, packed_bytes, saved_bytes

pytestmark = pytest.mark.usefixtures("device")

SHAPES = {
    "layer_norm": [((6, 8), 1), ((3, 4, 10), 1), ((3, 4, 10), 2), ((7,), 1), ((0, 5), 1)],
    "group_norm": [((4, 6), 3), ((4, 6, 9), 2), ((2, 6, 5, 7), 6), ((2, 6, 3, 4, 5), 1), ((0, 6, 4), 2)],
}


def parameters(shape, dtype, affine):
    if not affine:
        return None, None
    return [torch.randn(shape).to(dtype).requires_grad_() for _ in range(2)]


def is_given(tensors):
    return [t for t in tensors if t is not None]


def gradients_of_copy(name, x, y, weight, bias, size, grad, bits):
    """torch's backward of a copy of the normalized value, as an input of mean 0 and deviation 1, / the deviation."""
    wanted = [True, weight is not None, bias is not None]
    if name == "layer_norm":
        _, _, rstd = torch.native_layer_norm(x, size, weight, bias, 1e-5)
        normalized = torch.native_layer_norm(x, size, None, None, 1e-5)[0]
        statistics = torch.zeros_like(rstd), torch.ones_like(rstd)
        copy = decoded(normalized, bits)
        gradients = torch.ops.aten.native_layer_norm_backward(grad, copy, size, *statistics, weight, bias, wanted)
        gradients = (gradients[0] * rstd, *gradients[1:])
    else:
        extents = x.shape[0], x.shape[1], x[0, 0].numel() if x.shape[0] else x.shape[2:].numel()
        _, mean, rstd = (t.detach() for t in torch.native_group_norm(x, weight, bias, *extents, size, 1e-5))

        def channels(statistic):
            shape = x.shape[0], x.shape[1], *[1] * (x.dim() - 2)
            return statistic.float().repeat_interleave(x.shape[1] // size, 1).view(shape)

        if x.is_cuda and x.numel():
            rows = x.reshape(1, mean.numel(), -1)
            variance = rstd.float().flatten().square().reciprocal()
            normalized = torch.native_batch_norm(rows, None, None, mean.float().flatten(), variance, False, 0, 0)[0]
            normalized = normalized.view(x.shape)
        elif x.dtype != torch.float32:
            normalized = torch.native_group_norm(x, None, None, *extents, size, 1e-5)[0]
        else:
            normalized = (x - channels(mean)) * channels(rstd)
        copy = decoded(y if weight is None else normalized, bits)
        statistics = torch.zeros_like(rstd), torch.ones_like(rstd)
        gradients = torch.ops.aten.native_group_norm_backward(grad, copy, *statistics, weight, *extents, size, wanted)
        gradients = (gradients[0] * channels(rstd), *gradients[1:])
    return [g for g, w in zip(gradients, wanted, strict=True) if w]


@pytest.mark.parametrize(("name", "shape", "size"), [(n, *c) for n, cases in SHAPES.items() for c in cases])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_autograd_on_the_decoded_copy(name, shape, size, dtype, affine, channels_last, device):
    x = torch.randn(shape).to(dtype)
    if channels_last:
        if len(shape) != 4:
            pytest.skip("no such layout")
        if device == "cuda":
            pytest.skip("torch computes it contiguously")
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    if name == "layer_norm":
        size = list(shape[-size:])
        weight, bias = parameters(size, dtype, affine)
        y = ops.layer_norm(x, size, weight, bias, 1e-5, 3, 256, "dithered", rng())
        exact = F.layer_norm(x, size, weight, bias, 1e-5)
    else:
        weight, bias = parameters([shape[1]], dtype, affine)
        y = ops.group_norm(x, size, weight, bias, 1e-5, 3, 256, "dithered", rng())
        exact = F.group_norm(x, size, weight, bias, 1e-5)
    assert torch.equal(y, exact) and y.stride() == exact.stride()
    inputs = is_given((x, weight, bias))
    grad = torch.randn_like(exact)
    grads = torch.autograd.grad(y, inputs, grad)
    expected = gradients_of_copy(name, x.detach(), y.detach(), weight, bias, size, grad, 3)
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted.to(dtype))
    exact_grads = torch.autograd.grad(exact, inputs, grad)
    assert [g.stride() for g in grads] == [g.stride() for g in exact_grads]
    if affine:
        assert torch.equal(grads[2], exact_grads[2])


def root_mean_square(x, size, eps):
    return (x.square().mean(tuple(range(-len(size), 0)), keepdim=True) + eps).sqrt()


def rms_norm_of_copy(x, normalized, weight, size, eps):
    """rms_norm's gradients, by the exact x's root mean square and this copy of x / root mean square."""
    dims = tuple(range(-len(size), 0))
    rms = root_mean_square(x, size, eps)
    grad_weight = (lambda g: (g * normalized).sum_to_size(size)) if weight is not None else None

    def grad_input(g):
        g = g if weight is None else g * weight
        return (g - normalized * (g * normalized).mean(dims, keepdim=True)) / rms

    return grad_input, grad_weight


@pytest.mark.parametrize(("shape", "size"), SHAPES["layer_norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_rms_norm_equals_autograd_on_the_decoded_copy(shape, size, dtype, affine, eps):
    size = list(shape[-size:])
    x = (torch.randn(shape) * 0.1).to(dtype).requires_grad_()
    weight, _ = parameters(size, dtype, affine)
    y = ops.rms_norm(x, size, weight, eps, 3, 256, "dithered", rng())
    exact = F.rms_norm(x, size, weight, eps)
    assert torch.equal(y, exact) and y.stride() == exact.stride()
    grad = torch.randn_like(exact)
    grads = torch.autograd.grad(y, is_given((x, weight)), grad)
    double = x.detach().double(), None if weight is None else weight.detach().double()
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    normalized = double[0] / root_mean_square(double[0], size, eps)
    copy = decoded(normalized.float().to(dtype), 3).double()
    grad_input, grad_weight = rms_norm_of_copy(double[0], copy, double[1], size, eps)
    torch.testing.assert_close(grads[0], grad_input(grad.double()).to(dtype))
    if affine:
        torch.testing.assert_close(grads[1], grad_weight(grad.double()).to(dtype))
    # With the exact value in the place of the copy, these formulas are torch's gradients.
    exact_grads = torch.autograd.grad(exact, is_given((x, weight)), grad)
    grad_input, grad_weight = rms_norm_of_copy(double[0], normalized, double[1], size, eps)
    wanted = grad_input(grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert (exact_grads[0] - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("shape", [(4, 6, 9), (2, 3, 5, 7), (2, 3, 3, 4, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("use_input_stats", [True, False])
def test_instance_norm_equals_batch_norm_of_instances(shape, dtype, affine, tracked, use_input_stats):
    if not tracked and not use_input_stats:
        pytest.skip("no statistics")
    x = torch.randn(shape).to(dtype).requires_grad_()
    weight, bias = parameters([shape[1]], torch.float32, affine)
    running = (torch.randn(shape[1]), torch.rand(shape[1]) + 0.5) if tracked else (None, None)
    ours, theirs = ([t if t is None else t.clone() for t in running] for _ in range(2))
    y = ops.instance_norm(x, weight, bias, *ours, use_input_stats, 0.1, 1e-5, 4, 256, "dithered", rng())
    exact = F.instance_norm(x, *theirs, weight, bias, use_input_stats, 0.1, 1e-5)
    assert torch.equal(y, exact) and y.stride() == exact.stride()
    if tracked:
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[0], running[0]) == (not use_input_stats)
    grad = torch.randn_like(exact)
    inputs = is_given((x, weight, bias))
    grads = torch.autograd.grad(y, inputs, grad)
    exact_grads = torch.autograd.grad(exact, inputs, grad)
    n, c = shape[:2]
    repeated = [None if t is None else t.detach().repeat(n).requires_grad_() for t in (weight, bias)]
    statistics = [None if t is None else t.repeat(n).to(torch.float32 if affine else dtype) for t in running]
    flat = x.detach().view(1, n * c, -1).requires_grad_()
    z = ops.batch_norm(flat, *repeated, *statistics, use_input_stats, 0.1, 1e-5, 4, 256, "dithered", rng())
    expected = torch.autograd.grad(z, is_given((flat, *repeated)), grad.view(1, n * c, -1))
    torch.testing.assert_close(grads[0], expected[0].view(shape))
    if affine:
        torch.testing.assert_close(grads[1], expected[1].view(n, c).sum(0))
        assert not torch.equal(grads[1], exact_grads[1])
        assert_close_sums(grads[2], exact_grads[2], dtype)
    if not use_input_stats:
        torch.testing.assert_close(grads[0], exact_grads[0], **{} if x.is_cuda else {"rtol": 0, "atol": 0})


def test_instance_norm_of_an_empty_batch():
    x = torch.randn(0, 3, 4, requires_grad=True)
    y = ops.instance_norm(x, None, None, None, None, True, 0.1, 1e-5)
    assert y.shape == F.instance_norm(x).shape
    y.sum().backward()  # torch's, too, has no gradient for x here


NORMS = {
    "layer_norm": ((64, 32), (32,), lambda x, w, b, *q: ops.layer_norm(x, [32], w, b, 1e-5, *q),
                   lambda x, w, b: F.layer_norm(x, (32,), w, b)),
    "rms_norm": ((64, 32), (32,), lambda x, w, b, *q: ops.rms_norm(x, [32], w, 1e-5, *q),
                 lambda x, w, b: F.rms_norm(x, (32,), w, 1e-5)),
    "group_norm": ((8, 4, 32), (4,), lambda x, w, b, *q: ops.group_norm(x, 2, w, b, 1e-5, *q),
                   lambda x, w, b: F.group_norm(x, 2, w, b)),
    "instance_norm": ((8, 4, 64), (4,), lambda x, w, b, *q: ops.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, *q),
                      lambda x, w, b: F.instance_norm(x, weight=w, bias=b)),
}  # fmt: skip
STATISTICS = {"layer_norm": 64 * 4, "rms_norm": 64 * 4, "group_norm": 8 * 2 * 4}  # 1 / deviation


def case(name):
    x_shape, shape, op, exact = NORMS[name]
    return torch.randn(x_shape), torch.randn(shape), torch.randn(shape), op, exact


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_unbiased_to_one_over_n(name, bits):
    x, weight, bias, op, exact = case(name)
    x.requires_grad_(), weight.requires_grad_()
    grad = torch.randn_like(x)
    # The variance of a copy is at most step^2 / 4, with a range of about 6.5 deviations; n = 32 at least.
    allowance = (6.5 / (2**bits - 1)) ** 2 / 4 / 32 * weight.abs().max().item()
    for parameter, allowed in ((weight, 0.0), (x, allowance)):
        assert_unbiased(lambda state: (op(x, weight, bias, bits, 256, "dithered", state) * grad).sum(),
                        lambda: (exact(x, weight, bias) * grad).sum(), [parameter], allowance=allowed)  # fmt: skip


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_saves_packed_bytes_and_statistics(name, bits):
    x, weight, bias, op, _ = case(name)
    for t in (x, weight, bias):
        t.requires_grad_()
    assert saved_bytes(lambda: op(x, weight, bias, bits)) == packed_bytes(x.numel(), bits) + STATISTICS[name]


@pytest.mark.parametrize("name", NORMS)
def test_saves_only_what_a_wanted_gradient_needs(name):
    x, weight, bias, op, exact = case(name)
    assert saved_bytes(lambda: op(x, weight, bias)) == 0
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = op(x.clone(), weight.clone().requires_grad_(), bias)
            assert torch.equal(y, exact(x, weight, bias)) and not y.requires_grad
    if name != "rms_norm":
        bias.requires_grad_()
        frozen = saved_bytes(lambda: op(x, weight, bias))
        assert frozen <= weight.nbytes * (9 if name == "instance_norm" else 1) + STATISTICS.get(name, 8 * 4 * 8)
        (grad,) = torch.autograd.grad(op(x, weight, bias).sum(), bias)
        torch.testing.assert_close(grad, torch.autograd.grad(exact(x, weight, bias).sum(), bias)[0])


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (True, False, True)])
def test_only_wanted_gradients_are_computed(name, wanted):
    x, weight, bias, op, _ = case(name)
    tensors = (x, weight, bias)
    for t, w in zip(tensors, wanted, strict=True):
        t.requires_grad_(w)
    op(*tensors).sum().backward()
    has_bias = name != "rms_norm"
    assert [t.grad is not None for t in tensors] == [*wanted[:2], wanted[2] and has_bias]


@pytest.mark.parametrize("name", NORMS)
def test_double_backward_is_refused(name):
    x, weight, bias, op, _ = case(name)
    x.requires_grad_()
    with pytest.raises(NotImplementedError, match="cannot be differentiated"):
        torch.autograd.grad(op(x, weight, bias).sum(), x, create_graph=True)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_torchs_type(name, input_dtype, device):
    x, weight, bias, op, exact = case(name)
    x = x.to(input_dtype).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        y, expected = op(x, weight, bias), exact(x, weight, bias)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    assert torch.autograd.grad(y.float().sum(), x)[0].dtype == input_dtype


@pytest.mark.parametrize("name", NORMS)
def test_compiles_whole(name, device):
    x, weight, bias, op, _ = case(name)
    for t in (x, weight, bias):
        t.requires_grad_()
    inputs = (x, weight) if name == "rms_norm" else (x, weight, bias)
    torch._dynamo.reset()

    def run(x, weight, bias, state):
        return op(x, weight, bias, 4, 256, "dithered", state)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for actual, expected in zip(*(torch.autograd.grad(f(x, weight, bias, rng()).square().sum(), inputs)
                                  for f in (compiled, run)), strict=True):  # fmt: skip
        torch.testing.assert_close(actual, expected)


ONES = torch.ones


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.layer_norm(ONES(3, 4, dtype=torch.float64), [4]), "layer_norm: input must be float32"),
    (lambda: ops.layer_norm(ONES(3, 4), []), "layer_norm: normalized_shape must have at least 1 entry"),
    (lambda: ops.layer_norm(ONES(3, 4), [3]), r"layer_norm: input must have normalized_shape = \[3\] as its last"),
    (lambda: ops.layer_norm(ONES(4), [3, 4]), r"layer_norm: input must have normalized_shape = \[3, 4\]"),
    (lambda: ops.layer_norm(ONES(3, 4), [4], ONES(3)), r"layer_norm: weight must have shape normalized_shape = \[4\]"),
    (lambda: ops.layer_norm(ONES(3, 4), [4], None, ONES(3)), "layer_norm: bias must have shape"),
    (lambda: ops.layer_norm(ONES(3, 4), [4], ONES(4, device="meta")), "layer_norm: weight must be on the input's"),
    (lambda: ops.layer_norm(ONES(3, 4), [4], ONES(4, dtype=torch.int32)), "layer_norm: weight must be float32"),
    (lambda: ops.layer_norm(ONES(3, 4), [4], bits=0), "layer_norm: bits must be in 1..8, got 0"),
    (lambda: ops.layer_norm(ONES(3, 4), [4], group_size=5), "layer_norm: group_size must be a positive multiple"),
    (lambda: ops.layer_norm(ONES(3, 4), [4], rng_state=ONES(2)), "layer_norm: rng_state must be a contiguous int64"),
    (lambda: ops.rms_norm(ONES(3, 4), [3]), "rms_norm: input must have normalized_shape"),
    (lambda: ops.rms_norm(ONES(3, 4), [4], ONES(3)), "rms_norm: weight must have shape"),
    (lambda: ops.rms_norm(ONES(3, 4), [4], bits=9), "rms_norm: bits must be in 1..8, got 9"),
    (lambda: ops.group_norm(ONES(3), 1), r"group_norm: input must have shape \[N, C\] or \[N, C, ...\], got shape"),
    (lambda: ops.group_norm(ONES(3, 4), 3), "group_norm: num_groups must be positive and divide .* 4, got 3"),
    (lambda: ops.group_norm(ONES(3, 4), 0), "group_norm: num_groups must be positive"),
    (lambda: ops.group_norm(ONES(3, 4), 2, ONES(3)), r"group_norm: weight must have shape \[C\] = \[4\], got shape"),
    (lambda: ops.group_norm(ONES(3, 4), 2, bits=9), "group_norm: bits must be in 1..8, got 9"),
    (lambda: ops.instance_norm(ONES(3, 4), None, None, None, None, True, 0.1, 1e-5), "instance_norm: input must have"),
    (lambda: ops.instance_norm(ONES(3, 4, 5), ONES(3), None, None, None, True, 0.1, 1e-5), "weight must have shape"),
    (lambda: ops.instance_norm(ONES(3, 4, 5), None, None, ONES(3), None, True, 0.1, 1e-5), "running_mean must have"),
    (lambda: ops.instance_norm(ONES(3, 4, 5), None, None, None, None, False, 0.1, 1e-5), "running_mean and running_v"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_group_norm_of_a_channels_last_input_that_needs_no_gradient(device):
    # torch's kernel for channels_last writes to the input's gradient even where there is none
    x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    weight, bias = torch.rand(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    torch.ops.actnn.group_norm(x, 4, weight, bias, 1e-5, 8).square().sum().backward()
    compressed = weight.grad.clone(), bias.grad.clone()
    weight.grad = bias.grad = None
    torch.nn.functional.group_norm(x.contiguous(), 4, weight, bias).square().sum().backward()
    for actual, exact in zip(compressed, (weight.grad, bias.grad), strict=True):
        torch.testing.assert_close(actual, exact, rtol=0.05, atol=0.5)
