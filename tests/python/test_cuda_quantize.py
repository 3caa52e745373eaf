"""quantize and dequantize on a GPU give the bytes and values of the CPU, bit for bit."""

import hashlib
import math

import pytest
import test_quantize
import torch
from devices import assert_same_bits, rng
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.cuda

ops = torch.ops.actnn
GPU = "cuda"
ROUNDINGS = ["dithered", "stochastic", "nearest"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BITS = range(1, 9)
GROUP_SIZES = [32, 64, 96, 128, 160, 256, 512, 1024, 2048]
SIZES = [0, 1, 7, 8, 31, 63, 255, 256, 257, 1000, 1023, 1024, 1025, 8191, 8192, 8193, 100_003]


def assert_same_on_gpu(x, bits, group_size=256, rounding="dithered", state=(1234, 5), on_gpu=None):
    """Packs and unpacks x on both devices. `on_gpu`: x there, if it is to lie otherwise than a plain copy does."""
    y = x.to(GPU) if on_gpu is None else on_gpu
    case = f"{tuple(x.shape)} {x.dtype}, {bits} bits, groups of {group_size}, {rounding}, state {state}"
    cpu_state, gpu_state = rng(*state), rng(*state, device=GPU)
    expected = ops.quantize(x, bits, group_size, rounding, cpu_state)
    packed = ops.quantize(y, bits, group_size, rounding, gpu_state)
    assert packed.device == y.device
    assert_same_bits(packed, expected, case)
    assert gpu_state.tolist() == cpu_state.tolist() == [state[0], state[1] + 1], case
    flat = [x.numel()], [1], x.dtype, bits, group_size
    assert_same_bits(ops.dequantize(packed, *flat), ops.dequantize(expected, *flat), case)
    return packed


def placed(tensor, offset):
    """The tensor's elements on the GPU, `offset` elements behind the start of their allocation."""
    buffer = torch.zeros(tensor.numel() + offset, dtype=tensor.dtype, device=GPU)
    buffer[offset:] = tensor.flatten()
    return buffer[offset:].view(tensor.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_size(dtype, group_size, rounding):
    x = torch.randn(max(SIZES)).to(dtype)
    for size in SIZES:
        for bits in BITS:
            assert_same_on_gpu(x[:size], bits, group_size, rounding)


@pytest.mark.parametrize("group_size", [256, 160])
def test_millions_of_elements(group_size):
    x = torch.randn(5_000_011)
    for dtype in DTYPES:
        for bits in (1, 4, 7):
            assert_same_on_gpu(x.to(dtype), bits, group_size)


def holding(values, size=3000):
    """Random numbers with `values` among them, in every second group of 256."""
    x = torch.randn(size)
    for i, value in enumerate(values):
        x[512 * i + 37 * (i + 1)] = value
    return x


def signed_zeros(size=3000):
    return torch.where(torch.rand(size) < 0.5, 0.0, -0.0)


# Of the element type's range: `info` is torch.finfo.
SPECIAL = {
    "NaN": lambda info: holding([math.nan, math.nan]),
    "infinities": lambda info: holding([math.inf, -math.inf, math.inf]),
    "NaN and infinities": lambda info: holding([math.nan, math.inf, -math.inf]),
    "only NaN": lambda info: torch.full((700,), math.nan),
    "only infinity": lambda info: torch.full((700,), -math.inf),
    "zeros": lambda info: torch.zeros(700),
    "negative zeros": lambda info: -torch.zeros(700),
    "zeros of both signs": lambda info: signed_zeros(),
    "zeros of both signs and positive numbers": lambda info: torch.maximum(signed_zeros(), torch.randn(3000)),
    "constant": lambda info: torch.full((700,), -3.140625),
    "constant, not of the parameter type": lambda info: torch.full((700,), 0.1),
    "constant and subnormal": lambda info: torch.full((700,), info.smallest_normal / 8),
    "two values": lambda info: torch.where(torch.rand(3000) < 0.5, 1.0, 1.0 + info.eps),
    "subnormal": lambda info: torch.rand(3000) * info.smallest_normal,
    "subnormal of both signs": lambda info: torch.randn(3000) * info.smallest_normal / 4,
    "around the smallest step": lambda info: torch.randn(3000, dtype=torch.float64) * 2.0**-109,
    "around the largest number": lambda info: torch.linspace(0.9, 1, 3000, dtype=torch.float64) * info.max,
    "the whole range": lambda info: torch.linspace(-1, 1, 3000, dtype=torch.float64) * info.max,
    "half of the range": lambda info: torch.linspace(-0.5, 0.5, 3000, dtype=torch.float64) * info.max,
    "all magnitudes": lambda info: torch.randn(3000) * 2.0 ** torch.randint(-30, 15, (3000,)),
    "one outlier in a group": lambda info: holding([info.max / 4] * 5),
    "far from zero": lambda info: 1000 + torch.randn(3000),
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_numbers(name, dtype):
    x = SPECIAL[name](torch.finfo(dtype)).to(dtype)
    for group_size in (32, 96, 256, 1024):
        for bits in BITS:
            for rounding in ROUNDINGS:
                assert_same_on_gpu(x, bits, group_size, rounding)


def test_float16_up_to_its_largest_number():
    x = (torch.arange(63_000, 65_536, 4).float()).half()
    assert torch.isinf(x[-1]) and x[torch.isfinite(x)].max() == 65_504
    for values in (x, x[torch.isfinite(x)], -x, torch.cat([x, -x])):
        for bits in BITS:
            assert_same_on_gpu(values, bits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 96, 256, 1024])
def test_elements_that_begin_anywhere(dtype, group_size):
    x = torch.randn(8192 + 77).to(dtype)
    for offset in range(1, 17):
        y = placed(x, offset)
        assert y.data_ptr() % 16 == offset * x.element_size() % 16
        for bits in (1, 2, 3, 4, 8):
            assert_same_on_gpu(x, bits, group_size, on_gpu=y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [32, 96, 256, 1024])
def test_packed_bytes_that_begin_anywhere(dtype, group_size):
    x = torch.randn(4096 + 77).to(dtype)
    for bits in BITS:
        expected = ops.quantize(x, bits, group_size, "dithered", rng())
        values = ops.dequantize(expected, x.shape, x.stride(), dtype, bits, group_size)
        for offset in (1, 2, 3, 4, 8, 15):
            packed = placed(expected, offset)
            assert packed.data_ptr() % 16 == offset
            decoded = ops.dequantize(packed, x.shape, x.stride(), dtype, bits, group_size)
            assert_same_bits(decoded, values, f"{bits} bits, at {offset}")


LAYOUTS = {
    "0-D": ((), lambda x: x),
    "contiguous": ((3, 5, 7, 11), lambda x: x),
    "all but the first": ((1001,), lambda x: x[1:]),
    "an odd storage offset": ((7, 300), lambda x: x[3, 7:]),
    "channels_last": ((2, 19, 5, 7), lambda x: x.to(memory_format=torch.channels_last)),
    "channels_last, all but the first": (
        (3, 19, 5, 7),
        lambda x: x.to(memory_format=torch.channels_last)[1:],
    ),
    "channels_last_3d": ((2, 19, 3, 5, 7), lambda x: x.to(memory_format=torch.channels_last_3d)),
    "transposed": ((40, 50), lambda x: x.t()),
    "permuted": ((4, 5, 6, 7), lambda x: x.permute(2, 0, 3, 1)),
    "with gaps": ((40, 50), lambda x: x[:, ::2]),
    "transposed with gaps": ((40, 50), lambda x: x.t()[::3]),
    "expanded": ((1, 50, 1), lambda x: x.expand(9, 50, 4)),
    "empty": ((4, 0, 3), lambda x: x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(layout, dtype):
    shape, view = LAYOUTS[layout]
    base = torch.randn(shape).to(dtype)
    x, y = view(base), view(base.to(GPU))
    assert x.stride() == y.stride()
    for bits in BITS:
        packed = assert_same_on_gpu(x, bits, on_gpu=y)
        if x.stride() == torch.empty_like(x).stride():  # dense: it can be unpacked to these strides
            decoded = ops.dequantize(packed, x.shape, x.stride(), dtype, bits, 256)
            expected = ops.dequantize(packed.cpu(), x.shape, x.stride(), dtype, bits, 256)
            assert_same_bits(decoded, expected)


@given(
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(1, 8),
    size=st.integers(0, 5000),
    group_size=st.sampled_from([32, 64, 96, 128, 224, 256, 512, 800, 1024, 2048]),
    rounding=st.sampled_from(ROUNDINGS),
    scale=st.sampled_from([1e-40, 1e-20, 1e-5, 1.0, 1e3, 1e30, 1e38]),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
    poison=st.sampled_from([None, None, math.nan, math.inf, -math.inf]),
    place=st.integers(0, 9),
    seed=st.integers(-(2**63), 2**63 - 1),
    offset=st.integers(0, 2**62),
)
@settings(max_examples=300, deadline=None)
def test_any_input(dtype, bits, size, group_size, rounding, scale, shift, poison, place, seed, offset):
    generator = torch.Generator().manual_seed(seed & 0xFFFF)
    x = ((torch.randn(size, generator=generator, dtype=torch.float64) + shift) * scale).to(dtype)
    if poison is not None and size:
        x[seed % size] = poison
    assert_same_on_gpu(x, bits, group_size, rounding, (seed, offset), placed(x, place))


@pytest.mark.parametrize("state", [(0, 0), (-1, 0), (2**63 - 1, 1), (-(2**63), 2**32 - 1), (7, 2**32), (7, 2**62)])
def test_any_random_state(state):
    assert_same_on_gpu(torch.randn(1000), 2, state=state)


def test_the_random_state_may_be_a_row_of_a_tensor():
    states = torch.tensor([0, 3, 4, 5, 6, 7], device=GPU)
    x = torch.randn(1000, device=GPU)
    for first in range(5):
        seed, offset = states[first : first + 2].tolist()
        packed = ops.quantize(x, 2, 256, "dithered", states[first : first + 2])
        assert_same_bits(packed, ops.quantize(x.cpu(), 2, 256, "dithered", rng(seed, offset)))
        assert states[first : first + 2].tolist() == [seed, offset + 1]


def test_consecutive_calls_draw_fresh_noise():
    x, state = torch.randn(1000, device=GPU), rng(7, device=GPU)
    first, second = (ops.quantize(x, 2, 256, "dithered", state) for _ in range(2))
    assert not torch.equal(first, second)
    assert_same_bits(second, ops.quantize(x.cpu(), 2, 256, "dithered", rng(7, 1)))
    ops.quantize(x, 2, 256, "nearest", state)
    assert state.tolist() == [7, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_golden_bytes(dtype, bits):
    x = test_quantize.golden_input(dtype).to(GPU)
    packed = ops.quantize(x, bits, 256, "dithered", rng(42, 3, device=GPU))
    assert hashlib.sha256(bytes(packed.tolist())).hexdigest()[:16] == test_quantize.GOLDEN[dtype][bits - 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_decoded_values_are_unbiased(dtype, bits):
    draws = 2000
    x, state = torch.randn(512).to(dtype), rng(99, device=GPU)
    y = x.to(GPU)
    mean = torch.zeros(512, dtype=torch.float64, device=GPU)
    for _ in range(draws):
        packed = ops.quantize(y, bits, 256, "dithered", state)
        mean += ops.dequantize(packed, y.shape, y.stride(), dtype, bits, 256).double() / draws
    step = test_quantize.steps(packed.cpu(), x).double()
    # As on the CPU: 5 sigma, and the resolution of positions on the grid and of the element type.
    resolution = step * 2.0**-9 + x.double().abs().max() * (0 if dtype == torch.float32 else torch.finfo(dtype).eps)
    assert ((mean.cpu() - x.double()).abs() <= 5 * step / math.sqrt(12 * draws) + resolution).all()


def test_more_than_two_to_the_31_elements():
    count, group_size, bits = 2**31 + 256 * 1001, 256, 3
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    group = torch.randn(group_size, device=GPU).bfloat16()
    x = group.repeat(count // group_size)
    packed = ops.quantize(x, bits, group_size, "nearest", rng(device=GPU))
    one = ops.quantize(group, bits, group_size, "nearest", rng(device=GPU))
    groups = count // group_size
    codes_begin = 16 + -(-4 * groups // 16) * 16
    assert (packed[16 : 16 + 4 * groups].view(groups, 4) == one[16:20]).all()
    assert (packed[codes_begin:].view(groups, -1) == one[32:]).all()
    decoded = ops.dequantize(packed, x.shape, x.stride(), x.dtype, bits, group_size).view(groups, group_size)
    assert (decoded == ops.dequantize(one, [group_size], [1], x.dtype, bits, group_size)).all()
    # Noise too: the last groups differ from the first, and stay within a step.
    packed = ops.quantize(x, bits, group_size, "dithered", rng(device=GPU))
    codes = packed[codes_begin:].view(groups, -1)
    assert not torch.equal(codes[-1000:], codes[:1000])
    decoded = ops.dequantize(packed, x.shape, x.stride(), x.dtype, bits, group_size).view(groups, group_size)
    step = one[18:20].view(torch.bfloat16).float()
    assert ((decoded[-1000:].float() - group.float()).abs() <= step * 1.05).all()
