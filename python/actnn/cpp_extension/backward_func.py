"""Backward functions of PyTorch 1.8 by their old names, on the operations of today, on any device and with any dtype.

Errors are torch's own, but for shapes that torch's operations would not check: those raise ValueError. With cuDNN,
`benchmark`, `deterministic` and `allow_tf32` act on the call; elsewhere they mean nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks

aten = torch.ops.aten
Gradients = tuple[Tensor | None, Tensor | None]


def cudnn_convolution_backward(
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    benchmark: bool,
    deterministic: bool,
    allow_tf32: bool,
    output_mask: Sequence[bool],
) -> Gradients:
    """The gradients of a 1-D to 3-D convolution with respect to its input and its weight.

    `input` is [N, C, ...], `weight` [K, C / groups, ...], `grad_output` the output's shape; `padding`, `stride` and
    `dilation` have an entry per spatial dimension. `output_mask` says which of the two gradients are wanted; the others
    are None.
    """
    geometry = [list(stride), list(padding), list(dilation), False, [0] * len(stride), groups]
    return _convolution_backward(
        "cudnn_convolution_backward", input, grad_output, weight, geometry,
        (benchmark, deterministic, allow_tf32), output_mask,
    )  # fmt: skip


def cudnn_convolution_transpose_backward(
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    output_padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    benchmark: bool,
    deterministic: bool,
    allow_tf32: bool,
    output_mask: Sequence[bool],
) -> Gradients:
    """The same for a transposed convolution, with `weight` [C, K / groups, ...]."""
    geometry = [list(stride), list(padding), list(dilation), True, list(output_padding), groups]
    return _convolution_backward(
        "cudnn_convolution_transpose_backward", input, grad_output, weight, geometry,
        (benchmark, deterministic, allow_tf32), output_mask,
    )  # fmt: skip


def cudnn_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    exponential_average_factor: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch normalization of [N, C, ...]. Updates the running statistics in place if `training`.

    Returns the output, the batch's mean and 1 / sqrt(variance + epsilon), both [C] (empty in evaluation mode on some
    devices), and cuDNN's reserve space, uint8, empty without cuDNN. All but the output are for
    `cudnn_batch_norm_backward`.
    """
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    _check_channels("cudnn_batch_norm", input, **vectors)
    arguments = (input, *vectors.values(), training, exponential_average_factor, epsilon)
    if _has_cudnn(input, weight, training):
        return tuple(aten.cudnn_batch_norm(*arguments))
    return *native_batch_norm(*arguments), torch.empty(0, dtype=torch.uint8, device=input.device)


def cudnn_batch_norm_backward(
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor,
    save_var: Tensor,
    epsilon: float,
    reserve: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `cudnn_batch_norm` in training mode for input, weight and bias, from what it returned."""
    where = "cudnn_batch_norm_backward"
    _check_channels(where, input, weight=weight, running_mean=running_mean, running_var=running_var,
                    save_mean=save_mean, save_var=save_var)  # fmt: skip
    _checks.shape(where, "grad_output", grad_output, input.shape, input.device)
    if reserve is not None and _has_cudnn(input, weight, training=True):
        return tuple(
            aten.cudnn_batch_norm_backward(
                input, grad_output.contiguous(memory_format=_format_of(input)), weight, running_mean, running_var,
                save_mean, save_var, epsilon, reserve,
            )
        )  # fmt: skip
    return native_batch_norm_backward(
        grad_output, input, weight, running_mean, running_var, save_mean, save_var, True, epsilon, [True, True, True]
    )


def native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without cuDNN: output, mean and 1 / sqrt(variance + eps) of the batch."""
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    _check_channels("native_batch_norm", input, **vectors)
    return tuple(aten.native_batch_norm(input, *vectors.values(), training, momentum, eps))


def native_batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    save_mean: Tensor | None,
    save_invstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `native_batch_norm` for input, weight and bias: those that `output_mask` asks for, else None."""
    where = "native_batch_norm_backward"
    mask = _mask(where, output_mask, 3)
    statistics = {"save_mean": save_mean, "save_invstd": save_invstd} if train else {}  # else they may be empty
    _check_channels(where, input, weight=weight, running_mean=running_mean, running_var=running_var, **statistics)
    _checks.shape(where, "grad_output", grad_output, input.shape, input.device)
    gradients = aten.native_batch_norm_backward(
        grad_output, input, weight, running_mean, running_var, save_mean, save_invstd, train, eps, mask
    )
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, mask, strict=True))


def _check_channels(where: str, input: Tensor, **vectors: Tensor | None) -> None:
    """`vectors` have an entry per channel of `input`, where they are given: torch would read beyond a shorter one."""
    if not isinstance(input, Tensor) or input.dim() < 2:
        raise ValueError(f"{where}: input must be a tensor [N, C, ...], got {_checks.describe(input)}")
    for name, vector in vectors.items():
        if vector is not None:
            _checks.shape(where, name, vector, [input.shape[1]], input.device)


def _mask(where: str, output_mask: Sequence[bool], count: int) -> list[bool]:
    if not isinstance(output_mask, (list, tuple)) or len(output_mask) != count:
        raise ValueError(f"{where}: output_mask must be {count} bools, got {output_mask!r}")
    return [bool(wanted) for wanted in output_mask]


def _convolution_backward(
    where: str,
    input: Tensor,
    grad_output: Tensor,
    weight: Tensor,
    geometry: list,
    flags: tuple[bool, bool, bool],
    output_mask: Sequence[bool],
) -> Gradients:
    mask = _mask(where, output_mask, 2)
    if not any(mask):
        return None, None
    for name, value in (("input", input), ("grad_output", grad_output), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{where}: {name} must be a tensor, got {_checks.describe(value)}")
    # On the meta device, for the shape alone. CPU libraries say nothing useful about a gradient of another shape.
    output = aten.convolution(input.to("meta"), weight.to("meta"), None, *geometry)
    _checks.shape(where, "grad_output", grad_output, output.shape, input.device)
    if grad_output.dtype != input.dtype:
        raise TypeError(f"{where}: grad_output must have the dtype of input, got {_checks.describe(grad_output)}")
    benchmark, deterministic, allow_tf32 = flags
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=benchmark, deterministic=deterministic, allow_tf32=allow_tf32
    ):
        grad_input, grad_weight, _ = aten.convolution_backward(
            grad_output, input, weight, None, *geometry, [*mask, False]
        )
    return grad_input if mask[0] else None, grad_weight if mask[1] else None


def _format_of(input: Tensor) -> torch.memory_format:
    """The memory format that cuDNN wants of the gradient."""
    if input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if input.dim() == 5 and input.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def _has_cudnn(input: Tensor, weight: Tensor | None, training: bool) -> bool:
    """Whether cuDNN's batch normalization is there for these tensors: on CUDA, in training, with float32 weights."""
    return (
        input.is_cuda
        and training
        and weight is not None
        and weight.dtype == torch.float32
        and torch.backends.cudnn.is_acceptable(input)
    )
