"""Masks, ReLU, dropout and max-pooling on a GPU: the CPU's results, bit for bit."""

import itertools
import math

import pytest
import torch
from devices import assert_same_bits, rng
from test_pooling import WINDOWS

pytestmark = pytest.mark.cuda

ops = torch.ops.actnn
GPU = "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [0, 1, 7, 8, 9, 31, 63, 64, 65, 255, 256, 257, 1023, 1025, 8191, 8193, 100_003]


def placed(tensor, offset):
    """The tensor's elements on the GPU, `offset` elements behind the start of their allocation, and that allocation."""
    buffer = torch.ones(tensor.numel() + offset + 64, dtype=tensor.dtype, device=GPU)
    view = buffer[offset : offset + tensor.numel()]
    view.copy_(tensor.flatten())
    return view.view(tensor.shape), buffer


def numbers(size, dtype):
    """Numbers with zeros of both signs, infinities, NaNs of both signs and subnormals among them."""
    x = torch.randn(size).to(dtype)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-7, -1e-7, 1e-40, -1e-40]
    for i, value in enumerate(special[: size // 3]):
        x[i * 3 :: 37] = value
    return x


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 2),
    "with gaps": lambda x: x[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "all but the first": lambda x: x[1:],
}


# --- masks ---


@pytest.mark.parametrize("size", SIZES)
def test_masks(size):
    for offset in (0, 1, 3, 8):
        # Whatever is not 0 is true.
        bools = torch.randint(0, 3, (size,), dtype=torch.uint8).mul_(85).view(torch.bool)
        on_gpu, _ = placed(bools.view(torch.uint8), offset)
        expected = ops.pack_mask(bools)
        packed = ops.pack_mask(on_gpu.view(torch.bool))
        assert_same_bits(packed, expected)
        moved, _ = placed(packed.cpu(), offset)
        assert_same_bits(ops.unpack_mask(moved, [size], [1]), ops.unpack_mask(expected, [size], [1]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_of_every_layout(layout):
    base = torch.rand(3, 19, 5, 8) < 0.3
    x, y = LAYOUTS[layout](base), LAYOUTS[layout](base.to(GPU))
    expected = ops.pack_mask(x)
    assert_same_bits(ops.pack_mask(y), expected)
    stride = torch.empty_like(x).stride()
    assert_same_bits(ops.unpack_mask(expected.to(GPU), x.shape, stride), ops.unpack_mask(expected, x.shape, stride))


# --- ReLU ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_relu_and_its_mask(dtype, size):
    x = numbers(size, dtype)
    expected, expected_mask = ops.relu_pack(x)
    for offset in (0, 1, 2, 3, 8, 9):
        y, buffer = placed(x, offset)
        around = buffer.clone()
        output, mask = ops.relu_pack(y)
        assert_same_bits(output, expected)
        assert_same_bits(mask, expected_mask)
        assert_same_bits(buffer, around)
        assert_same_bits(ops.relu_pack_(y), expected_mask)
        assert_same_bits(y, expected)
        around[offset : offset + size] = expected.to(GPU)
        assert_same_bits(buffer, around)  # nothing beside it changed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu_of_every_layout(dtype, layout):
    base = numbers(3 * 19 * 5 * 8, dtype).view(3, 19, 5, 8)
    x, y = LAYOUTS[layout](base), LAYOUTS[layout](base.to(GPU))
    for actual, expected in zip(ops.relu_pack(y), ops.relu_pack(x), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_masked_gradients(dtype, size):
    grad, mask = numbers(size, dtype), ops.pack_mask(torch.rand(size) < 0.5)
    expected = ops.apply_mask(grad, mask, [1])
    for offset in (0, 1, 2, 3, 8, 9):
        moved, _ = placed(mask, offset)
        assert_same_bits(ops.apply_mask(placed(grad, offset)[0], moved, [1]), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_gradients_take_the_layout_of_the_mask(layout):
    grad = LAYOUTS[layout](torch.randn(3, 19, 5, 8))
    mask = (torch.rand(grad.shape) < 0.5).to(memory_format=torch.channels_last)
    packed = ops.pack_mask(mask)
    expected = ops.apply_mask(grad, packed, mask.stride())
    assert_same_bits(ops.apply_mask(grad.to(GPU), packed.to(GPU), mask.stride()), expected)


# --- dropout ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.1, 0.5, 0.9, 1.0])
def test_dropout(dtype, probability):
    for size in SIZES:
        x = numbers(size, dtype)
        states = [rng(2**63 - 1 - size, 2**32 - 1), rng(2**63 - 1 - size, 2**32 - 1, device=GPU)]
        expected, expected_state = ops.dropout_forward(x, probability, states[0])
        for offset in (0, 1, 3, 8):
            y, buffer = placed(x, offset)
            output, used = ops.dropout_forward(y, probability, states[1])
            assert_same_bits(output, expected)
            assert_same_bits(used, expected_state)
            assert_same_bits(states[1], states[0])
            assert_same_bits(ops.apply_dropout(y, probability, used, [1]), expected)
            around = buffer.clone()
            assert_same_bits(ops.dropout_forward_(y, probability, used.clone()), expected_state)
            around[offset : offset + size] = expected.to(GPU)
            assert_same_bits(buffer, around)
            states[1].copy_(used)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_of_every_layout(layout):
    base = torch.randn(3, 19, 5, 8)
    x, y = LAYOUTS[layout](base), LAYOUTS[layout](base.to(GPU))
    expected, state = ops.dropout_forward(x, 0.3, rng())
    assert_same_bits(ops.dropout_forward(y, 0.3, rng(device=GPU))[0], expected)
    grad = torch.randn(x.shape)
    gradient = ops.apply_dropout(grad.to(GPU), 0.3, state.to(GPU), expected.stride())
    assert_same_bits(gradient, ops.apply_dropout(grad, 0.3, state, expected.stride()))


# --- max-pooling ---


def pool_arguments(kernel_size, stride=None, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    return kernel_size, stride or kernel_size, padding, dilation, ceil_mode


def assert_same_pooling(x, window, on_gpu=None, grad_layout=torch.preserve_format):
    y = x.to(GPU) if on_gpu is None else on_gpu
    arguments = pool_arguments(**window)
    output, positions = ops.max_pool2d_pack(x, *arguments)
    gpu_output, gpu_positions = ops.max_pool2d_pack(y, *arguments)
    assert_same_bits(gpu_output, output)
    assert_same_bits(gpu_positions, positions)
    channels_last = x.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last)
    channels_last = channels_last and not x.is_contiguous()
    where = x.shape, channels_last, *arguments
    assert_same_bits(ops.max_pool2d_indices(gpu_positions, *where), ops.max_pool2d_indices(positions, *where))
    # Large and small numbers, so that the order in which a pixel's gradients are added shows.
    grad = torch.randn(output.shape) * 10.0 ** torch.randint(-3, 3, output.shape)
    grad = grad.to(x.dtype).to(memory_format=grad_layout)
    backward = ops.max_pool2d_pack_backward(grad.to(GPU), gpu_positions, *where)
    assert_same_bits(backward, ops.max_pool2d_pack_backward(grad, positions, *where))


def pool_input(shape, dtype, memory_format, special):
    # Few distinct values, so that there are many ties.
    x = (torch.randn(shape) * 4).round().div(4).to(dtype)
    if special:
        x[0, 0, 1:5, 2:6] = math.nan
        x[0, -1] = -math.inf
        x[-1, 0, ::3] = math.inf
        x[-1, -1, ::2] = -0.0
        x[-1, -1, 1::2] = 0.0
    return x.to(memory_format=memory_format)


GEOMETRIES = [
    *WINDOWS,
    {"kernel_size": (2, 2), "stride": (1, 1)},
    {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1)},
    {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True},
    {"kernel_size": (5, 4), "stride": (3, 2), "padding": (2, 2), "dilation": (2, 3), "ceil_mode": True},
    {"kernel_size": (2, 2), "stride": (5, 4)},
    {"kernel_size": (13, 14)},
    {"kernel_size": (1, 7), "stride": (1, 1), "padding": (0, 3)},
]
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("window", GEOMETRIES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_max_pool_geometries(window, dtype, memory_format):
    for special in (False, True):
        assert_same_pooling(pool_input((2, 5, 13, 14), dtype, memory_format, special), window)


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 31, 64, 65, 256, 1000])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_max_pool_channels(channels, memory_format):
    window = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    for dtype in DTYPES:
        assert_same_pooling(pool_input((3, channels, 9, 8), dtype, memory_format, True), window)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("shape", "kernel_size", "stride"), [
    ((1, 2, 20, 310), (16, 16), (1, 1)), ((1, 2, 20, 310), (17, 16), (1, 1)), ((1, 3, 20, 310), (1, 300), (1, 1)),
    ((2, 3, 260, 270), (250, 265), (3, 2)),
])  # fmt: skip
def test_max_pool_windows_of_more_than_256_elements(shape, kernel_size, stride, memory_format):
    for dtype in DTYPES:
        x = torch.randn(shape).to(dtype).to(memory_format=memory_format)
        assert_same_pooling(x, {"kernel_size": kernel_size, "stride": stride})


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(70_000, 1, 4, 4), (2, 70_000, 4, 4), (1, 1, 3, 70_000), (16, 64, 112, 112)])
def test_max_pool_of_large_tensors(shape, memory_format):
    window = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    assert_same_pooling(torch.randn(shape).to(memory_format=memory_format), window)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_max_pool_windows_that_miss_the_input(memory_format):
    # A window of rows -1 and 4 over an input of rows 0 to 3.
    window = {"kernel_size": (2, 2), "stride": (1, 1), "padding": (3, 3), "dilation": (5, 5)}
    for dtype in DTYPES:
        assert_same_pooling(torch.randn(2, 3, 4, 4).to(dtype).to(memory_format=memory_format), window)


