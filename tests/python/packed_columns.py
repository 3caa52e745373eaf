"""Column groups of the packed format (docs/format.md) in plain PyTorch and integers: a second implementation."""

import math
import struct

import torch
from packed_format import HEADER_BYTES, UNDITHERED, bits_of, choose_grid, header, minimum_dtype, noise8

WORD_ROWS = 32


def blocks_of(rows, group_rows):
    """(first row, rows, octets that are stored) of each block."""
    for first in range(0, rows, group_rows):
        count = min(group_rows, rows - first)
        yield first, count, -(-count // WORD_ROWS) * (WORD_ROWS // 8)


def noise_of(seed, offset, row, channel, channels):
    """The eight random bytes of rows `row`, ..., of a channel: two neighbouring channels share a Philox block."""
    return noise8(seed, offset, row // 8 * (channels + channels % 2) + channel)


def packed_bytes(rows, channels, bits, group_rows):
    groups = -(-rows // group_rows) * channels
    return HEADER_BYTES + -(-4 * groups // 16) * 16 + -(-rows // WORD_ROWS) * 4 * channels * bits


def quantize(x, bits, group_rows, seed, offset, rounding="dithered"):
    """The packed bytes of a matrix."""
    rows, channels = x.shape
    offset &= UNDITHERED - 1
    parameters, codes = bytearray(), bytearray()
    for first, count, octets in blocks_of(rows, group_rows):
        for channel in range(channels):
            group = x[first : first + count, channel].contiguous()
            minimum, step, has_nan = choose_grid(group, bits)
            parameters += struct.pack("<2H", bits_of(minimum), bits_of(step) | 0x8000 * has_nan)
            inverse = torch.tensor(0.0) if step.item() == 0 else 256 / step.float()
            finite = torch.isfinite(group)
            scaled = (group.float() - minimum.float()) * inverse
            positions = torch.round(scaled.where(finite, 0.0)).nan_to_num().long().tolist()
            for k in range(0, 8 * octets, 8):
                word = 0
                if not math.isnan(minimum.item()):
                    noise = noise_of(seed, offset, first + k, channel, channels)
                    for i in range(k, min(k + 8, count)):
                        code = 2**bits - 1
                        if finite[i]:
                            code = (positions[i] + (128 if rounding == "nearest" else noise[i - k])) >> 8
                            assert code <= 2**bits - 1 - has_nan
                        word |= code << (bits * (i - k))
                codes += word.to_bytes(bits, "little")
    parameters += bytes(-len(parameters) % 16)
    return torch.frombuffer(bytearray(header(seed, offset, rounding)) + parameters + codes, dtype=torch.uint8)


def dequantize(packed, rows, channels, dtype, bits, group_rows):
    out = torch.empty(rows, channels, dtype=dtype)
    data = bytes(packed.tolist())
    seed, offset = struct.unpack("<2Q", data[:HEADER_BYTES])
    dithered = offset < UNDITHERED
    group, at = 0, len(data) - -(-rows // WORD_ROWS) * 4 * channels * bits
    for first, count, octets in blocks_of(rows, group_rows):
        for channel in range(channels):
            low, width = struct.unpack_from("<2H", data, HEADER_BYTES + 4 * group)
            minimum = torch.tensor(low, dtype=torch.uint16).view(minimum_dtype(dtype)).float()
            step = torch.tensor(width & 0x7FFF, dtype=torch.uint16).view(torch.bfloat16).float()
            start = minimum - 255 / 512 * step if dithered else minimum
            values = []
            for k in range(0, count, 8):
                word = int.from_bytes(data[at + k // 8 * bits :][:bits], "little")
                noise = noise_of(seed, offset, first + k, channel, channels) if dithered else [255] * 8
                for i in range(min(8, count - k)):
                    code = (word >> (bits * i)) & (2**bits - 1)
                    is_nan = width & 0x8000 and code == 2**bits - 1
                    values.append(math.nan if is_nan else 256 * code + 255 - noise[i])
            out[first : first + count, channel] = (start + torch.tensor(values) * (step / 256)).to(dtype)
            group, at = group + 1, at + octets * bits
    return out
