"""pack_codes and unpack_codes: the stream against a plain one, on the CPU and by what other devices use."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ops = torch.ops.actnn
ELSEWHERE = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)  # its kernel is torch's operations, on any tensors


def size_of(bits, elements):
    return -(-elements // 8) * sum(bits)


def plain_stream(codes, bits):
    """The bytes, from Python integers."""
    stream = b""
    for row, width in zip(codes.tolist(), bits, strict=True):
        value = sum((code % 2**width) << (i * width) for i, code in enumerate(row))
        stream += value.to_bytes(-(-len(row) // 8) * width, "little")
    return list(stream)


def problem(bits, elements, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (len(bits), elements), dtype=torch.uint8, generator=generator)
    return codes, torch.tensor(bits, dtype=torch.uint8)


@settings(deadline=None)
@given(st.lists(st.integers(1, 8), max_size=6), st.integers(0, 70), st.integers(0, 2**31))
def test_the_stream_is_the_plain_one_on_every_device(bits, elements, seed):
    codes, widths = problem(bits, elements, seed)
    size = size_of(bits, elements)
    packed = ops.pack_codes(codes, widths, size)
    assert packed.tolist() == plain_stream(codes, bits)
    assert torch.equal(ops.pack_codes.default.redispatch(ELSEWHERE, codes, widths, size), packed)
    expected = codes & ((1 << widths.int()) - 1).to(torch.uint8).unsqueeze(1)
    assert torch.equal(ops.unpack_codes(packed, widths, elements), expected)
    assert torch.equal(ops.unpack_codes.default.redispatch(ELSEWHERE, packed, widths, elements), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("elements", [0, 1, 8, 1000])
def test_a_gpu_gives_the_bytes_of_the_cpu(elements):
    bits = [1, 8, 3, 7]
    codes, widths = problem(bits, elements, 0)
    packed = ops.pack_codes(codes.cuda(), widths.cuda(), size_of(bits, elements))
    assert torch.equal(packed.cpu(), ops.pack_codes(codes, widths, size_of(bits, elements)))
    assert torch.equal(ops.unpack_codes(packed, widths.cuda(), elements).cpu(),
                       ops.unpack_codes(packed.cpu(), widths, elements))  # fmt: skip


def test_more_rows_than_65535():
    rows = 70_001
    widths = torch.randint(1, 9, (rows,), dtype=torch.uint8)
    codes = torch.randint(0, 256, (rows, 9), dtype=torch.uint8) & ((1 << widths.int()) - 1).to(torch.uint8)[:, None]
    size = 2 * int(widths.sum(dtype=torch.int64))
    packed = ops.pack_codes(codes, widths, size)
    assert torch.equal(ops.unpack_codes(packed, widths, 9), codes)
    assert torch.equal(ops.pack_codes.default.redispatch(ELSEWHERE, codes, widths, size), packed)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=5), st.integers(0, 40), st.integers(0, 200))
def test_where_the_host_does_not_see_the_bits_nothing_goes_out_of_bounds(bits, elements, size):
    codes, widths = problem(bits, elements, 0)
    packed = ops.pack_codes.default.redispatch(ELSEWHERE, codes, widths, size)
    assert packed.shape == (size,)
    if elements <= 8 * size:
        assert ops.unpack_codes.default.redispatch(ELSEWHERE, packed, widths, elements).shape == codes.shape


CODES, WIDTHS = torch.zeros(2, 10, dtype=torch.uint8), torch.tensor([3, 4], dtype=torch.uint8)


@pytest.mark.parametrize(("change", "message"), [
    ({"codes": CODES.int()}, "codes must be uint8, got Int"),
    ({"codes": CODES.flatten()}, r"codes must have shape \[samples, elements\], got \[20\]"),
    ({"bits": WIDTHS.int()}, "bits must be uint8, got Int"),
    ({"bits": WIDTHS[:1]}, r"bits must have one entry per sample \(2\), got 1"),
    ({"bits": WIDTHS.view(1, 2)}, "bits must be 1-D"),
    ({"bits": torch.tensor([3, 9], dtype=torch.uint8)}, "bits must be in 1..8, got 9 for sample 1"),
    ({"bits": torch.tensor([0, 4], dtype=torch.uint8)}, "bits must be in 1..8, got 0 for sample 0"),
    ({"bits": WIDTHS.to("meta")}, "bits must be on the device of the data, cpu, got meta"),
    ({"bytes": 13}, "bytes must be 14 for these bits and 10 elements per sample, got 13"),
    ({"bytes": -1}, "bytes must not be negative, got -1"),
])  # fmt: skip
def test_bad_arguments_of_pack_codes(change, message):
    arguments = {"codes": CODES, "bits": WIDTHS, "bytes": 14} | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.pack_codes(**arguments)


@pytest.mark.parametrize(("change", "message"), [
    ({"packed": torch.zeros(14)}, "packed must be uint8, got Float"),
    ({"packed": torch.zeros(2, 7, dtype=torch.uint8)}, "packed must be 1-D"),
    ({"packed": torch.zeros(15, dtype=torch.uint8)}, "packed's bytes must be 14 for these bits .*, got 15"),
    ({"elements": -1}, "elements must not be negative, got -1"),
    ({"elements": 2**62}, r"elements must be at most 8 per byte of packed \(14 bytes\)"),
])  # fmt: skip
def test_bad_arguments_of_unpack_codes(change, message):
    arguments = {"packed": torch.zeros(14, dtype=torch.uint8), "bits": WIDTHS, "elements": 10} | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.unpack_codes(**arguments)
