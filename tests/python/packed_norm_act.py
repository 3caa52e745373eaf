"""The packed form of a normalization with activation (docs/format.md) in plain PyTorch: a second implementation.

Copies are of float32 values that the pass computes; groups, octets and noise are those of packed_columns.py.
"""

import math
import struct

import packed_columns
import torch
from packed_columns import WORD_ROWS, blocks_of, noise_of
from packed_format import HEADER_BYTES, UNDITHERED, bits_of, choose_grid, header, minimum_dtype, round_up

GROUP_ROWS = 256
MASKS = {"identity": 0, "leaky_relu": 1, "relu6": 2, "silu": 0, "hardswish": 2}
KINKED = ("leaky_relu", "relu6")
JUMPS = {"relu6": (0, 6), "hardswish": (-3, 3)}


def mask_bytes(rows, channels):
    return -(-rows // WORD_ROWS) * 4 * channels


def packed_bytes(rows, channels, bits, activation="identity"):
    codes = packed_columns.packed_bytes(rows, channels, bits, GROUP_ROWS) if bits else HEADER_BYTES
    return codes + MASKS[activation] * mask_bytes(rows, channels)


def values(x, residual, channels, keeps_below):
    """(z, s, side) of each element, float32; `channels`: [C, 5]."""
    z_scale, z_shift, s_scale, s_shift, linear = channels.unbind(1)
    x = x.float()
    z = x * z_scale
    z = z + z_shift
    if residual is not None:
        z = z + residual.float()
    s = s_scale * torch.where(linear != 0, x, z)
    s = s + s_shift
    side = z > 0
    return z, (s if keeps_below else s.where(side, 0.0)), side


def choose_sides(group, bits):
    """(step above 0, step below, whether the last code is NaN's); NaN above if there are none."""
    finite = group[torch.isfinite(group)]
    has_nan = finite.numel() < group.numel()
    levels = 2**bits - 1 - has_nan
    zero = torch.tensor(0.0, dtype=torch.bfloat16)
    nothing = torch.tensor(math.nan, dtype=torch.bfloat16), zero, False
    if levels == 0:
        return nothing

    def step_of(farthest):
        if farthest == 0:
            return zero
        return round_up(round_up(farthest, torch.bfloat16).item() / levels, torch.bfloat16).clamp(min=2.0**-110)

    steps = [step_of(max((sign * finite).max().item(), 0.0) if finite.numel() else 0.0) for sign in (1, -1)]
    if not all(math.isfinite((step.float() * (levels + 1)).item()) for step in steps):
        return nothing
    return *steps, has_nan


def position(s, zero, step):
    """The place of a finite value on a grid, in 1/256 of a step."""
    inverse = torch.tensor(0.0) if step.item() == 0 else 256 / step.float()
    return torch.round((s - zero) * inverse).nan_to_num().clamp_min(0).long()


def encode(s, side, is_split, bits, element_type):
    """(parameters, positions or None for a group that has no grid) of a column."""
    finite = torch.isfinite(s)
    s_finite = s.where(finite, 0.0)
    if not is_split:
        minimum, step, has_nan = choose_grid(s, bits, element_type)
        parameters = struct.pack("<2H", bits_of(minimum), bits_of(step) | 0x8000 * has_nan)
        positions = position(s_finite, minimum.float(), step) if not math.isnan(minimum.item()) else None
    else:
        above, below, has_nan = choose_sides(s, bits)
        parameters = struct.pack("<2H", bits_of(above), bits_of(below) | 0x8000 * has_nan)
        zero = torch.tensor(0.0)
        positions = torch.where(side, position(s_finite, zero, above), position(-s_finite, zero, below))
        positions = positions if not math.isnan(above.item()) else None
    return parameters, positions, finite.tolist()


def pack(x, residual, channels, activation, bits, keeps_below, rounding, seed, offset):
    """The packed bytes of matrices."""
    rows, count = x.shape
    z, s, side = values(x, residual, channels, keeps_below or activation not in KINKED)  # below a kink
    above, below = JUMPS.get(activation, (0, 0))
    masks = [side, (z > above) & (z < below)][: MASKS[activation]]
    parameters, codes, planes = bytearray(), bytearray(), [bytearray() for _ in masks]
    for first, height, octets in blocks_of(rows, GROUP_ROWS):
        for channel in range(count):
            group = slice(first, first + height), channel
            for mask, plane in zip(masks, planes, strict=True):
                word = sum(1 << row for row, is_set in enumerate(mask[group].tolist()) if is_set)
                plane += word.to_bytes(octets, "little")
            if bits == 0:
                continue
            is_split = bool(masks) and channels[channel, 4].item() == 0
            packed, positions, finite = encode(s[group].contiguous(), side[group], is_split, bits, x.dtype)
            parameters += packed
            for k in range(0, 8 * octets, 8):
                word = 0
                noise = noise_of(seed, offset & (UNDITHERED - 1), first + k, channel, count)
                for i in range(k, min(k + 8, height)):
                    if positions is not None:
                        code = 2**bits - 1
                        if finite[i]:
                            code = (positions[i].item() + (128 if rounding == "nearest" else noise[i - k])) >> 8
                        word |= code << (bits * (i - k))
                codes += word.to_bytes(bits, "little")
    parameters += bytes(-len(parameters) % 16)
    data = bytearray(header(seed, offset, rounding)) + parameters + codes + b"".join(planes)
    return torch.frombuffer(data, dtype=torch.uint8)


def as_value(word, dtype):
    """The 16-bit value of these bits, float32."""
    return torch.tensor(word, dtype=torch.uint16).view(dtype).float()


def masks_of(packed, rows, channels, bits, activation):
    """The masks, bool matrices."""
    data = bytes(packed.tolist())
    at, masks = packed_bytes(rows, channels, bits), []
    for _ in range(MASKS[activation]):
        mask = torch.empty(rows, channels, dtype=torch.bool)
        for first, height, octets in blocks_of(rows, GROUP_ROWS):
            for channel in range(channels):
                word = int.from_bytes(data[at : at + octets], "little")
                mask[first : first + height, channel] = torch.tensor([bool(word >> row & 1) for row in range(height)])
                at += octets
        masks.append(mask)
    return masks


def unpack(packed, rows, linear, dtype, bits, activation):
    """The copies s, float32; `linear`: of each channel, whether it is one."""
    count = len(linear)
    masks = masks_of(packed, rows, count, bits, activation)
    data = bytes(packed.tolist())
    seed, offset = struct.unpack("<2Q", data[:HEADER_BYTES])
    dithered = offset < UNDITHERED
    out = torch.empty(rows, count)
    group, at = 0, packed_bytes(rows, count, bits) - mask_bytes(rows, count) * bits
    for first, height, octets in blocks_of(rows, GROUP_ROWS):
        for channel in range(count):
            low, high = struct.unpack_from("<2H", data, HEADER_BYTES + 4 * group)
            is_split = bool(masks) and not linear[channel]
            second = as_value(high & 0x7FFF, torch.bfloat16)
            if is_split:
                first_step = as_value(low, torch.bfloat16)
                zero = torch.tensor(math.nan if first_step.isnan() else 0.0)
                grids = [(zero, first_step), (zero, -second)]  # above, below
            else:
                grids = [(as_value(low, minimum_dtype(dtype)), second)] * 2
            below = [is_split and not side for side in masks[0][first : first + height, channel]] if masks else []
            numbers, is_nan = [], []
            for k in range(0, height, 8):
                word = int.from_bytes(data[at + k // 8 * bits :][:bits], "little")
                noise = noise_of(seed, offset, first + k, channel, count) if dithered else [255] * 8
                codes = [(word >> (bits * i)) & (2**bits - 1) for i in range(min(8, height - k))]
                numbers += [256 * code + 255 - noise[i] for i, code in enumerate(codes)]
                is_nan += [high & 0x8000 and code == 2**bits - 1 for code in codes]
            of_grids = []
            for minimum, step in grids:
                start = minimum - 255 / 512 * step if dithered else minimum
                of_grids.append(start + torch.tensor(numbers) * (step / 256))
            copies = torch.where(torch.tensor(below), of_grids[1], of_grids[0]) if below else of_grids[0]
            out[first : first + height, channel] = copies.masked_fill(torch.tensor(is_nan, dtype=torch.bool), math.nan)
            group, at = group + 1, at + octets * bits
    return out
