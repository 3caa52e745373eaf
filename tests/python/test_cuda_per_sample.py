"""A bit width per sample on a GPU: the bytes and values of the CPU, with the widths in GPU memory."""

import pytest
import torch
from devices import assert_same_bits, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from test_per_sample import code_bytes

pytestmark = pytest.mark.cuda

ops = torch.ops.actnn
GPU = "cuda"
ROUNDINGS = ["dithered", "stochastic", "nearest"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random_bits(samples, generator=None):
    return torch.randint(1, 9, (samples,), dtype=torch.uint8, generator=generator)


def assert_same_on_gpu(x, bits, spare=0, group_size=256, rounding="dithered", state=(1234, 5), on_gpu=None):
    y = x.to(GPU) if on_gpu is None else on_gpu
    gpu_bits = bits.to(GPU)
    case = f"{tuple(x.shape)} {x.dtype}, groups of {group_size}, {rounding}, {spare} spare bytes"
    room = (code_bytes(x, bits) if x.shape[0] else 0) + spare
    cpu_state, gpu_state = rng(*state), rng(*state, device=GPU)
    expected = ops.quantize_per_sample(x, bits, room, group_size, rounding, cpu_state)
    packed = ops.quantize_per_sample(y, gpu_bits, room, group_size, rounding, gpu_state)
    assert_same_bits(packed, expected, case)
    assert gpu_state.tolist() == cpu_state.tolist() == [state[0], state[1] + 1]
    shape, stride = [x.shape[0], x.numel() // max(1, x.shape[0])], [x.numel() // max(1, x.shape[0]), 1]
    decoded = ops.dequantize_per_sample(packed, gpu_bits, shape, stride, x.dtype, group_size)
    assert_same_bits(decoded, ops.dequantize_per_sample(expected, bits, shape, stride, x.dtype, group_size), case)
    return packed


SHAPES = [
    (1, 1), (1, 105), (3, 105), (8, 3, 5, 7), (7, 8), (7, 256), (7, 257), (5, 600), (3, 1024), (3, 1031), (2, 8193),
    (1000, 33), (1000, 3, 5, 7), (2, 100_003), (0, 5), (4, 0),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_shape(shape, dtype):
    x = torch.randn(shape).to(dtype)
    for group_size in (32, 96, 128, 256, 512, 1024, 2048):
        for rounding in ROUNDINGS:
            assert_same_on_gpu(x, random_bits(shape[0]), 0, group_size, rounding)


def test_very_many_samples():
    assert_same_on_gpu(torch.randn(70_000, 9), random_bits(70_000))


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_in_every_sample(bits):
    x = torch.randn(6, 1024 + 105)
    assert_same_on_gpu(x, torch.full((6,), bits, dtype=torch.uint8))


@pytest.mark.parametrize("spare", [1, 3, 4, 40, 1000])
def test_spare_room_is_zero(spare):
    for shape in ((3, 105), (1, 7), (1000, 33), (0, 5), (4, 0)):
        packed = assert_same_on_gpu(torch.randn(shape), random_bits(shape[0]), spare)
        assert (packed[packed.numel() - spare :] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_that_begin_anywhere(dtype):
    x = torch.randn(5, 1031).to(dtype)
    for offset in range(1, 10):
        buffer = torch.zeros(x.numel() + offset, dtype=dtype, device=GPU)
        buffer[offset:] = x.flatten()
        assert_same_on_gpu(x, random_bits(5), on_gpu=buffer[offset:].view(x.shape))


@pytest.mark.parametrize("view", [
    lambda x: x.to(memory_format=torch.channels_last), lambda x: x[1:], lambda x: x.transpose(0, 1),
    lambda x: x[:, ::2],
])  # fmt: skip
def test_layouts(view):
    base = torch.randn(5, 6, 7, 9)
    x, y = view(base), view(base.to(GPU))
    assert_same_on_gpu(x, random_bits(x.shape[0]), on_gpu=y)


def test_groups_that_cannot_be_represented():
    x = torch.randn(6, 1000)
    x[1, 300], x[3], x[5, 999] = torch.nan, torch.inf, -torch.inf
    x[4] = 0.1
    for group_size in (96, 256):
        assert_same_on_gpu(x, random_bits(6), group_size=group_size)


def test_packed_bytes_that_begin_anywhere():
    x, bits = torch.randn(5, 1031, device=GPU), random_bits(5).to(GPU)
    packed = ops.quantize_per_sample(x, bits, code_bytes(x, bits), 256, "dithered", rng(device=GPU))
    layout = x.shape, x.stride(), x.dtype, 256
    expected = ops.dequantize_per_sample(packed, bits, *layout)
    for offset in (1, 2, 3, 4, 8, 15):
        buffer = torch.zeros(packed.numel() + offset, dtype=torch.uint8, device=GPU)
        buffer[offset:] = packed
        assert_same_bits(ops.dequantize_per_sample(buffer[offset:], bits, *layout), expected)


@given(
    dtype=st.sampled_from(DTYPES),
    samples=st.integers(0, 40),
    elements=st.integers(0, 1200),
    group_size=st.sampled_from([32, 96, 128, 256, 512, 1024]),
    rounding=st.sampled_from(ROUNDINGS),
    spare=st.integers(0, 50),
    seed=st.integers(-(2**63), 2**63 - 1),
)
@settings(max_examples=200, deadline=None)
def test_any_samples(dtype, samples, elements, group_size, rounding, spare, seed):
    generator = torch.Generator().manual_seed(seed & 0xFFFF)
    x = torch.randn(samples, elements, generator=generator).to(dtype)
    assert_same_on_gpu(x, random_bits(samples, generator), spare, group_size, rounding, (seed, 3))


def test_a_width_that_is_none_makes_its_sample_nan_and_no_other():
    # The host does not read the widths, so there is nobody to raise an error.
    x = torch.randn(6, 600, device=GPU)
    bits = torch.tensor([4, 0, 8, 9, 255, 2], dtype=torch.uint8, device=GPU)
    packed = ops.quantize_per_sample(x, bits, 8000, 256, "dithered", rng(device=GPU))
    y = ops.dequantize_per_sample(packed, bits, x.shape, x.stride(), x.dtype, 256)
    bad = torch.tensor([False, True, False, True, True, False], device=GPU)
    assert torch.equal(y.isnan().all(1), bad) and torch.equal(y.isnan().any(1), bad)
    assert ((y - x)[~bad].abs() <= 2.5).all()


def test_a_sample_without_room_becomes_nan_and_no_other():
    x = torch.randn(3, 600, device=GPU)
    bits = torch.full((3,), 4, dtype=torch.uint8, device=GPU)
    room = 2 * 300 + 299
    packed = ops.quantize_per_sample(x, bits, room, 256, "dithered", rng(device=GPU))
    assert packed.numel() == 16 + 48 + room
    y = ops.dequantize_per_sample(packed, bits, x.shape, x.stride(), x.dtype, 256)
    assert y.isnan().all(1).tolist() == [False, False, True]
    assert ((y - x)[:2].abs() <= 0.6).all()
