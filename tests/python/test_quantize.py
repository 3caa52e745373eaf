"""quantize and dequantize: the packed format and the properties that make it trustworthy."""

import hashlib
import math

import packed_format
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ops = torch.ops.actnn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [0, 1, 7, 8, 63, 255, 256, 257, 1000]


def rng(seed=1234, offset=0):
    return torch.tensor([seed, offset], dtype=torch.int64)


def pack(x, bits, group_size=256, stochastic=True, state=None):
    return ops.quantize(x, bits, group_size, stochastic, rng() if state is None else state)


def unpack(packed, like, bits, group_size=256):
    return ops.dequantize(packed, like.shape, like.stride(), like.dtype, bits, group_size)


def steps(packed, like, bits, group_size=256):
    """The step of each element's group."""
    groups = -(-like.numel() // group_size)
    parameters = packed[: 4 * groups].view(packed_format.parameter_dtype(like.dtype)).view(groups, 2)
    return parameters[:, 1].float().repeat_interleave(group_size)[: like.numel()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("size", SIZES)
def test_bytes_equal_the_reference(dtype, bits, size):
    x = torch.randn(size).to(dtype)
    packed = pack(x, bits)
    assert packed.dtype == torch.uint8 and packed.dim() == 1
    assert torch.equal(packed, packed_format.quantize(x, bits, 256, 1234, 0))
    expected = packed_format.dequantize(packed, x.shape, x.stride(), dtype, bits, 256)
    assert torch.equal(unpack(packed, x, bits), expected)


@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(1, 8),
    size=st.integers(1, 700),
    group_size=st.sampled_from([32, 64, 96, 256, 512]),
    stochastic=st.booleans(),
    scale=st.sampled_from([1e-40, 1e-20, 1e-3, 1.0, 1e3, 1e30]),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
)
@settings(max_examples=150, deadline=None)
def test_any_input_equals_the_reference_and_is_within_one_step(
    data, dtype, bits, size, group_size, stochastic, scale, shift
):
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    generator = torch.Generator().manual_seed(seed & 0xFFFF)
    x = ((torch.randn(size, generator=generator, dtype=torch.float64) + shift) * scale).to(dtype)
    packed = pack(x, bits, group_size, stochastic, rng(seed, 5))
    assert torch.equal(packed, packed_format.quantize(x, bits, group_size, seed & (2**64 - 1), 5, stochastic))
    y = unpack(packed, x, bits, group_size)
    if torch.isfinite(x).all() and torch.isfinite(y).all():
        step = steps(packed, x, bits, group_size)
        constant = x.float().abs() * 2.0**-8  # a constant group is rounded to the parameter type
        rounding = torch.maximum(y.float().abs() * 2.0**-8, torch.tensor(2.0**-24))
        limit = torch.where(step > 0, step, constant) * (1.0 if stochastic else 0.51) + rounding
        assert ((x.float() - y.float()).abs() <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_decoded_values_are_unbiased(dtype, bits):
    draws = 2000
    x = torch.randn(257 + 255).to(dtype)
    state = rng(99)
    mean = torch.zeros_like(x, dtype=torch.float64)
    for _ in range(draws):
        packed = pack(x, bits, state=state)
        mean += unpack(packed, x, bits).double() / draws
    step = steps(packed, x, bits).double()
    # A draw's variance is at most step^2 / 4. The second term is the resolution: of the noise, and of the element type
    # that the grid points are rounded to.
    resolution = step * 2.0**-14 + x.double().abs().max() * (0 if dtype == torch.float32 else torch.finfo(dtype).eps)
    assert ((mean - x.double()).abs() <= 5 * step / 2 / math.sqrt(draws) + resolution).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_nearest_rounding_halves_the_error_and_does_not_depend_on_the_state(bits):
    x = torch.randn(1024)
    packed = pack(x, bits, stochastic=False)
    assert torch.equal(packed, pack(x, bits, stochastic=False, state=rng(5, 6)))
    assert ((x - unpack(packed, x, bits)).abs() <= steps(packed, x, bits) * 0.501).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.140625, 0.1, 6e-5, 300.0])
def test_constant_groups_decode_to_their_value_in_the_parameter_type(dtype, value):
    x = torch.full((300,), value).to(dtype)
    for bits in range(1, 9):
        y = unpack(pack(x, bits), x, bits)
        assert torch.equal(y, x.to(packed_format.parameter_dtype(dtype)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 100, 255])
