"""Max-pooling with window positions and average pooling that saves shapes: exact, like torch's."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

pytestmark = pytest.mark.usefixtures("device")

ops = torch.ops.actnn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WINDOWS = [
    {"kernel_size": (2, 2)}, {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)},
    {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (2, 1)},
    {"kernel_size": (3, 3), "stride": (2, 2), "ceil_mode": True},
    {"kernel_size": (2, 2), "stride": (3, 3), "padding": (1, 1), "ceil_mode": True},
    {"kernel_size": (1, 1), "stride": (2, 2)}, {"kernel_size": (11, 13), "padding": (5, 6), "stride": (1, 1)},
]  # fmt: skip


def max_pool(x, op, kernel_size, stride=(), padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    return op(x, kernel_size, list(stride), padding, dilation, ceil_mode)


def torch_max_pool(x, kernel_size, stride=(), padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    return F.max_pool2d(x, kernel_size, stride or None, padding, dilation, ceil_mode, return_indices=True)


def inputs(dtype, memory_format, special=False):
    # Few distinct values, so that there are many ties.
    x = (torch.randn(2, 5, 13, 14) * 4).round().div(4).to(dtype)
    if special:
        x[0, 0, 3:5, 2:6] = math.nan
        x[0, 1] = -math.inf
        x[1, 2, ::3] = math.inf
    return x.to(memory_format=memory_format).requires_grad_()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("special", [False, True])
def test_max_pool_equals_torch_on_the_cpu(window, dtype, memory_format, special):
    # On CUDA, torch adds gradients in another order at every run, and its indices of equal elements are others.
    x = inputs(dtype, memory_format, special)
    x_on_cpu = x.detach().cpu().requires_grad_()
    y, indices = max_pool(x, ops.max_pool2d_with_indices, **window)
    expected, expected_indices = torch_max_pool(x_on_cpu, **window)
    torch.testing.assert_close(y.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert y.stride() == expected.stride()
    assert torch.equal(indices.cpu(), expected_indices)
    assert not indices.requires_grad
    torch.testing.assert_close(max_pool(x, ops.max_pool2d, **window), y, rtol=0, atol=0, equal_nan=True)
    grad = torch.randn(expected.shape).to(dtype)
    (actual,) = torch.autograd.grad(y, x, grad)
    (wanted,) = torch.autograd.grad(expected, x_on_cpu, grad.cpu())
    assert torch.equal(actual.cpu(), wanted)
    assert actual.stride() == wanted.stride()


@pytest.mark.parametrize(("kernel", "bytes_per_position"), [((16, 16), 1), ((17, 16), 2), ((1, 300), 2)])
def test_large_windows_take_wider_positions(kernel, bytes_per_position):
    x = torch.randn(1, 2, 20, 310, requires_grad=True)
    y, positions = ops.max_pool2d_pack(x.detach(), kernel, [1, 1], [0, 0], [1, 1], False)
    assert positions.numel() == y.numel() * bytes_per_position
    y, indices = max_pool(x, ops.max_pool2d_with_indices, kernel, (1, 1))
    expected, expected_indices = torch_max_pool(x, kernel, (1, 1))
    assert torch.equal(y, expected) and torch.equal(indices, expected_indices)
    actual, wanted = (torch.autograd.grad(out.sum(), x)[0] for out in (y, expected))
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_positions_that_no_forward_wrote_do_no_harm(memory_format):
    grad = torch.randn(2, 3, 4, 4).to(memory_format=memory_format)
    window = ([3, 3], [2, 2], [1, 1], [1, 1], False)
    for position in (0, 1, 3, 8, 9, 255):
        positions = torch.full((grad.numel(),), position, dtype=torch.uint8)
        channels_last = memory_format == torch.channels_last
        result = ops.max_pool2d_pack_backward(grad, positions, [2, 3, 8, 8], channels_last, *window)
        assert result.shape == (2, 3, 8, 8) and result.isfinite().all()


def test_unbatched_and_empty_inputs():
    x = torch.randn(3, 8, 9, requires_grad=True)
    assert torch.equal(ops.max_pool2d(x, [2, 2]), F.max_pool2d(x, 2))
    empty = torch.randn(0, 3, 8, 8, requires_grad=True)
    y = ops.max_pool2d(empty, [2, 2])
    assert y.shape == (0, 3, 4, 4)
    assert torch.autograd.grad(y.sum(), empty)[0].shape == empty.shape


AVERAGE = [
    ((2,), (), (0,), False, True, None), ((3,), (2,), (1,), True, True, None), ((3,), (2,), (1,), False, False, None),
    ((2,), (1,), (0,), False, True, 3),
]  # fmt: skip


@pytest.mark.parametrize("arguments", AVERAGE)
@pytest.mark.parametrize(
    ("dimensions", "memory_format"),
    [(2, torch.contiguous_format), (2, torch.channels_last), (3, torch.contiguous_format), (3, torch.channels_last_3d)],
)
def test_average_pool_equals_torch(arguments, dimensions, memory_format):
    x = torch.randn((2, 3, 7, 8, 9)[: 2 + dimensions]).to(memory_format=memory_format).requires_grad_()
    op, torch_op = ((ops.avg_pool2d, F.avg_pool2d), (ops.avg_pool3d, F.avg_pool3d))[dimensions - 2]
    kernel, stride, padding, *rest = arguments
    y = op(x, kernel * dimensions, list(stride * dimensions), padding * dimensions, *rest)
    expected = torch_op(x, kernel * dimensions, stride * dimensions or None, padding * dimensions, *rest)
    assert torch.equal(y, expected)
    grad = torch.randn_like(expected)
    # The same function of torch computes both; on CUDA it may add in another order at every run.
    torch.testing.assert_close(*(torch.autograd.grad(out, x, grad)[0] for out in (y, expected)))


@pytest.mark.parametrize(("size", "dimensions"), list(itertools.product((1, 2, 5), (2, 3))))
def test_adaptive_average_pool_equals_torch(size, dimensions):
    x = torch.randn((2, 3, 7, 8, 9)[: 2 + dimensions], requires_grad=True)
    op, torch_op = ((ops.adaptive_avg_pool2d, F.adaptive_avg_pool2d), (ops.adaptive_avg_pool3d, F.adaptive_avg_pool3d))[
        dimensions - 2
    ]
    y, expected = op(x, [size] * dimensions), torch_op(x, size)
    assert torch.equal(y, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, grad)[0] for out in (y, expected)))