def test_max_pool_of_unbatched_and_empty_tensors():
    window = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    assert_same_pooling(torch.randn(5, 13, 14), window)
    assert_same_pooling(torch.randn(0, 5, 13, 14), window)


@pytest.mark.parametrize(("dtype", "memory_format"), list(itertools.product(DTYPES, FORMATS)))
def test_max_pool_of_tensors_that_begin_anywhere_or_have_gaps(dtype, memory_format):
    window = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    base = pool_input((4, 8, 13, 14), dtype, memory_format, True)
    for view in (lambda t: t[1:, :, 1:, 1:], lambda t: t[:, 1:], lambda t: t[..., ::2], lambda t: t.transpose(2, 3)):
        x, y = view(base), view(base.to(GPU))
        assert_same_pooling(x.contiguous(memory_format=memory_format), window)
        arguments = pool_arguments(**window)
        for actual, expected in zip(
            ops.max_pool2d_pack(y, *arguments), ops.max_pool2d_pack(x, *arguments), strict=True
        ):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize(("memory_format", "grad_layout"), [FORMATS, FORMATS[::-1]])
def test_max_pool_gradients_of_another_layout(memory_format, grad_layout):
    for window in GEOMETRIES:
        x = pool_input((2, 5, 13, 14), torch.float32, memory_format, False)
        assert_same_pooling(x, window, grad_layout=grad_layout)


def test_more_than_two_to_the_31_elements():
    count = 2**31 + 8 * 1001
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free GPU memory")
    pattern = torch.randn(1001, device=GPU).bfloat16()
    x = pattern.repeat(-(-count // 1001))[:count]
    tail = x[-8000:].clone()  # begins at a whole octet
    output, mask = ops.relu_pack(x)
    expected, expected_mask = ops.relu_pack(tail)
    assert_same_bits(output[-8000:], expected)
    assert_same_bits(mask[-1000:], expected_mask)
    del output
    assert_same_bits(ops.apply_mask(x, mask, [1])[-8000:], ops.apply_mask(tail, expected_mask, [1]))
    assert_same_bits(ops.unpack_mask(mask, [count], [1])[-8000:], ops.unpack_mask(expected_mask, [8000], [1]))
    del mask
    dropped, state = ops.dropout_forward(x, 0.5, rng(device=GPU))
    kept = dropped[-8000:] != 0
    assert 3500 < kept.sum() < 4500
    assert_same_bits(dropped[-8000:][kept], (tail.float() * 2).bfloat16()[kept])
    assert torch.equal(ops.apply_dropout(x, 0.5, state, [1]), dropped)