def test_a_group_with_nan_or_infinity_decodes_to_nan_and_others_do_not(dtype, poison, position):
    x = torch.randn(700).to(dtype)
    x[256 + position] = poison
    for bits in range(1, 9):
        y = unpack(pack(x, bits), x, bits)
        assert torch.isnan(y[256:512]).all()
        assert torch.isfinite(y[:256]).all() and torch.isfinite(y[512:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_numbers_stay_within_one_step(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    x = (torch.rand(512) * tiny).to(dtype)
    for bits in range(1, 9):
        packed = pack(x, bits)
        y = unpack(packed, x, bits)
        assert ((x.double() - y.double()).abs() <= steps(packed, x, bits).double() * 1.001).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_grids_that_leave_the_type_decode_to_nan_not_to_garbage(dtype):
    largest = torch.finfo(dtype).max
    x = torch.linspace(-1, 1, 256).mul(largest).to(dtype)
    for bits in range(1, 9):
        y = unpack(pack(x, bits), x, bits).float()
        assert torch.isnan(y).all() or torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((2, 3, 5, 7), torch.channels_last), ((2, 3, 2, 5, 7), torch.channels_last_3d), ((4, 5), None)],
)
def test_dense_layouts_are_packed_in_storage_order(shape, memory_format):
    x = torch.randn(shape)
    x = x.to(memory_format=memory_format) if memory_format else x.t()
    packed = pack(x, 4)
    flat = torch.as_strided(x, (x.numel(),), (1,))
    assert torch.equal(packed, pack(flat, 4))
    y = unpack(packed, x, 4)
    assert y.stride() == x.stride()
    assert (x - y).abs().max() <= steps(packed, x, 4).max()


def test_tensors_with_gaps_are_packed_like_their_contiguous_copy():
    x = torch.randn(6, 8)[:, ::2]
    assert torch.equal(pack(x, 3), pack(x.contiguous(), 3))
    expanded = torch.randn(1, 8).expand(5, 8)
    assert torch.equal(pack(expanded, 3), pack(expanded.contiguous(), 3))


def test_same_bytes_for_every_thread_count():
    x = torch.randn(1_000_003)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            packed = pack(x, 5)
            results.append((packed, unpack(packed, x, 5)))
    finally:
        torch.set_num_threads(before)
    for packed, y in results[1:]:
        assert torch.equal(packed, results[0][0]) and torch.equal(y, results[0][1])


def test_the_state_advances_and_replays():
    x = torch.randn(500)
    state = rng(7)
    first, second = pack(x, 2, state=state), pack(x, 2, state=state)
    assert state.tolist() == [7, 2]
    assert not torch.equal(first, second)
    assert torch.equal(second, pack(x, 2, state=rng(7, 1)))


# SHA-256 (first 16 digits) of the packed bytes of `golden_input`, groups of 256, seed 42, offset 3; bits 1 to 8.
GOLDEN = {
    torch.float32: [
        "e2d1b8547e7f341d",
        "a65842d43cf1a697",
        "404f1bae0def0768",
        "21d0cc44250a12af",
        "2ca28f24aae5548d",
        "b77af4f77a6f12ef",
        "a616bed3cf152940",
        "38c6a0dd77dddf9f",
    ],
    torch.float16: [
        "f39373bcc4dd6609",
        "e3c403c67005dd48",
        "9a910649d1b23a5e",
        "f80cb29266b9fe9d",
        "fc6ba8d943c67cb8",
        "d71e97819337273e",
        "c2abba9447a6d356",
        "3679a5755927787a",
    ],
    torch.bfloat16: [
        "7e6fb78e9278c1db",
        "3c645f6b1d3b4e35",
        "6dcaa9b07879822a",
        "560a575c712e1598",
        "da993de9017f1e5a",
        "2b2c2803b28d40ea",
        "b169cfabb4799140",
        "0f15a7a6ef1d7a19",
    ],
}


def golden_input(dtype):
    return (torch.arange(1000, dtype=torch.float64) / 128 - 2).to(dtype)


def golden_digest(dtype, bits):
    packed = pack(golden_input(dtype), bits, state=rng(42, 3))
    return hashlib.sha256(bytes(packed.tolist())).hexdigest()[:16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_golden_bytes(dtype, bits):
    assert golden_digest(dtype, bits) == GOLDEN[dtype][bits - 1]


def test_a_few_bytes_by_hand():
    # minimum 0, step 1, deterministic rounding: the codes are the values.
    x = torch.tensor([0.0, 1, 2, 3, 3, 2, 1, 0])
    packed = pack(x, 2, stochastic=False)
    assert packed.tolist() == [0, 0, 0x80, 0x3F] + [0] * 12 + [0b11100100, 0b00011011]


@pytest.mark.parametrize(("arguments", "message"), [
    ((torch.ones(4, dtype=torch.float64), 4, 256, True, rng()), "input must be float32, float16 or bfloat16"),
    ((torch.ones(4, dtype=torch.int32), 4, 256, True, rng()), "input must be float32, float16 or bfloat16"),
    ((torch.ones(4), 0, 256, True, rng()), "bits must be in 1..8, got 0"),
    ((torch.ones(4), 9, 256, True, rng()), "bits must be in 1..8, got 9"),
    ((torch.ones(4), 4, 0, True, rng()), "group_size must be a positive multiple of 32, got 0"),
    ((torch.ones(4), 4, 100, True, rng()), "group_size must be a positive multiple of 32, got 100"),
    ((torch.ones(4), 4, 256, True, torch.zeros(2)), "rng_state must be a contiguous int64 tensor"),
    ((torch.ones(4), 4, 256, True, torch.zeros(3, dtype=torch.int64)), "rng_state must be a contiguous int64 tensor"),
])  # fmt: skip
def test_bad_arguments_of_quantize(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.quantize(*arguments)


@pytest.mark.parametrize(("change", "message"), [
    ({"packed": torch.zeros(5, dtype=torch.uint8)}, "packed must have 20 bytes .* got 5"),
    ({"packed": torch.zeros(20)}, "packed must be a contiguous 1-D uint8 tensor"),
    ({"size": [8, 1]}, "stride must have one entry per dimension"),
    ({"size": [-8]}, "size must not be negative"),
    ({"stride": [2]}, "stride must describe a dense tensor"),
    ({"dtype": torch.int64}, "dtype must be float32, float16 or bfloat16"),
    ({"bits": 12}, "bits must be in 1..8, got 12"),
    ({"group_size": -32}, "group_size must be a positive multiple of 32"),
])  # fmt: skip
def test_bad_arguments_of_dequantize(change, message):
    arguments = {"packed": torch.zeros(20, dtype=torch.uint8), "size": [8], "stride": [1], "dtype": torch.float32,
                 "bits": 4, "group_size": 256}  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        ops.dequantize(*(arguments | change).values())
