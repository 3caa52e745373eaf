"""The packed format (docs/format.md) in plain PyTorch and integers: a second implementation to test against."""

import math

import torch

M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
MASK32 = 0xFFFFFFFF


def philox(seed, low, high):
    """Philox4x32-10 at one 128-bit counter, as four Python integers."""
    k0, k1 = seed & MASK32, (seed >> 32) & MASK32
    x = [low & MASK32, (low >> 32) & MASK32, high & MASK32, (high >> 32) & MASK32]
    for _ in range(10):
        p0, p1 = M0 * x[0], M1 * x[2]
        x = [(p1 >> 32) ^ x[1] ^ k0, p1 & MASK32, (p0 >> 32) ^ x[3] ^ k1, p0 & MASK32]
        k0, k1 = (k0 + W0) & MASK32, (k1 + W1) & MASK32
    return x


def noise16(seed, offset, octet):
    """The eight 16-bit numbers of an octet."""
    return [(word >> shift) & 0xFFFF for word in philox(seed, octet, offset) for shift in (0, 16)]


def parameter_dtype(dtype):
    return torch.float16 if dtype == torch.float16 else torch.bfloat16


def round_down(x, dtype):
    """The largest value of `dtype` that is not above the float64 number x."""
    nearest = torch.tensor(x, dtype=torch.float32).to(dtype)
    if nearest.item() > x:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))
    return nearest


def round_up(x, dtype):
    return -round_down(-x, dtype)


def choose_grid(group, bits):
    """(minimum, step) of a 1-D group, each a 0-D tensor of the parameter type; (nan, 0) if it cannot be represented."""
    dtype = parameter_dtype(group.dtype)
    bad = torch.tensor(math.nan, dtype=dtype), torch.tensor(0.0, dtype=dtype)
    x = group.float()
    if not torch.isfinite(x).all():
        return bad
    low, high = x.min().item() + 0.0, x.max().item()
    if low == high:
        value = torch.tensor(low, dtype=torch.float32).to(dtype)
        return (value, torch.tensor(0.0, dtype=dtype)) if torch.isfinite(value) else bad
    minimum = round_down(low, dtype)
    span = (torch.tensor(high, dtype=torch.float32) - minimum.float()).item()
    if not math.isfinite(span):
        return bad
    levels = 2**bits - 1
    step = round_up(span / levels, dtype)  # span / levels in float64: no double rounding
    if dtype == torch.bfloat16 and step.item() < 2.0**-110:
        step = torch.tensor(2.0**-110, dtype=dtype)
    end = (minimum.float() + step.float() * levels).to(group.dtype)
    return (minimum, step) if torch.isfinite(end) else bad


def quantize(x, bits, group_size, seed, offset, stochastic=True):
    """The packed bytes of a tensor, from its elements in storage order."""
    flat = torch.as_strided(x, (x.numel(),), (1,))
    fraction = 14 if bits == 8 else 16
    parameters, codes = bytearray(), bytearray()
    for begin in range(0, flat.numel(), group_size):
        group = flat[begin : begin + group_size]
        minimum, step = choose_grid(group, bits)
        parameters += minimum.view(torch.int16).numpy().tobytes()
        parameters += step.view(torch.int16).numpy().tobytes()
        inverse = torch.tensor(0.0) if step.item() == 0 else torch.tensor(float(1 << fraction)) / step.float()
        for k in range(0, group.numel(), 8):
            octet = group[k : k + 8].float()
            word = 0
            if not math.isnan(minimum.item()):
                fixed = torch.round((octet - minimum.float()) * inverse).to(torch.int64).tolist()
                noise = noise16(seed, offset, (begin + k) // 8)
                for i, value in enumerate(fixed):
                    random = noise[i] >> (16 - fraction) if stochastic else 1 << (fraction - 1)
                    word |= ((value + random) >> fraction) << (bits * i)
            codes += word.to_bytes(bits, "little")
    parameters += bytes(-len(parameters) % 16)
    return torch.frombuffer(parameters + codes, dtype=torch.uint8) if codes else torch.empty(0, dtype=torch.uint8)


def dequantize(packed, size, stride, dtype, bits, group_size):
    count = math.prod(size)
    out = torch.empty_strided(size, stride, dtype=dtype)
    if count == 0:
        return out
    flat = torch.as_strided(out, (count,), (1,))
    groups = -(-count // group_size)
    codes_begin = -(-4 * groups // 16) * 16
    data = bytes(packed.tolist())
    parameters = torch.frombuffer(bytearray(data[: 4 * groups]), dtype=torch.int16).view(parameter_dtype(dtype))
    for group in range(groups):
        minimum, step = parameters[2 * group].float(), parameters[2 * group + 1].float()
        begin, end = group * group_size, min((group + 1) * group_size, count)
        for k in range(begin, end, 8):
            at = codes_begin + k // 8 * bits
            word = int.from_bytes(data[at : at + bits], "little")
            for i in range(k, min(k + 8, end)):
                code = (word >> (bits * (i - k))) & (2**bits - 1)
                flat[i] = minimum + code * step
    return out


def packed_bytes(count, bits, group_size):
    groups = -(-count // group_size)
    return -(-4 * groups // 16) * 16 + -(-count // 8) * bits
