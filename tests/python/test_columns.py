"""quantize_columns and dequantize_columns: column groups of the packed format, and what they are good for."""

import math

import packed_columns
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ops = torch.ops.actnn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDINGS = ["dithered", "stochastic", "nearest"]


def rng(seed=1234, offset=0):
    return torch.tensor([seed, offset], dtype=torch.int64)


def pack(x, bits, group_rows=256, rounding="dithered", state=None):
    return ops.quantize_columns(x, bits, group_rows, rounding, rng() if state is None else state)


def unpack(packed, like, bits, group_rows=256):
    return ops.dequantize_columns(packed, *like.shape, like.dtype, bits, group_rows)


def steps(packed, like, group_rows=256):
    """The step of each element's group."""
    rows, channels = like.shape
    blocks = -(-rows // group_rows)
    parameters = packed[16 : 16 + 4 * blocks * channels].view(torch.bfloat16).view(blocks, channels, 2)
    return parameters[..., 1].float().abs().repeat_interleave(group_rows, 0)[:rows]


def same(a, b):
    """Equal, and NaN in the same places."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("rows", "channels"), [(0, 3), (4, 0), (1, 1), (33, 7), (257, 3), (65, 34)])
def test_bytes_and_values_equal_the_reference(dtype, bits, rows, channels):
    x = torch.randn(rows, channels).to(dtype)
    packed = pack(x, bits, 64)
    assert packed.dtype == torch.uint8 and packed.dim() == 1
    assert packed.numel() == packed_columns.packed_bytes(rows, channels, bits, 64)
    assert torch.equal(packed, packed_columns.quantize(x, bits, 64, 1234, 0))
    assert torch.equal(unpack(packed, x, bits, 64), packed_columns.dequantize(packed, rows, channels, dtype, bits, 64))


@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    bits=st.integers(1, 8),
    rows=st.integers(1, 300),
    channels=st.integers(1, 5),
    group_rows=st.sampled_from([64, 128, 256]),
    rounding=st.sampled_from(ROUNDINGS),
    poison=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    scale=st.sampled_from([1e-40, 1e-20, 1e-3, 1.0, 1e3, 1e30, 1e38]),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
)
@settings(max_examples=100, deadline=None)
def test_any_input_equals_the_reference_and_is_within_one_step(
    data, dtype, bits, rows, channels, group_rows, rounding, poison, scale, shift
):
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    generator = torch.Generator().manual_seed(seed & 0xFFFF)
    x = ((torch.randn(rows, channels, generator=generator, dtype=torch.float64) + shift) * scale).to(dtype)
    if poison is not None:
        x[data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, channels - 1))] = poison
    offset = data.draw(st.integers(-(2**63), 2**63 - 1))
    packed = pack(x, bits, group_rows, rounding, rng(seed, offset))
    assert torch.equal(packed, packed_columns.quantize(x, bits, group_rows, seed, offset, rounding))
    y = unpack(packed, x, bits, group_rows)
    assert same(y, packed_columns.dequantize(packed, rows, channels, dtype, bits, group_rows))
    good = torch.isfinite(x) & torch.isfinite(y)
    of_type = torch.maximum(y.float().abs() * 2.0**-8, torch.tensor(2.0**-24))
    limit = steps(packed, x, group_rows) * (1.01 if rounding == "stochastic" else 0.51) + of_type
    assert ((x.float() - y.float()).abs() <= limit)[good].all()


@pytest.mark.parametrize("rounding", ["dithered", "stochastic"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_decoded_values_are_unbiased(bits, rounding):
    draws = 2000
    x = torch.randn(65, 5)
    state = rng(99)
    mean = torch.zeros_like(x, dtype=torch.float64)
    for _ in range(draws):
        packed = pack(x, bits, 64, rounding, state)
        mean += unpack(packed, x, bits, 64).double() / draws
    step = steps(packed, x, 64).double()
    # A draw's variance is step^2 / 12, and without subtraction of the noise at most step^2 / 4. Positions on the grid
    # are rounded to step / 256.
    deviation = step / math.sqrt(12 if rounding == "dithered" else 4)
    assert ((mean - x.double()).abs() <= 5 * deviation / math.sqrt(draws) + step * 2.0**-9).all()


def test_neighbouring_elements_have_independent_noise():
    """Across channels, which share Philox blocks, and along the rows: products of errors are 0 on average."""
    x = torch.rand(4096, 64)
    packed = pack(x, 2)
    error = (unpack(packed, x, 2) - x).double() / steps(packed, x)
    for a, b in [(error[:, :-1], error[:, 1:]), (error[:-1], error[1:]), (error[:-4], error[4:])]:
        assert abs((a * b).mean()) < 5 / 12 / math.sqrt(a.numel())


def test_a_channel_of_another_scale_costs_only_itself():
    x = torch.randn(512, 48)
    packed = pack(x, 4)
    y = unpack(packed, x, 4)
    x[:, 5] *= 1000
    z = unpack(pack(x, 4), x, 4)
    others = torch.arange(48) != 5
    assert torch.equal(y[:, others], z[:, others])
    assert (z - x)[:, 5].abs().max() <= steps(pack(x, 4), x)[:, 5].max() * 0.51


@pytest.mark.parametrize("shape", [(7,), (2, 3, 7), (2, 0, 7), (2, 2, 3, 7)])
def test_other_dimensions_are_rows(shape):
    x = torch.randn(shape)
    assert torch.equal(pack(x, 3, 64), pack(x.reshape(-1, 7), 3, 64))


def test_tensors_that_are_not_contiguous_are_packed_like_their_copy():
    x = torch.randn(12, 40)
    for view in (x.t(), x[:, ::2], x[:, :7], torch.randn(1, 8).expand(5, 8)):
        assert torch.equal(pack(view, 3, 64), pack(view.contiguous(), 3, 64))


def test_same_bytes_for_every_thread_count():
    x = torch.randn(1000, 333)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            packed = pack(x, 5, 128)
            results.append((packed, unpack(packed, x, 5, 128)))
    finally:
        torch.set_num_threads(before)
    for packed, y in results[1:]:
        assert torch.equal(packed, results[0][0]) and torch.equal(y, results[0][1])


def test_the_state_advances_and_replays():
    x, state = torch.randn(100, 5), rng(7)
    first, second = pack(x, 2, state=state), pack(x, 2, state=state)
    assert state.tolist() == [7, 2]
    assert not torch.equal(first[16:], second[16:])
    assert torch.equal(second, pack(x, 2, state=rng(7, 1)))


def test_without_a_state_noise_follows_the_seed():
    x = torch.randn(100, 5)
    torch.manual_seed(3)
    first = ops.quantize_columns(x, 4, 64)
    torch.manual_seed(3)
    assert torch.equal(first, ops.quantize_columns(x, 4, 64))


def test_nearest_rounding_does_not_depend_on_the_state():
    x = torch.randn(100, 9)
    packed = pack(x, 5, rounding="nearest")
    assert torch.equal(packed, pack(x, 5, rounding="nearest", state=rng(5, 6)))
    assert ((x - unpack(packed, x, 5)).abs() <= steps(packed, x) * 0.503).all()


def test_rows_may_be_symbolic():
    from torch.fx.experimental.proxy_tensor import make_fx

    def both(x):
        packed = ops.quantize_columns(x, 4, 64, "nearest")
        return ops.dequantize_columns(packed, x.shape[0], x.shape[1], x.dtype, 4, 64)

    traced = make_fx(both, tracing_mode="symbolic")(torch.randn(70, 6))
    x = torch.randn(300, 6)
    assert torch.equal(traced(x), both(x))


MATRIX = torch.ones(4, 3)


@pytest.mark.parametrize(("arguments", "message"), [
    ((MATRIX.double(), 4, 256, "dithered", rng()), "input must be float32, float16 or bfloat16"),
    ((torch.tensor(1.0), 4, 256, "dithered", rng()), r"input must be \[..., channels\], got a tensor of no dimension"),
    ((MATRIX, 0, 256, "dithered", rng()), "bits must be in 1..8, got 0"),
    ((MATRIX, 9, 256, "dithered", rng()), "bits must be in 1..8, got 9"),
    ((MATRIX, 4, 32, "dithered", rng()), "group_rows must be 64, 128 or 256, got 32"),
    ((MATRIX, 4, 512, "dithered", rng()), "group_rows must be 64, 128 or 256, got 512"),
    ((MATRIX, 4, 256, "up", rng()), 'rounding must be "dithered", "stochastic" or "nearest", got "up"'),
    ((MATRIX, 4, 256, "dithered", torch.zeros(2)), "rng_state must be a contiguous int64 tensor"),
])  # fmt: skip
def test_bad_arguments_of_quantize_columns(arguments, message):
    with pytest.raises((ValueError, TypeError), match=f"actnn::quantize_columns: {message}"):
        ops.quantize_columns(*arguments)


@pytest.mark.parametrize(("change", "message"), [
    ({"packed": torch.zeros(5, dtype=torch.uint8)}, "packed must have 80 bytes .* got 5"),
    ({"packed": torch.zeros(80)}, "packed must be a contiguous 1-D uint8 tensor"),
    ({"rows": -1}, "rows and channels must not be negative, got -1 and 3"),
    ({"channels": -3}, "rows and channels must not be negative, got 4 and -3"),
    ({"rows": 33}, "packed must have 128 bytes"),
    ({"dtype": torch.int64}, "dtype must be float32, float16 or bfloat16"),
    ({"bits": 12}, "bits must be in 1..8, got 12"),
    ({"group_rows": 0}, "group_rows must be 64, 128 or 256, got 0"),
])  # fmt: skip
def test_bad_arguments_of_dequantize_columns(change, message):
    arguments = {"packed": torch.zeros(80, dtype=torch.uint8), "rows": 4, "channels": 3, "dtype": torch.float32,
                 "bits": 4, "group_rows": 256}  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=f"actnn::dequantize_columns: {message}"):
        ops.dequantize_columns(*(arguments | change).values())
