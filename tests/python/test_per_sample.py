"""Packing with a bit width per sample."""

import packed_format
import pytest
import torch

ops = torch.ops.actnn


def rng(seed=1234):
    return torch.tensor([seed, 0], dtype=torch.int64)


def code_bytes(x, bits):
    """The room that these bits need."""
    octets = -(-(x.numel() // x.shape[0]) // 8)
    return sum(-(-octets * int(b) // 4) * 4 for b in bits)


def pack(x, bits, room=None, group_size=256, rounding="dithered", state=None):
    room = code_bytes(x, bits) if room is None else room
    return ops.quantize_per_sample(x, bits, room, group_size, rounding, rng() if state is None else state)


def unpack(packed, x, bits, group_size=256):
    return ops.dequantize_per_sample(packed, bits, x.shape, x.stride(), x.dtype, group_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rounding", ["dithered", "stochastic", "nearest"])
@pytest.mark.parametrize("shape", [(8, 3, 5, 7), (8, 1), (8, 256), (8, 257), (8, 600)])
def test_every_sample_is_packed_like_a_tensor_of_its_own(dtype, shape, rounding):
    x = torch.randn(shape).to(dtype)
    bits = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8], dtype=torch.uint8)
    packed = pack(x, bits, rounding=rounding)
    elements = x[0].numel()
    groups, octets = -(-elements // 256), -(-elements // 8)
    parameters, codes = b"", b""
    for number, (sample, b) in enumerate(zip(x, bits.tolist(), strict=True)):
        first_octet = number * (octets + octets % 2)
        alone = packed_format.quantize(sample.reshape(-1), b, 256, 1234, 0, rounding, first_octet)
        header, alone = bytes(alone[:16].tolist()), bytes(alone[16:].tolist())
        parameters += alone[: 4 * groups]
        own_codes = alone[-(-4 * groups // 16) * 16 :]
        codes += own_codes + bytes(-len(own_codes) % 4)
    parameters += bytes(-len(parameters) % 16)
    assert bytes(packed.tolist()) == header + parameters + codes


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equal_bits_decode_like_fixed_bits(memory_format):
    x = torch.randn(4, 8, 8, 8).to(memory_format=memory_format)  # whole groups: samples change nothing
    bits = torch.full((4,), 3, dtype=torch.uint8)
    fixed = ops.quantize(x, 3, 256, "dithered", rng())
    assert torch.equal(pack(x, bits), fixed)
    expected = ops.dequantize(fixed, x.shape, x.stride(), x.dtype, 3, 256)
    assert torch.equal(unpack(pack(x, bits), x, bits), expected)


def test_error_falls_with_the_bits_of_a_sample():
    x = torch.randn(8, 1000)
    bits = torch.arange(1, 9, dtype=torch.uint8)
    error = (unpack(pack(x, bits), x, bits) - x).abs().amax(1)
    assert (error[:-1] > error[1:]).all()


def test_spare_room_is_zero_and_changes_nothing():
    x = torch.randn(3, 100)
    bits = torch.tensor([2, 5, 1], dtype=torch.uint8)
    tight, roomy = pack(x, bits), pack(x, bits, room=code_bytes(x, bits) + 40)
    assert torch.equal(roomy[: tight.numel()], tight)
    assert (roomy[tight.numel() :] == 0).all()
    assert torch.equal(unpack(roomy, x, bits), unpack(tight, x, bits))


def test_samples_that_are_not_outermost_are_packed_contiguously():
    x = torch.randn(5, 40).t()
    bits = torch.full((40,), 4, dtype=torch.uint8)
    assert torch.equal(pack(x, bits), pack(x.contiguous(), bits))


def test_empty_batches_and_samples():
    for shape in ((0, 5), (4, 0)):
        x = torch.randn(shape)
        bits = torch.full((shape[0],), 4, dtype=torch.uint8)
        packed = pack(x, bits, room=0)
        assert packed.numel() == 16
        assert unpack(packed, x, bits).shape == x.shape


def test_decoded_samples_are_unbiased():
    x = torch.randn(3, 300)
    bits = torch.tensor([1, 2, 4], dtype=torch.uint8)
    state, draws = rng(3), 2000
    mean = sum(unpack(pack(x, bits, state=state), x, bits).double() for _ in range(draws)) / draws
    step = (x.amax(1) - x.amin(1)).double() * 1.02 / (2.0**bits - 1)
    limit = 5 * step / (12 * draws) ** 0.5 + step * 2.0**-9
    assert ((mean - x).abs() <= limit[:, None]).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"bits": torch.tensor([1, 2, 0], dtype=torch.uint8)}, "bits must be in 1..8, got 0 for sample 2"),
    ({"bits": torch.tensor([1, 2, 9], dtype=torch.uint8)}, "bits must be in 1..8, got 9 for sample 2"),
    ({"bits": torch.tensor([1, 2], dtype=torch.uint8)}, r"bits must have one entry per sample \(3\), got 2"),
    ({"bits": torch.tensor([1, 2, 3])}, "bits must be a contiguous 1-D uint8 tensor"),
    ({"code_bytes": 3}, "code_bytes must be at least 84 for these bits, got 3"),
    ({"code_bytes": -1}, "code_bytes must not be negative"),
    ({"input": torch.tensor(1.0)}, "input must have a sample dimension"),
    ({"group_size": 31}, "group_size must be a positive multiple of 32"),
])  # fmt: skip
def test_bad_arguments(change, message):
    arguments = {"input": torch.randn(3, 100), "bits": torch.tensor([1, 2, 3], dtype=torch.uint8), "code_bytes": 100,
                 "group_size": 256, "rounding": "dithered", "rng_state": rng()}  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        ops.quantize_per_sample(*(arguments | change).values())


def test_a_packed_tensor_that_is_too_short_is_refused():
    x = torch.randn(3, 100)
    bits = torch.tensor([1, 2, 3], dtype=torch.uint8)
    packed = pack(x, bits)
    with pytest.raises(ValueError, match="packed must have at least"):
        unpack(packed[:-1], x, bits)
    with pytest.raises(ValueError, match="packed must be a contiguous 1-D uint8 tensor of at least 32 bytes"):
        unpack(packed[:3], x, bits)
