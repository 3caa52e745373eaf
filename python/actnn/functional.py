"""Compression of a model's functional calls, which no conversion of its layers can see.

with CompressFunctions(bits=2):
    loss = criterion(model(x), y)
loss.backward()
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.utils import _list_with_default
from torch.overrides import TorchFunctionMode

from . import _checks

DTYPES = _checks.FLOATING
DEVICES = ("cpu", "cuda") if torch._C._dispatch_has_kernel_for_dispatch_key("actnn::quantize", "CUDA") else ("cpu",)


class CompressFunctions(TorchFunctionMode):
    """Inside of it, calls of torch's functions go to the operations of actnn that keep less for backward.

    They are relu, dropout, 1-D to 3-D convolutions and transposed convolutions, linear, batch_norm, max_pool2d, and
    average pools of 2 and 3 dimensions, under all their names: in `torch.nn.functional`, in `torch`, as methods of
    tensors. What torch.nn's layers call in their forward is among them. The results are torch's, and nothing is kept
    that a wanted gradient does not need; dropout draws its mask from another stream of the same generator.

    A call stays torch's own if its input is not a float32, float16 or bfloat16 tensor on a device that the library has
    kernels for, or if the operation lacks one of its arguments (`out`, padding "same" that is not symmetric, inputs
    without a batch). So do calls inside of torch.func's transforms, with forward-mode derivatives, and inside of other
    functions of torch, such as `multi_head_attention_forward`. torch.compile traces the calls as they are redirected.

    Args:
        bits: of a code, 1..8.
        group_size: elements that share a range, a positive multiple of 32.
        stochastic: unbiased random rounding; False: to nearest, which biases gradients.

    Raises ValueError for other numbers, TypeError for other types. The noise is from torch's generator of the device.
    """

    def __init__(self, bits: int = 4, group_size: int = 256, stochastic: bool = True) -> None:
        super().__init__()
        bits = _checks.integer("CompressFunctions", "bits", bits, 1, 8)
        if not _checks.is_integer(group_size) or group_size <= 0 or group_size % 32 != 0:
            kind = ValueError if _checks.is_integer(group_size) else TypeError
            raise kind(f"CompressFunctions: group_size must be a positive multiple of 32, got {group_size!r}")
        stochastic = _checks.switch("CompressFunctions", "stochastic", stochastic)
        self.quantization = {"bits": bits, "group_size": group_size, "stochastic": stochastic}

    def __torch_function__(
        self, function: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        redirected = REDIRECTED.get(function)
        if redirected is not None and takes(args[0] if args else kwargs.get("input")):
            result = redirected(self.quantization, *args, **kwargs)
            if result is not None:
                return result
        return function(*args, **kwargs)


def takes(input: Any) -> bool:
    """Whether the operations have kernels for this input."""
    return (
        isinstance(input, Tensor)
        and input.dtype in DTYPES
        and input.layout == torch.strided
        and not input.is_nested
        and input.device.type in DEVICES
        and not is_transformed()
    )


def is_transformed() -> bool:
    """Whether torch.func's transforms or forward-mode derivatives are on: the operations have no rules for them.

    In compiled code: no, it has traced those away.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def expand(value: int | Sequence[int], count: int) -> list[int]:
    """An argument that torch takes as one number or as one per dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


# The functions below have the arguments of torch's after those of the quantization; None says: leave the call to torch.


def _relu(quantization, input, inplace=False):
    return torch.ops.actnn.relu_(input) if inplace else torch.ops.actnn.relu(input)


def _relu_(quantization, input):
    return torch.ops.actnn.relu_(input)


def _dropout(quantization, input, p=0.5, training=True, inplace=False):
    if not training or not 0 < p <= 1:
        return None
    return torch.ops.actnn.dropout_(input, p) if inplace else torch.ops.actnn.dropout(input, p)


def _torch_dropout(quantization, input, p, train):
    return _dropout(quantization, input, p, train)


def _torch_dropout_(quantization, input, p, train):
    return _dropout(quantization, input, p, train, inplace=True)


def _linear(quantization, input, weight, bias=None, *, out=None):
    if out is not None or weight.dim() != 2:
        return None
    return torch.ops.actnn.linear(input, weight, bias, **quantization)


def _batch_norm(
    quantization, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    if input.dim() < 2 or (training and input.numel() <= input.size(1)):  # torch has an error for one value per channel
        return None
    return torch.ops.actnn.batch_norm(
        input, weight, bias, running_mean, running_var, training, momentum, eps, **quantization
    )


def _torch_batch_norm(
    quantization, input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled
):
    return _batch_norm(quantization, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _convolution(quantization, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    count = weight.dim() - 2
    if input.dim() != weight.dim():
        return None
    stride, dilation = expand(stride, count), expand(dilation, count)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        both_sides = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        if any(size % 2 for size in both_sides) or any(s != 1 for s in stride):
            return None
        padding = [size // 2 for size in both_sides]
    elif isinstance(padding, str):
        return None
    return torch.ops.actnn.convolution(
        input, weight, bias, stride, expand(padding, count), dilation, False, [0] * count, groups, **quantization
    )


def _conv_transpose(
    quantization, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    count = weight.dim() - 2
    if input.dim() != weight.dim():
        return None
    return torch.ops.actnn.convolution(
        input, weight, bias, expand(stride, count), expand(padding, count), expand(dilation, count), True,
        expand(output_padding, count), groups, **quantization,
    )  # fmt: skip


def _max_pool2d(
    quantization, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
):
    operation = torch.ops.actnn.max_pool2d_with_indices if return_indices else torch.ops.actnn.max_pool2d
    return operation(
        input, expand(kernel_size, 2), [] if stride is None else expand(stride, 2), expand(padding, 2),
        expand(dilation, 2), ceil_mode,
    )  # fmt: skip


def _max_pool2d_with_indices(
    quantization, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=True
):
    return _max_pool2d(quantization, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)


def _avg_pool(operation: Callable, count: int) -> Callable:
    def redirected(
        quantization, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
        divisor_override=None, *, out=None,
    ):  # fmt: skip
        if out is not None:
            return None
        return operation(
            input, expand(kernel_size, count), [] if stride is None else expand(stride, count),
            expand(padding, count), ceil_mode, count_include_pad, divisor_override,
        )  # fmt: skip

    return redirected


def _adaptive_avg_pool(operation: Callable, count: int) -> Callable:
    def redirected(quantization, input, output_size, *, out=None):
        if out is not None or input.dim() < count + 1:
            return None
        return operation(input, _list_with_default(expand(output_size, count), list(input.shape)))

    return redirected


_avg_pool2d = _avg_pool(torch.ops.actnn.avg_pool2d, 2)
_avg_pool3d = _avg_pool(torch.ops.actnn.avg_pool3d, 3)
_adaptive_avg_pool2d = _adaptive_avg_pool(torch.ops.actnn.adaptive_avg_pool2d, 2)
_adaptive_avg_pool3d = _adaptive_avg_pool(torch.ops.actnn.adaptive_avg_pool3d, 3)

BATCH_NORMS = frozenset({F.batch_norm, torch.batch_norm})
REDIRECTED: dict[Callable, Callable] = {
    F.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu: _relu,
    Tensor.relu_: _relu_,
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    torch.dropout_: _torch_dropout_,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    torch.conv_transpose1d: _conv_transpose,
    torch.conv_transpose2d: _conv_transpose,
    torch.conv_transpose3d: _conv_transpose,
    F.max_pool2d: _max_pool2d,
    F.max_pool2d_with_indices: _max_pool2d_with_indices,
    torch.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.avg_pool3d: _avg_pool3d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.adaptive_avg_pool3d: _adaptive_avg_pool3d,
    torch._C._nn.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    torch._C._nn.adaptive_avg_pool3d: _adaptive_avg_pool3d,
}
