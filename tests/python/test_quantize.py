"""quantize and dequantize: the packed format and the properties that make it trustworthy."""

import hashlib
import math

import actnn
import packed_format
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ops = torch.ops.actnn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDINGS = ["dithered", "stochastic", "nearest"]
SIZES = [0, 1, 7, 8, 63, 255, 256, 257, 1000]


def rng(seed=1234, offset=0):
    return torch.tensor([seed, offset], dtype=torch.int64)


def pack(x, bits, group_size=256, rounding="dithered", state=None):
    return ops.quantize(x, bits, group_size, rounding, rng() if state is None else state)


def unpack(packed, like, bits, group_size=256):
    return ops.dequantize(packed, like.shape, like.stride(), like.dtype, bits, group_size)


def steps(packed, like, group_size=256):
    """The step of each element's group."""
    groups = -(-like.numel() // group_size)
    parameters = packed[16 : 16 + 4 * groups].view(torch.bfloat16).view(groups, 2)
    return parameters[:, 1].float().abs().repeat_interleave(group_size)[: like.numel()]


def same(a, b):
    """Equal, and NaN in the same places."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("size", SIZES)
def test_bytes_equal_the_reference(dtype, bits, size):
    x = torch.randn(size).to(dtype)
    packed = pack(x, bits)
    assert packed.dtype == torch.uint8 and packed.dim() == 1
    assert packed.numel() == packed_format.packed_bytes(size, bits, 256)
    assert torch.equal(packed, packed_format.quantize(x, bits, 256, 1234, 0))
    expected = packed_format.dequantize(packed, x.shape, x.stride(), dtype, bits, 256)
    assert torch.equal(unpack(packed, x, bits), expected)


@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(1, 8),
    size=st.integers(1, 700),
    group_size=st.sampled_from([32, 64, 96, 256, 512]),
    rounding=st.sampled_from(ROUNDINGS),
    poison=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    scale=st.sampled_from([1e-40, 1e-20, 1e-3, 1.0, 1e3, 1e30]),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
)
@settings(max_examples=150, deadline=None)
def test_any_input_equals_the_reference_and_is_within_one_step(
    data, dtype, bits, size, group_size, rounding, poison, scale, shift
):
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    generator = torch.Generator().manual_seed(seed & 0xFFFF)
    x = ((torch.randn(size, generator=generator, dtype=torch.float64) + shift) * scale).to(dtype)
    if poison is not None:
        x[data.draw(st.integers(0, size - 1))] = poison
    offset = data.draw(st.integers(-(2**63), 2**63 - 1))
    packed = pack(x, bits, group_size, rounding, rng(seed, offset))
    assert torch.equal(packed, packed_format.quantize(x, bits, group_size, seed, offset, rounding))
    y = unpack(packed, x, bits, group_size)
    assert same(y, packed_format.dequantize(packed, x.shape, x.stride(), dtype, bits, group_size))
    good = torch.isfinite(x) & torch.isfinite(y)
    step = steps(packed, x, group_size)
    of_type = torch.maximum(y.float().abs() * 2.0**-8, torch.tensor(2.0**-24))
    limit = step * (1.01 if rounding == "stochastic" else 0.51) + of_type
    assert ((x.float() - y.float()).abs() <= limit)[good].all()


@pytest.mark.parametrize("rounding", ["dithered", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_decoded_values_are_unbiased(dtype, bits, rounding):
    draws = 2000
    x = torch.randn(257 + 255).to(dtype)
    state = rng(99)
    mean = torch.zeros_like(x, dtype=torch.float64)
    for _ in range(draws):
        packed = pack(x, bits, rounding=rounding, state=state)
        mean += unpack(packed, x, bits).double() / draws
    step = steps(packed, x).double()
    # A draw's variance is step^2 / 12, and without subtraction of the noise at most step^2 / 4. The second term is the
    # resolution: of positions on the grid, and of the element type that values are rounded to.
    deviation = step / math.sqrt(12 if rounding == "dithered" else 4)
    resolution = step * 2.0**-9 + x.double().abs().max() * (0 if dtype == torch.float32 else torch.finfo(dtype).eps)
    assert ((mean - x.double()).abs() <= 5 * deviation / math.sqrt(draws) + resolution).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_subtracting_the_noise_halves_the_variance(bits):
    x = torch.rand(1 << 16)
    squares = {}
    for rounding in ("dithered", "stochastic"):
        packed = pack(x, bits, rounding=rounding)
        error = (unpack(packed, x, bits) - x) / steps(packed, x)
        squares[rounding] = error.double().square().mean().item()
    # The fourth moment of a uniform error is 1/80, so that the mean of 2^16 squares deviates by 3e-4; of the others
    # less than 1e-3. With 1 bit the grid is wider than the range of the elements by 1 / 128 or less.
    assert abs(squares["dithered"] - 1 / 12) < 5 * 3e-4
    assert abs(squares["stochastic"] - 1 / 6) < 5 * 1e-3


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_the_error_does_not_depend_on_the_element(bits):
    """Not even its variance, which is 0 on the grid's points and largest between them without subtraction."""
    step = 0.5
    for share in (0.0, 0.25, 0.5):
        x = torch.full((1 << 14,), share * step)
        x[::256], x[1::256] = 0.0, step * (2**bits - 1)
        error = (unpack(pack(x, bits), x, bits) - x).view(-1, 256)[:, 2:].double() / step
        assert error.abs().max() < 0.5 and abs(error.mean()) < 5 * math.sqrt(1 / 12 / error.numel())
        assert abs(error.square().mean() - 1 / 12) < 5 * math.sqrt(1 / 180 / error.numel())


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_nearest_rounding_halves_the_error_and_does_not_depend_on_the_state(bits):
    x = torch.randn(1024)
    packed = pack(x, bits, rounding="nearest")
    assert torch.equal(packed, pack(x, bits, rounding="nearest", state=rng(5, 6)))
    assert ((x - unpack(packed, x, bits)).abs() <= steps(packed, x) * 0.503).all()


def test_the_header_is_the_random_state_and_says_whether_noise_is_subtracted():
    x = torch.randn(300)
    states = {rounding: rng(-7, 5) for rounding in ROUNDINGS}
    numbers = {
        rounding: pack(x, 3, rounding=rounding, state=state)[:16].view(torch.int64).tolist()
        for rounding, state in states.items()
    }
    assert numbers == {"dithered": [-7, 5], "stochastic": [-7, 5 - 2**63], "nearest": [0, -(2**63)]}
    assert all(state.tolist() == [-7, 6] for state in states.values())
    # The bytes behind it are the same: only decoding differs.
    dithered, stochastic = (pack(x, 3, rounding=rounding)[16:] for rounding in ("dithered", "stochastic"))
    assert torch.equal(dithered, stochastic)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.140625, 0.1, 6e-5, 300.0])
