"""Packing with ranges that the caller gives, and the layers that keep masks instead of activations.

`data` is [N, groups, group_size], `mn` and `mx` are [N, groups, 1]: the range of each group. With `b` bits,

    scale = (2^b - 1) / (mx - mn)
    code  = (data - mn) * scale + noise, rounded to an integer and clamped to 0..2^b - 1
    value = code / scale + mn

`noise` is uniform in [-0.5, 0.5), from torch's generator of the device, or 0 if not `stochastic`. For elements inside
of their group's range, the expectation of `value` is the element.

The codes fill one uint8 stream without gaps between samples: sample i has ceil(groups * group_size / 8) * bits[i]
bytes, so where it begins follows from the bits before it, and unpacking needs no stored bounds. See
`actnn::pack_codes`.

A group with a NaN or infinite element or range, or with `mx < mn`, has scale NaN and is unpacked as NaN. A group whose
range is empty has a scale so large that its codes are 0 and it is unpacked as `mn`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks

# bfloat16's largest number: a scale may be stored as bfloat16.
LARGEST_SCALE = torch.finfo(torch.bfloat16).max


def pack_single_precision(data: Tensor, mn: Tensor, mx: Tensor, bits: int, stochastic: bool) -> tuple[Tensor, Tensor]:
    """Packs with one bit width.

    Args:
        data: [N, groups, group_size], float32, float16 or bfloat16, any device and strides.
        mn, mx: [N, groups, 1], of the same dtypes, on the device of `data`.
        bits: 1..8.
        stochastic: add noise before rounding.

    Returns the packed codes, uint8 [ceil(groups * group_size / 8) * bits * N], and the scale, float32 [N, groups, 1].

    Raises TypeError and ValueError, naming the argument, for anything else. Not differentiable.
    """
    where = "pack_single_precision"
    _check_groups(where, data, mn, mx)
    bits = _checks.integer(where, "bits", bits, 1, 8)
    stochastic = _checks.switch(where, "stochastic", stochastic)
    widths = torch.full((data.shape[0],), bits, dtype=torch.uint8, device=data.device)
    return _pack(data, mn, mx, widths, bits * data.shape[0], stochastic)


def pack_mixed_precision(data: Tensor, mn: Tensor, mx: Tensor, bits: Tensor, stochastic: bool) -> tuple[Tensor, Tensor]:
    """Packs with a bit width per sample: `bits` is an integer tensor [N] with values in 1..8, on the device of `data`.

    Otherwise as `pack_single_precision`; the stream has ceil(groups * group_size / 8) * sum(bits) bytes. On a GPU the
    host waits for the bits, since they decide the stream's size.
    """
    where = "pack_mixed_precision"
    _check_groups(where, data, mn, mx)
    stochastic = _checks.switch(where, "stochastic", stochastic)
    total = _check_bits(where, bits, data.shape[0], data.device)
    return _pack(data, mn, mx, bits.to(torch.uint8), total, stochastic)


def unpack_single_precision(
    data: Tensor, bits: int, scale: Tensor, mn: Tensor, N: int, num_groups: int, group_size: int
) -> Tensor:
    """Unpacks what `pack_single_precision` returned.

    Args:
        data: uint8 [ceil(num_groups * group_size / 8) * bits * N].
        bits: 1..8.
        scale, mn: [N, num_groups, 1], float32, float16 or bfloat16, on the device of `data`.
        N, num_groups, group_size: the shape of the data that was packed; group_size is at least 1.

    Returns [N, num_groups, group_size] with the dtype of `mn`, computed in float32.

    Raises TypeError and ValueError, naming the argument, for anything else. Not differentiable.
    """
    where = "unpack_single_precision"
    bits = _checks.integer(where, "bits", bits, 1, 8)
    samples = _check_packed(where, data, scale, mn, N, num_groups, group_size)
    widths = torch.full((samples,), bits, dtype=torch.uint8, device=data.device)
    return _unpack(where, data, widths, bits * samples, scale, mn, group_size)


def unpack_mixed_precision(
    data: Tensor, bits: Tensor, scale: Tensor, mn: Tensor, N: int, num_groups: int, group_size: int
) -> Tensor:
    """Unpacks what `pack_mixed_precision` returned: `bits` is the integer tensor [N] that it was packed with.

    Otherwise as `unpack_single_precision`. On a GPU the host waits for the bits.
    """
    where = "unpack_mixed_precision"
    samples = _check_packed(where, data, scale, mn, N, num_groups, group_size)
    total = _check_bits(where, bits, samples, data.device)
    return _unpack(where, data, bits.to(torch.uint8), total, scale, mn, group_size)


def act_quantized_relu(input: Tensor) -> Tensor:
    """ReLU that keeps 1 bit per element; exact gradient. float32, float16 or bfloat16 of any shape."""
    return torch.ops.actnn.relu(input)


def act_quantized_dropout(input: Tensor, p: float) -> Tensor:
    """Dropout in training mode, with probability `p` in [0, 1], that keeps 16 bytes of random state; exact gradient."""
    return torch.ops.actnn.dropout(input, p)


def act_quantized_max_pool2d(
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D max-pooling of [N, C, H, W] or [C, H, W] that keeps 1 byte per output element; exact gradient.

    Takes every window and option of torch's and returns the same, with the int64 indices if asked for. Windows of more
    than 256 elements take 2 or 4 bytes.
    """
    operation = torch.ops.actnn.max_pool2d_with_indices if return_indices else torch.ops.actnn.max_pool2d
    return operation(input, kernel_size, stride, padding, dilation, ceil_mode)


