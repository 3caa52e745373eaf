"""Packed bytes of a normalization with activation, and its copies, are those of packed_norm_act.py."""

import math

import packed_norm_act
import pytest
import torch
from devices import rng
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_norm_act import MASKS

ops = torch.ops.actnn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDINGS = ["dithered", "stochastic", "nearest"]


def maps_of(channels):
    """`NormActChannel` of split and linear channels, with scales of their own."""
    maps = torch.rand(channels, 5) + 0.5
    maps[:, 1] = torch.randn(channels)
    maps[:, 3] = torch.randn(channels) * (maps[:, 4] > 1)
    maps[:, 4] = (maps[:, 4] > 1).float()
    return maps


def copies_of(packed, x, maps, activation, bits):
    """The copies s: what the gradient of the input has of them, for gradients of 0."""
    gradients = torch.zeros(x.shape[1], 6)
    gradients[:, 1] = 1
    gradients[:, 3] = maps[:, 4]
    return ops.norm_act_input_gradient(packed, torch.zeros_like(x), None, gradients, activation, 0.1, bits)


def check(x, residual, maps, activation, bits, keeps_below=True, rounding="dithered", seed=1234, offset=0):
    _, packed = ops.norm_act(x, residual, maps, activation, 0.1, bits, keeps_below, rounding, rng(seed, offset))
    rows, channels = x.shape
    wanted = packed_norm_act.pack(x, residual, maps, activation, bits, keeps_below, rounding, seed, offset)
    assert packed.dtype == torch.uint8 and packed.dim() == 1
    assert packed.numel() == packed_norm_act.packed_bytes(rows, channels, bits, activation)
    assert torch.equal(packed, wanted)
    if bits:
        linear = (maps[:, 4] != 0).tolist()
        actual = copies_of(packed, x, maps, activation, bits)
        copies = packed_norm_act.unpack(packed, rows, linear, x.dtype, bits, activation).to(x.dtype)
        torch.testing.assert_close(actual, copies, rtol=0, atol=0, equal_nan=True)
    return packed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", MASKS)
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (33, 7), (300, 3), (65, 34)])
def test_bytes_and_copies_equal_the_reference(dtype, activation, rows, channels):
    x = (torch.randn(rows, channels) * 2).to(dtype)
    maps = maps_of(channels)
    for bits in (1, 2, 5, 7 if MASKS[activation] else 8):
        check(x, None, maps, activation, bits)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "relu6"])
@pytest.mark.parametrize("keeps_below", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_sums_equal_the_reference(activation, keeps_below, rounding):
    x, residual = torch.randn(2, 70, 9).mul(4).unbind(0)
    check(x, residual, maps_of(9), activation, 3, keeps_below, rounding)


@pytest.mark.parametrize("activation", ["leaky_relu", "relu6"])
def test_masks_alone_have_neither_parameters_nor_codes(activation):
    x = torch.randn(70, 9) * 4
    packed = check(x, None, maps_of(9), activation, 0)
    assert packed.numel() == 16 + MASKS[activation] * 9 * 12  # 70 rows are 12 octets


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "silu"])
def test_nothing_is_packed_for_no_bits(activation):
    x, state = torch.randn(5, 3), rng()
    _, packed = ops.norm_act(x, None, maps_of(3), activation, 0.1, None, True, "dithered", state)
    assert packed.numel() == 0 and torch.equal(state, rng())


@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(sorted(MASKS)),
    bits=st.integers(1, 7),
    rows=st.integers(1, 300),
    channels=st.integers(1, 4),
    rounding=st.sampled_from(ROUNDINGS),
    poison=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    scale=st.sampled_from([1e-40, 1e-20, 1e-3, 1.0, 1e3, 1e30, 1e38]),
    shift=st.sampled_from([0.0, -3.0, 100.0]),
    keeps_below=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_input_equals_the_reference(
    data, dtype, activation, bits, rows, channels, rounding, poison, scale, shift, keeps_below
):
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    generator = torch.Generator().manual_seed(seed & 0xFFFF)
    torch.manual_seed(seed & 0xFFFF)
    x = ((torch.randn(rows, channels, generator=generator, dtype=torch.float64) + shift) * scale).to(dtype)
    if poison is not None:
        x[data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, channels - 1))] = poison
    offset = data.draw(st.integers(-(2**63), 2**63 - 1))
    check(x, None, maps_of(channels), activation, bits, keeps_below, rounding, seed, offset)