def test_constant_groups_of_a_16_bit_value_decode_to_it(dtype, value):
    x = torch.full((300,), value).to(packed_format.minimum_dtype(dtype)).to(dtype)
    for bits in range(1, 9):
        for rounding in ROUNDINGS:
            assert torch.equal(unpack(pack(x, bits, rounding=rounding), x, bits), x)


@pytest.mark.parametrize("value", [0.1, -3.14159, 1e-30])
def test_constant_groups_of_other_values_are_unbiased(value):
    x = torch.full((1 << 14,), value)
    for bits in range(1, 9):
        packed = pack(x, bits)
        error = (unpack(packed, x, bits) - x).double() / steps(packed, x)
        assert error.abs().max() <= 0.503  # positions are rounded to 1 / 256
        assert abs(error.mean()) < 5 * math.sqrt(1 / 12 / error.numel()) + 2.0**-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 100, 255])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_nan_and_infinity_stay_alone(dtype, poison, position, rounding):
    x = torch.randn(700).to(dtype)
    x[256 + position] = x[256 + position // 2] = poison
    others = torch.isfinite(x)
    for bits in range(2, 9):
        packed = pack(x, bits, rounding=rounding)
        y = unpack(packed, x, bits)
        assert torch.isnan(y[~others]).all() and torch.isfinite(y[others]).all()
        error = (y.float() - x.float()).abs() / steps(packed, x)
        # 16-bit values are rounded once more.
        assert error[others].max() <= (1.01 if rounding == "stochastic" else 0.51) + (
            0 if dtype == torch.float32 else 0.05 * 2.0 ** (bits - 3)
        )


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_with_one_bit_there_is_no_code_for_nan_and_the_group_is_lost(poison):
    x = torch.randn(700)
    x[300] = poison
    y = unpack(pack(x, 1), x, 1)
    assert torch.isnan(y[256:512]).all()
    assert torch.isfinite(y[:256]).all() and torch.isfinite(y[512:]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_one_value_and_nan_and_of_nan_alone(dtype):
    x = torch.full((64,), 2.5).to(dtype)
    x[3::7] = math.nan
    x[32:] = math.inf
    for bits in range(2, 9):
        y = unpack(pack(x, bits, 32), x, bits, 32)
        assert torch.equal(y[:32].nan_to_num(2.5), torch.full((32,), 2.5).to(dtype))
        assert torch.equal(torch.isnan(y), ~torch.isfinite(x))


def test_decoded_values_of_groups_with_nan_are_unbiased():
    draws, x = 2000, torch.randn(256)
    x[::10] = math.nan
    good, state = torch.isfinite(x), rng(3)
    mean = sum(unpack(pack(x, 2, state=state), x, 2).double() for _ in range(draws)) / draws
    step = steps(pack(x, 2), x).double()
    limit = 5 * step / math.sqrt(12 * draws) + step * 2.0**-9
    assert ((mean - x.double()).abs() <= limit)[good].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_numbers_stay_within_one_step(dtype):
    tiny = torch.finfo(dtype).smallest_normal
    x = (torch.rand(512) * tiny).to(dtype)
    for bits in range(1, 9):
        packed = pack(x, bits)
        y = unpack(packed, x, bits)
        assert ((x.double() - y.double()).abs() <= steps(packed, x).double() * 1.001).all()


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
    assert (x - y).abs().max() <= steps(packed, x).max()


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
        "3f05620403efdc3f",
        "ff0de906140ff25c",
        "a769a67d03fceaea",
        "e7972e26c4b5fa7b",
        "591a779fb730b9cf",
        "5e49581ebed57bcc",
        "75c25ed8f1304027",
        "e40a020ca66651a1",
    ],
    torch.float16: [
        "5392d9ae18b44b02",
        "f98358eff25ee0e5",
        "3b7aabe468df4942",
        "b7ca37f25dfe499e",
        "00181fda464e696e",
        "c45c3d7b78f9f280",
        "07de78a4562421bb",
        "75b2bd0a05d2d980",
    ],
    torch.bfloat16: [
        "1832a29306356b3e",
        "c51aaeeb132ee137",
        "0028faf1d6b5702c",
        "51bbc041e958a138",
        "785ba7f3232ca075",
        "466723be0e926cf1",
        "c9698ab43001c99f",
        "d93a73b0bfc547dc",
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
    packed = pack(x, 2, rounding="nearest")
    header = [0] * 15 + [0x80]
    assert packed.tolist() == header + [0, 0, 0x80, 0x3F] + [0] * 12 + [0b11100100, 0b00011011]


def test_the_version_is_exported():
    assert actnn.FORMAT_VERSION == ops.format_version() == 2


@pytest.mark.parametrize(("arguments", "message"), [
    ((torch.ones(4, dtype=torch.float64), 4, 256, "dithered", rng()), "input must be float32, float16 or bfloat16"),
    ((torch.ones(4, dtype=torch.int32), 4, 256, "dithered", rng()), "input must be float32, float16 or bfloat16"),
    ((torch.ones(4), 0, 256, "dithered", rng()), "bits must be in 1..8, got 0"),
    ((torch.ones(4), 9, 256, "dithered", rng()), "bits must be in 1..8, got 9"),
    ((torch.ones(4), 4, 0, "dithered", rng()), "group_size must be a positive multiple of 32, got 0"),
    ((torch.ones(4), 4, 100, "dithered", rng()), "group_size must be a positive multiple of 32, got 100"),
    ((torch.ones(4), 4, 256, "up", rng()),
     'actnn::quantize: rounding must be "dithered", "stochastic" or "nearest", got "up"'),
    ((torch.ones(4), 4, 256, "dithered", torch.zeros(2)), "rng_state must be a contiguous int64 tensor"),
    ((torch.ones(4), 4, 256, "dithered", torch.zeros(3, dtype=torch.int64)),
     "rng_state must be a contiguous int64 tensor"),
])  # fmt: skip
def test_bad_arguments_of_quantize(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.quantize(*arguments)


@pytest.mark.parametrize(("change", "message"), [
    ({"packed": torch.zeros(5, dtype=torch.uint8)}, "packed must have 36 bytes .* got 5"),
    ({"packed": torch.zeros(36)}, "packed must be a contiguous 1-D uint8 tensor"),
    ({"size": [8, 1]}, "stride must have one entry per dimension"),
    ({"size": [-8]}, "size must not be negative"),
    ({"stride": [2]}, "stride must describe a dense tensor"),
    ({"dtype": torch.int64}, "dtype must be float32, float16 or bfloat16"),
    ({"bits": 12}, "bits must be in 1..8, got 12"),
    ({"group_size": -32}, "group_size must be a positive multiple of 32"),
])  # fmt: skip
def test_bad_arguments_of_dequantize(change, message):
    arguments = {"packed": torch.zeros(36, dtype=torch.uint8), "size": [8], "stride": [1], "dtype": torch.float32,
                 "bits": 4, "group_size": 256}  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        ops.dequantize(*(arguments | change).values())
