"""The original's functions: quantization by a scheme, and each layer's differentiable function behind `.apply`."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks
from .conf import config
from .cpp_extension import quantization
from .qscheme import PLAN, QScheme
from .redirected import expand

_ops = torch.ops.actnn


class QuantizedActivation(NamedTuple):
    """What `quantize_activation` returns: data, and how to read it."""

    data: Tensor
    """Packed, uint8; or the activation itself if it is not compressed."""
    sample_bits: Tensor | None
    bits: int
    group_size: int
    stride: tuple[int, ...]
    dtype: torch.dtype
    packed: bool


def _plan(input: Tensor, scheme: QScheme | None) -> dict:
    if scheme is not None:
        if not isinstance(scheme, QScheme):
            raise TypeError(f"actnn.ops: scheme must be a QScheme or None, got {_checks.describe(scheme)}")
        return scheme.plan(input)
    flags = config
    fixed = (8, flags.group_size if flags.pergroup else 0, flags.rounding, None, 0)
    return dict(zip(PLAN, (*fixed, flags.compress_activation and flags.training, flags.simulate, False), strict=True))


def quantize_activation(input: Tensor, scheme: QScheme | None) -> QuantizedActivation:
    """A compressed copy of `input`, [N, ...], float32, float16 or bfloat16, with the bits that `scheme` chooses.

    Without a scheme: 8 bits. With `config.compress_activation` off, or without the flag `training`: the input itself.
    """
    _checks.tensor("quantize_activation", "input", input, _checks.FLOATING)
    if input.dim() == 0:
        raise ValueError(f"quantize_activation: input must be [N, ...], got {_checks.describe(input)}")
    plan = _plan(input, scheme)
    if not plan["compress"]:
        return QuantizedActivation(input, None, 0, 0, input.stride(), input.dtype, packed=False)
    input = input.contiguous()
    bits, sample_bits, samples = plan["bits"], plan["sample_bits"], input.shape[0]
    elements = input.numel() if sample_bits is None else input.numel() // max(samples, 1)
    group_size = plan["group_size"] or max(32, -(-elements // 32) * 32)
    if sample_bits is None:
        data = _ops.quantize(input, bits, group_size, plan["rounding"])
    else:
        room = -(-elements // 8) * plan["total_bits"] + 3 * samples
        data = _ops.quantize_per_sample(input, sample_bits, room, group_size, plan["rounding"])
    quantized = QuantizedActivation(data, sample_bits, bits, group_size, input.stride(), input.dtype, packed=True)
    if plan["simulate"]:
        return quantized._replace(data=dequantize_activation(quantized, input.shape), packed=False)
    return quantized


def dequantize_activation(quantized: QuantizedActivation, q_input_shape) -> Tensor:
    """The copy that `quantize_activation` packed, of the shape given."""
    if not quantized.packed:
        return quantized.data
    shape, q = list(q_input_shape), quantized
    if q.sample_bits is None:
        return _ops.dequantize(q.data, shape, q.stride, q.dtype, q.bits, q.group_size)
    return _ops.dequantize_per_sample(q.data, q.sample_bits, shape, q.stride, q.dtype, q.group_size)


def quantize_and_pack(data: Tensor, bits: Tensor | int, mn: Tensor, mx: Tensor) -> tuple[Tensor, Tensor]:
    """(packed, scale) of `data`, [N, groups, group_size], in the ranges [mn, mx], [N, groups, 1]; `bits`: one width, or
    an integer tensor [N]."""
    if isinstance(bits, Tensor) and bits.dim() > 0:
        return quantization.pack_mixed_precision(data, mn, mx, bits, config.stochastic)
    return quantization.pack_single_precision(data, mn, mx, _number(bits), config.stochastic)


def dequantize_and_unpack(data: Tensor, shape, bits: Tensor | int, scale: Tensor, mn: Tensor) -> Tensor:
    """What `quantize_and_pack` packed, as [N, groups, group_size], from the shape of the activation."""
    samples = shape[0]
    elements = 1
    for size in shape[1:]:
        elements *= size
    group_size = config.group_size
    groups = -(-elements // group_size)
    if isinstance(bits, Tensor) and bits.dim() > 0:
        return quantization.unpack_mixed_precision(data, bits, scale, mn, samples, groups, group_size)
    return quantization.unpack_single_precision(data, _number(bits), scale, mn, samples, groups, group_size)


def _number(bits: Tensor | int) -> int:
    return bits.item() if isinstance(bits, Tensor) else bits


def _observed(op, input: Tensor, *args, scheme: QScheme | None, **kwargs) -> Tensor:
    output = op(input, *args, **kwargs, **_plan(input, scheme))
    if scheme is not None:
        scheme.observe(output)
    return output


class _Convolution:
    dimensions: int

    @classmethod
    def apply(cls, input, weight, bias, stride, padding, dilation, groups, scheme=None) -> Tensor:
        """The convolution of `input`, [N, C, ...], keeping its input as `scheme` plans (None: in 8 bits)."""
        d = cls.dimensions
        geometry = (expand(stride, d), expand(padding, d), expand(dilation, d), False, [0] * d, groups)
        return _observed(_ops.convolution, input, weight, bias, *geometry, scheme=scheme)


class _ConvTranspose:
    dimensions: int

    @classmethod
    def apply(cls, input, weight, bias, stride, padding, output_padding, groups, dilation, scheme=None) -> Tensor:
        """The transposed convolution of `input`, [N, C, ...], keeping its input as `scheme` plans (None: in 8 bits)."""
        d = cls.dimensions
        output_padding = expand(output_padding, d)
        geometry = (expand(stride, d), expand(padding, d), expand(dilation, d), True, output_padding, groups)
        return _observed(_ops.convolution, input, weight, bias, *geometry, scheme=scheme)


class conv1d(_Convolution):  # noqa: N801  # the original's names
    dimensions = 1


class conv2d(_Convolution):  # noqa: N801
    dimensions = 2


class conv3d(_Convolution):  # noqa: N801
    dimensions = 3


class conv_transpose1d(_ConvTranspose):  # noqa: N801
    dimensions = 1


class conv_transpose2d(_ConvTranspose):  # noqa: N801
    dimensions = 2


class conv_transpose3d(_ConvTranspose):  # noqa: N801
    dimensions = 3


class linear:  # noqa: N801
    @staticmethod
    def apply(input: Tensor, weight: Tensor, bias: Tensor | None = None, scheme: QScheme | None = None) -> Tensor:
        """`input` [..., in_features] times `weight` [out_features, in_features], plus `bias`."""
        return _observed(_ops.linear, input, weight, bias, scheme=scheme)


class batch_norm:  # noqa: N801
    @staticmethod
    def apply(
        input, weight, bias, running_mean, running_var, training, exponential_average_factor, eps, scheme=None
    ) -> Tensor:
        """Batch norm of `input`, [N, C, ...]; running statistics are updated in training."""
        statistics = (running_mean, running_var, training, exponential_average_factor, eps)
        return _observed(_ops.batch_norm, input, weight, bias, *statistics, scheme=scheme)


class sync_batch_norm:  # noqa: N801
    @staticmethod
    def apply(
        input, weight, bias, running_mean, running_var, eps, exponential_average_factor, process_group, world_size,
        scheme=None,
    ) -> Tensor:  # fmt: skip
        """Batch norm in training with the statistics of all ranks of `process_group`."""
        statistics = (running_mean, running_var, True, exponential_average_factor, eps)
        if world_size == 1:
            return _observed(_ops.batch_norm, input, weight, bias, *statistics, scheme=scheme)
        name = process_group.group_name
        return _observed(_ops.sync_batch_norm, input, weight, bias, *statistics, name, scheme=scheme)


class adaptive_avg_pool2d:  # noqa: N801
    @staticmethod
    def apply(input: Tensor, output_size) -> Tensor:
        """Averages over [N, C, H, W] to `output_size`, keeping the shape only."""
        return _ops.adaptive_avg_pool2d(input, expand(output_size, 2))