def _check_groups(where: str, data: Tensor, mn: Tensor, mx: Tensor) -> None:
    _checks.tensor(where, "data", data, _checks.FLOATING, 3)
    for name, value in (("mn", mn), ("mx", mx)):
        _checks.tensor(where, name, value, _checks.FLOATING)
        _checks.shape(where, name, value, [data.shape[0], data.shape[1], 1], data.device)


def _check_bits(where: str, bits: Tensor, samples: int, device: torch.device) -> int:
    """Returns the sum of the bits."""
    _checks.tensor(where, "bits", bits, _checks.INTEGER, 1)
    _checks.shape(where, "bits", bits, [samples], device)
    values = bits.tolist()
    for sample, value in enumerate(values):
        if not 1 <= value <= 8:
            raise ValueError(f"{where}: bits must be in 1..8, got {value} for sample {sample}")
    return sum(values)


def _check_packed(
    where: str, data: Tensor, scale: Tensor, mn: Tensor, samples: int, num_groups: int, group_size: int
) -> int:
    _checks.tensor(where, "data", data, (torch.uint8,), 1)
    samples = _checks.integer(where, "N", samples, 0)
    num_groups = _checks.integer(where, "num_groups", num_groups, 0)
    _checks.integer(where, "group_size", group_size, 0)
    for name, value in (("scale", scale), ("mn", mn)):
        _checks.tensor(where, name, value, _checks.FLOATING)
        _checks.shape(where, name, value, [samples, num_groups, 1], data.device)
    return samples


def _octets(elements: int) -> int:
    return -(-elements // 8)


def _pack(data: Tensor, mn: Tensor, mx: Tensor, bits: Tensor, total: int, stochastic: bool) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        data, mn, mx = data.float(), mn.float(), mx.float()
        highest = (2.0 ** bits.float() - 1).view(-1, 1, 1)
        span = mx - mn
        scale = (highest / span).clamp_max(LARGEST_SCALE)
        usable = data.isfinite().all(dim=2, keepdim=True) & span.isfinite() & (span >= 0)
        scale = torch.where(usable, scale, torch.nan)
        position = (data - mn) * scale
        if stochastic:
            position += torch.rand_like(position) - 0.5
        codes = torch.where(usable, position.round_().clamp_(min=0).minimum(highest), 0).to(torch.uint8)
        elements = data.shape[1] * data.shape[2]
        size = _octets(elements) * total
        return torch.ops.actnn.pack_codes(codes.reshape(data.shape[0], elements), bits, size), scale


def _unpack(where: str, data: Tensor, bits: Tensor, total: int, scale: Tensor, mn: Tensor, group_size: int) -> Tensor:
    samples, groups, _ = mn.shape
    if groups * group_size >= 2**62:
        raise ValueError(f"{where}: num_groups * group_size must be below 2^62, got {groups} * {group_size}")
    size = _octets(groups * group_size) * total
    if data.numel() != size:
        raise ValueError(
            f"{where}: data must have {size} bytes for {samples} samples of {groups} groups of {group_size} elements "
            f"with these bits, got {data.numel()}"
        )
    with torch.no_grad():
        codes = torch.ops.actnn.unpack_codes(data, bits, groups * group_size).view(samples, groups, group_size)
        return (codes.float() / scale.float() + mn.float()).to(mn.dtype)
