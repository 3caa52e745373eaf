"""3-D max-pooling with window positions: exact, like torch's."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from layer_checks import DTYPES, ops, saved_bytes, saved_tensors

pytestmark = pytest.mark.usefixtures("device")

WINDOWS = [
    {"kernel_size": (2, 2, 2)}, {"kernel_size": (3, 3, 3), "stride": (2, 2, 2), "padding": (1, 1, 1)},
    {"kernel_size": (3, 2, 1), "stride": (1, 2, 2), "dilation": (2, 1, 1), "padding": (1, 1, 0)},
    {"kernel_size": (2, 2, 2), "stride": (3, 3, 3), "padding": (1, 0, 1), "ceil_mode": True},
    {"kernel_size": (3, 3, 2), "stride": (2, 2, 2), "ceil_mode": True, "dilation": (1, 2, 3)},
    {"kernel_size": (5, 7, 8), "stride": (1, 1, 1), "padding": (2, 3, 4)},
]  # fmt: skip


def pool(op, x, kernel_size, stride=(), padding=(0, 0, 0), dilation=(1, 1, 1), ceil_mode=False):
    return op(x, kernel_size, list(stride), padding, dilation, ceil_mode)


def torch_pool(x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
    return F.max_pool3d(x, kernel_size, stride or None, padding, dilation, ceil_mode, return_indices=True)


def make(shape, dtype, memory_format=torch.contiguous_format, special=False):
    # Few distinct values, so that there are many ties.
    x = (torch.randn(shape) * 4).round().div(4).to(dtype)
    if special:
        x[..., 1:3, 2:4, 0:2] = math.nan
        if memory_format == torch.contiguous_format:
            x[..., 4:, :, :] = -math.inf
        x[..., 3, ::3, ::2] = math.inf
    return x.to(memory_format=memory_format).requires_grad_()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("special", [False, True])
def test_equals_torch(window, dtype, memory_format, special, device):
    x = make((2, 3, 7, 9, 8), dtype, memory_format, special)
    y, indices = pool(ops.max_pool3d_with_indices, x, **window)
    expected, expected_indices = torch_pool(x, **window)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert y.stride() == expected.stride()
    assert torch.equal(indices, expected_indices) and not indices.requires_grad
    torch.testing.assert_close(pool(ops.max_pool3d, x, **window), y, rtol=0, atol=0, equal_nan=True)
    # Small integers: exact sums, in whatever order the atomic additions of CUDA come.
    grad = torch.randint_like(expected, -1, 2)
    actual, wanted = (torch.autograd.grad(out, x, grad)[0] for out in (y, expected))
    assert torch.equal(actual, wanted)
    assert actual.stride() == wanted.stride()


@pytest.mark.parametrize(("kernel", "dtype"), [((2, 2, 2), torch.uint8), ((4, 8, 8), torch.uint8),
                                               ((5, 8, 8), torch.int16), ((33, 32, 32), torch.int32)])  # fmt: skip
def test_positions_are_saved_in_the_smallest_type(kernel, dtype):
    x = make((1, 2, 34, 33, 33), torch.float32)
    (saved,), y = saved_tensors(lambda: ops.max_pool3d(x, kernel, [2, 2, 2]))
    assert saved.dtype == dtype and saved.numel() == y.numel()
    assert saved_bytes(lambda: ops.max_pool3d(x, kernel, [2, 2, 2])) == y.numel() * dtype.itemsize
    expected = F.max_pool3d(x, kernel, 2)
    assert torch.equal(*(torch.autograd.grad(out.sum(), x)[0] for out in (y, expected)))


def test_unbatched_and_empty_inputs():
    x = make((3, 4, 8, 9), torch.float32)
    y, expected = ops.max_pool3d(x, [2, 2, 2]), F.max_pool3d(x, 2)
    assert torch.equal(y, expected)
    grad = torch.randn_like(y)
    assert torch.equal(*(torch.autograd.grad(out, x, grad)[0] for out in (y, expected)))
    empty = torch.randn(0, 3, 4, 8, 8, requires_grad=True)
    y = ops.max_pool3d(empty, [2, 2, 2])
    assert y.shape == (0, 3, 2, 4, 4)
    assert torch.autograd.grad(y.sum(), empty)[0].shape == empty.shape


def test_a_window_of_minus_infinity_gives_its_gradient_to_itself():
    # In channels_last_3d torch's index, and with it torch's gradient, is that of an element outside the window.
    x = torch.full((1, 2, 4, 4, 4), -math.inf).to(memory_format=torch.channels_last_3d).requires_grad_()
    (grad,) = torch.autograd.grad(ops.max_pool3d(x, [2, 2, 2]).sum(), x)
    expected = torch.zeros(1, 2, 4, 4, 4)
    expected[..., ::2, ::2, ::2] = 1
    assert torch.equal(grad, expected)


def test_saves_nothing_where_no_gradient_is_wanted():
    x = torch.randn(2, 3, 4, 6, 6)
    assert saved_bytes(lambda: ops.max_pool3d(x, [2, 2, 2])) == 0
    with torch.inference_mode():
        y, indices = ops.max_pool3d_with_indices(x.clone(), [2, 2, 2])
    expected, expected_indices = F.max_pool3d(x, 2, return_indices=True)
    assert torch.equal(y, expected) and torch.equal(indices, expected_indices)


def test_double_backward_is_refused():
    x = torch.randn(2, 3, 4, 6, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="cannot be differentiated"):
        torch.autograd.grad(ops.max_pool3d(x, [2, 2, 2]).sum(), x, create_graph=True)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_torchs_type(input_dtype, device):
    x = torch.randn(2, 3, 4, 6, 6).to(input_dtype).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        y, expected = ops.max_pool3d(x, [2, 2, 2]), F.max_pool3d(x, 2)
    assert y.dtype == expected.dtype and torch.equal(y, expected)
    assert torch.autograd.grad(y.float().sum(), x)[0].dtype == input_dtype


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    torch._dynamo.reset()

    def run(x):
        return ops.max_pool3d(x, [3, 3, 3], [2, 2, 2], [1, 1, 1])

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for extent in (6, 9) if dynamic else (6,):
        x = torch.randn(2, 3, 5, extent, 8, requires_grad=True)
        grads = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (compiled, run)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.max_pool3d(torch.ones(1, 2, 4, 4, 4).double(), [2, 2, 2]), "max_pool3d: input must be float32"),
    (lambda: ops.max_pool3d(torch.ones(4, 4, 4), [2, 2, 2]), r"max_pool3d: input must be \[N, C, D, H, W\] or"),
    (lambda: ops.max_pool3d(torch.ones(1, 2, 4, 4, 4), [2, 2]), "max_pool3d: kernel_size must have 1 or 3 entries"),
    (lambda: ops.max_pool3d(torch.ones(1, 2, 4, 4, 4), [2, 0, 2]), "max_pool3d: kernel_size must be at least 1"),
    (lambda: ops.max_pool3d(torch.ones(1, 2, 4, 4, 4), [2, 2, 2], [0, 1, 1]), "max_pool3d: stride must be at least 1"),
    (lambda: ops.max_pool3d(torch.ones(1, 2, 4, 4, 4), [2, 2, 2], [], [2, 0, 0]), "padding must be at most half"),
    (lambda: ops.max_pool3d_with_indices(torch.ones(1, 2, 4, 4, 4), [2, 2, 2], [], 0, [0, 1, 1]),
     "max_pool3d_with_indices: dilation must be at least 1"),
])  # fmt: skip
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
