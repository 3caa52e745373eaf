"""Version 2 of the packed format (docs/format.md) in plain PyTorch and integers: a second implementation."""

import math
import struct

import torch

M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
MASK32 = 0xFFFFFFFF
UNDITHERED = 1 << 63
"""In the header's offset: no noise is subtracted."""
HEADER_BYTES = 16


def philox(seed, low, high, rounds=7):
    """Philox4x32 at one 128-bit counter, as four Python integers."""
    k0, k1 = seed & MASK32, (seed >> 32) & MASK32
    x = [low & MASK32, (low >> 32) & MASK32, high & MASK32, (high >> 32) & MASK32]
    for _ in range(rounds):
        p0, p1 = M0 * x[0], M1 * x[2]
        x = [(p1 >> 32) ^ x[1] ^ k0, p1 & MASK32, (p0 >> 32) ^ x[3] ^ k1, p0 & MASK32]
        k0, k1 = (k0 + W0) & MASK32, (k1 + W1) & MASK32
    return x


def noise8(seed, offset, octet):
    """The eight random bytes of an octet: a half of a Philox block."""
    return struct.pack("<4I", *philox(seed, octet // 2, offset))[8 * (octet % 2) :][:8]


def header(seed, offset, rounding):
    """The 16 bytes that a packed activation begins with."""
    if rounding == "nearest":
        return struct.pack("<2Q", 0, UNDITHERED)
    offset &= UNDITHERED - 1
    return struct.pack("<2Q", seed & (2**64 - 1), offset | (UNDITHERED if rounding == "stochastic" else 0))


def minimum_dtype(dtype):
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def round_down(x, dtype):
    """The largest value of `dtype` that is not above the float64 number x."""
    nearest = torch.tensor(x, dtype=torch.float32).to(dtype)
    if nearest.item() > x:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))
    return nearest


def round_up(x, dtype):
    return -round_down(-x, dtype)


def choose_grid(group, bits, element_type=None):
    """(minimum, step, whether the last code is NaN's) of a 1-D group; the minimum is NaN if there is no grid.

    `element_type`: of the tensor that values computed in float32 belong to.
    """
    element_type = element_type or group.dtype
    dtype = minimum_dtype(element_type)
    nothing = torch.tensor(math.nan, dtype=dtype), torch.tensor(0.0, dtype=torch.bfloat16), False
    finite = group.float()[torch.isfinite(group)]
    has_nan = finite.numel() < group.numel()
    levels = 2**bits - 1 - has_nan
    if finite.numel() == 0 or levels == 0:
        return nothing
    minimum, top = round_down(finite.min().item() + 0.0, dtype), round_up(finite.max().item(), dtype)
    width = top.float() - minimum.float()
    if not math.isfinite(width):
        return nothing
    step = torch.tensor(0.0, dtype=torch.bfloat16)
    if width > 0:
        # width / levels in float64: no double rounding
        step = round_up(width.item() / levels, torch.bfloat16).clamp(min=2.0**-110)
    if not torch.isfinite(step.float() * (levels + 1)):  # so that no product of decoding is infinite
        return nothing
    ends = torch.stack([minimum.float() - 0.5 * step, (minimum.float() + step.float() * levels) + 0.5 * step])
    return (minimum, step, has_nan) if torch.isfinite(ends.to(element_type)).all() else nothing


def bits_of(parameter):
    return parameter.view(torch.int16).item() & 0xFFFF


def quantize(x, bits, group_size, seed, offset, rounding="dithered", first_octet=0):
    """The packed bytes of a tensor, from its elements in storage order."""
    flat = torch.as_strided(x, (x.numel(),), (1,))
    offset &= UNDITHERED - 1
    parameters, codes = bytearray(), bytearray()
    for begin in range(0, flat.numel(), group_size):
        group = flat[begin : begin + group_size]
        minimum, step, has_nan = choose_grid(group, bits)
        parameters += struct.pack("<2H", bits_of(minimum), bits_of(step) | 0x8000 * has_nan)
        inverse = torch.tensor(0.0) if step.item() == 0 else 256 / step.float()
        for k in range(0, group.numel(), 8):
            word = 0
            if not math.isnan(minimum.item()):
                noise = noise8(seed, offset, first_octet + (begin + k) // 8)
                for i, element in enumerate(group[k : k + 8].float()):
                    code = 2**bits - 1
                    if torch.isfinite(element):
                        position = int(torch.round((element - minimum.float()) * inverse))
                        code = (position + (128 if rounding == "nearest" else noise[i])) >> 8
                        assert code <= 2**bits - 1 - has_nan
                    word |= code << (bits * i)
            codes += word.to_bytes(bits, "little")
    parameters += bytes(-len(parameters) % 16)
    return torch.frombuffer(bytearray(header(seed, offset, rounding)) + parameters + codes, dtype=torch.uint8)


def dequantize(packed, size, stride, dtype, bits, group_size):
    count = math.prod(size)
    out = torch.empty_strided(size, stride, dtype=dtype)
    flat = torch.as_strided(out, (count,), (1,))
    data = bytes(packed.tolist())
    seed, offset = struct.unpack("<2Q", data[:HEADER_BYTES])
    dithered = offset < UNDITHERED
    groups = -(-count // group_size)
    codes_begin = HEADER_BYTES + -(-4 * groups // 16) * 16
    for group in range(groups):
        low, width = struct.unpack_from("<2H", data, HEADER_BYTES + 4 * group)
        minimum = torch.tensor(low, dtype=torch.uint16).view(minimum_dtype(dtype)).float()
        step = torch.tensor(width & 0x7FFF, dtype=torch.uint16).view(torch.bfloat16).float()
        start = minimum - 255 / 512 * step if dithered else minimum
        begin, end = group * group_size, min((group + 1) * group_size, count)
        for k in range(begin, end, 8):
            at = codes_begin + k // 8 * bits
            word = int.from_bytes(data[at : at + bits], "little")
            noise = noise8(seed, offset, k // 8)
            for i in range(k, min(k + 8, end)):
                code = (word >> (bits * (i - k))) & (2**bits - 1)
                if width & 0x8000 and code == 2**bits - 1:
                    flat[i] = math.nan
                else:
                    flat[i] = start + (256 * code + (255 - noise[i - k] if dithered else 0)) * (step / 256)
    return out


def packed_bytes(count, bits, group_size):
    groups = -(-count // group_size)
    return HEADER_BYTES + -(-4 * groups // 16) * 16 + -(-count // 8) * bits
