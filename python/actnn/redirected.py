"""Functions of torch's, and what computes them in this library.

The functions here have the arguments of torch's after those of the quantization; None says: leave the call to torch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules.utils import _list_with_default

from . import _checks

DTYPES = _checks.FLOATING
DEVICES = ("cpu", "cuda") if torch._C._dispatch_has_kernel_for_dispatch_key("actnn::quantize", "CUDA") else ("cpu",)


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
    return not torch.compiler.is_dynamo_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def expand(value: int | Sequence[int], count: int) -> list[int]:
    """An argument that torch takes as one number or as one per dimension."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def padding_of(
    padding: int | str | Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int] | None:
    """A convolution's padding on either side of each dimension; None if the sides differ, or there is no such one."""
    if not isinstance(padding, str):
        return expand(padding, len(kernel))
    if padding == "valid":
        return [0] * len(kernel)
    together = [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)]
    if padding != "same" or any(s != 1 for s in stride) or any(size % 2 for size in together):
        return None
    return [size // 2 for size in together]


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
    if out is not None or weight.dim() != 2 or input.shape[-1:] != weight.shape[1:]:
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


def _layer_norm(quantization, input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return torch.ops.actnn.layer_norm(input, _sizes(normalized_shape), weight, bias, eps, **quantization)


def _torch_layer_norm(quantization, input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    return _layer_norm(quantization, input, normalized_shape, weight, bias, eps)


def _rms_norm(quantization, input, normalized_shape, weight=None, eps=None):
    return torch.ops.actnn.rms_norm(input, _sizes(normalized_shape), weight, eps, **quantization)


def _torch_group_norm(quantization, input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    return _group_norm(quantization, input, num_groups, weight, bias, eps)


def _group_norm(quantization, input, num_groups, weight=None, bias=None, eps=1e-5):
    if input.dim() < 2 or input.numel() == 0:
        return None
    return torch.ops.actnn.group_norm(input, num_groups, weight, bias, eps, **quantization)


def _instance_norm(
    quantization, input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True,
    momentum=0.1, eps=1e-5,
):  # fmt: skip
    if input.dim() < 3:
        return None
    return torch.ops.actnn.instance_norm(
        input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, **quantization
    )


def _torch_instance_norm(
    quantization, input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
):
    return _instance_norm(quantization, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _smooth(operation: Callable) -> Callable:
    def redirected(quantization, input, *, out=None):
        return None if out is not None else operation(input, **quantization)

    return redirected


def _smooth_or_in_place(operation: Callable, in_place: Callable) -> Callable:
    def redirected(quantization, input, inplace=False):
        return (in_place if inplace else operation)(input, **quantization)

    return redirected


def _gelu(quantization, input, *, approximate="none"):
    return torch.ops.actnn.gelu(input, approximate, **quantization)


def _leaky_relu(quantization, input, negative_slope=0.01, inplace=False):
    operation = torch.ops.actnn.leaky_relu_ if inplace else torch.ops.actnn.leaky_relu
    return operation(input, negative_slope)


def _leaky_relu_(quantization, input, negative_slope=0.01):
    return torch.ops.actnn.leaky_relu_(input, negative_slope)


def _hardtanh(quantization, input, min_val=-1.0, max_val=1.0, inplace=False):
    operation = torch.ops.actnn.hardtanh_ if inplace else torch.ops.actnn.hardtanh
    return operation(input, min_val, max_val)


def _hardtanh_(quantization, input, min_val=-1.0, max_val=1.0):
    return torch.ops.actnn.hardtanh_(input, min_val, max_val)


def _relu6(quantization, input, inplace=False):
    return _hardtanh(quantization, input, 0.0, 6.0, inplace)


def _prelu(quantization, input, weight):
    return torch.ops.actnn.prelu(input, weight, **quantization)


def _softmax(operation: Callable) -> Callable:
    def redirected(quantization, input, dim=None, _stacklevel=3, dtype=None):
        if dim is None or dtype is not None:
            return None
        return operation(input, dim, **quantization)

    return redirected


def _torch_softmax(operation: Callable) -> Callable:
    def redirected(quantization, input, dim, dtype=None, *, out=None):
        if not isinstance(dim, int) or dtype is not None or out is not None:
            return None
        return operation(input, dim, **quantization)

    return redirected


def _embedding(
    quantization, input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False
):
    if max_norm is not None or not takes(weight) or not _is_plain(input):
        return None
    padding = -1 if padding_idx is None else padding_idx
    if padding < 0 and padding_idx is not None:
        padding += weight.size(0)
    return torch.ops.actnn.embedding(weight, input, padding, scale_grad_by_freq, sparse)


def _torch_embedding(quantization, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    if not takes(weight) or not _is_plain(indices):
        return None
    return torch.ops.actnn.embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse)


def _is_plain(indices: Any) -> bool:
    return isinstance(indices, Tensor) and indices.layout == torch.strided and not indices.is_nested


def _sizes(sizes: int | Sequence[int]) -> list[int]:
    return [sizes] if isinstance(sizes, int) else list(sizes)


def _convolution(quantization, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    count = weight.dim() - 2
    if input.dim() != weight.dim():
        return None
    stride, dilation = expand(stride, count), expand(dilation, count)
    padding = padding_of(padding, weight.shape[2:], stride, dilation)
    if padding is None:
        return None
    return torch.ops.actnn.convolution(
        input, weight, bias, stride, padding, dilation, False, [0] * count, groups, **quantization
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


def _max_pool(count: int, with_indices: bool = False) -> Callable:
    lifts = count == 1  # a row of an image
    suffix = f"max_pool{max(count, 2)}d"
    plain, both = getattr(torch.ops.actnn, suffix), getattr(torch.ops.actnn, f"{suffix}_with_indices")

    def redirected(
        quantization, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
        return_indices=with_indices,
    ):  # fmt: skip
        stride = kernel_size if stride is None or stride == [] else stride
        window = [expand(value, count) for value in (kernel_size, stride, padding, dilation)]
        operation = both if return_indices else plain
        if not lifts:
            return operation(input, *window, ceil_mode)
        window = [[neutral, *sizes] for sizes, neutral in zip(window, (1, 1, 0, 1), strict=True)]
        result = operation(input.unsqueeze(-2), *window, ceil_mode)
        return tuple(part.squeeze(-2) for part in result) if return_indices else result.squeeze(-2)

    return redirected


def _avg_pool1d(quantization, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    stride = kernel_size if stride is None or stride == () else stride
    kernel, stride, padding = (expand(value, 1) for value in (kernel_size, stride, padding))
    window = ([1, *kernel], [1, *stride], [0, *padding])
    return torch.ops.actnn.avg_pool2d(input.unsqueeze(-2), *window, ceil_mode, count_include_pad).squeeze(-2)


def _adaptive_avg_pool1d(quantization, input, output_size):
    return torch.ops.actnn.adaptive_avg_pool2d(input.unsqueeze(-2), [1, *expand(output_size, 1)]).squeeze(-2)


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
EMBEDDINGS = frozenset({F.embedding, torch.embedding})
"""Their first argument is not what the operations need kernels for."""
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
    F.layer_norm: _layer_norm,
    torch.layer_norm: _torch_layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _torch_group_norm,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _torch_instance_norm,
    F.gelu: _gelu,
    F.silu: _smooth_or_in_place(torch.ops.actnn.silu, torch.ops.actnn.silu_),
    F.hardswish: _smooth_or_in_place(torch.ops.actnn.hardswish, torch.ops.actnn.hardswish_),
    F.sigmoid: _smooth(torch.ops.actnn.sigmoid),
    torch.sigmoid: _smooth(torch.ops.actnn.sigmoid),
    Tensor.sigmoid: _smooth(torch.ops.actnn.sigmoid),
    F.tanh: _smooth(torch.ops.actnn.tanh),
    torch.tanh: _smooth(torch.ops.actnn.tanh),
    Tensor.tanh: _smooth(torch.ops.actnn.tanh),
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _leaky_relu_,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_,
    F.relu6: _relu6,
    F.prelu: _prelu,
    torch.prelu: _prelu,
    Tensor.prelu: _prelu,
    F.softmax: _softmax(torch.ops.actnn.softmax),
    torch.softmax: _torch_softmax(torch.ops.actnn.softmax),
    Tensor.softmax: _torch_softmax(torch.ops.actnn.softmax),
    F.log_softmax: _softmax(torch.ops.actnn.log_softmax),
    torch.log_softmax: _torch_softmax(torch.ops.actnn.log_softmax),
    Tensor.log_softmax: _torch_softmax(torch.ops.actnn.log_softmax),
    F.embedding: _embedding,
    torch.embedding: _torch_embedding,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    torch.conv_transpose1d: _conv_transpose,
    torch.conv_transpose2d: _conv_transpose,
    torch.conv_transpose3d: _conv_transpose,
    F.max_pool1d: _max_pool(1),
    F.max_pool1d_with_indices: _max_pool(1, with_indices=True),
    torch.max_pool1d: _max_pool(1),
    F.max_pool2d: _max_pool(2),
    F.max_pool2d_with_indices: _max_pool(2, with_indices=True),
    torch.max_pool2d: _max_pool(2),
    F.max_pool3d: _max_pool(3),
    F.max_pool3d_with_indices: _max_pool(3, with_indices=True),
    torch.max_pool3d: _max_pool(3),
    F.avg_pool1d: _avg_pool1d,
    F.avg_pool2d: _avg_pool2d,
    F.avg_pool3d: _avg_pool3d,
    F.adaptive_avg_pool1d: _adaptive_avg_pool1d,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    F.adaptive_avg_pool3d: _adaptive_avg_pool3d,
    torch._C._nn.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    torch._C._nn.adaptive_avg_pool3d: _adaptive_avg_pool3d,
}
