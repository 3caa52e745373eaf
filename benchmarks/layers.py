"""actnn's layers in a PyTorch model: `convert` rebinds the forward of torch's layers to the ops of torch.ops.actnn.

An adapter for the benchmarks. It changes a model in place and keeps modules, parameters and their names.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _list_with_default, _pair

ops = torch.ops.actnn


@dataclass(frozen=True)
class Quantization:
    bits: int = 4
    group_size: int = 256


def convolution(layer: nn.Conv2d, quantization: Quantization, x: Tensor) -> Tensor:
    return ops.convolution(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, False, [0, 0],
                           layer.groups, bits=quantization.bits, group_size=quantization.group_size)  # fmt: skip


def linear(layer: nn.Linear, quantization: Quantization, x: Tensor) -> Tensor:
    return ops.linear(x, layer.weight, layer.bias, quantization.bits, quantization.group_size)


def batch_norm(layer: nn.BatchNorm2d, quantization: Quantization, x: Tensor) -> Tensor:
    """The rules of torch's layer for momentum, counting, and when to use the batch's statistics."""
    layer._check_input_dim(x)
    momentum = layer.momentum or 0.0
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
    tracked = not layer.training or layer.track_running_stats
    mean, var = (layer.running_mean, layer.running_var) if tracked else (None, None)
    uses_batch = layer.training or (layer.running_mean is None and layer.running_var is None)
    return ops.batch_norm(x, layer.weight, layer.bias, mean, var, uses_batch, momentum, layer.eps, quantization.bits,
                          quantization.group_size)  # fmt: skip


def relu(layer: nn.ReLU, _: Quantization, x: Tensor) -> Tensor:
    return ops.relu_(x) if layer.inplace else ops.relu(x)


def dropout(layer: nn.Dropout, _: Quantization, x: Tensor) -> Tensor:
    if not layer.training or layer.p == 0:
        return x
    return ops.dropout_(x, layer.p) if layer.inplace else ops.dropout(x, layer.p)


def max_pool(layer: nn.MaxPool2d, _: Quantization, x: Tensor) -> Tensor:
    return ops.max_pool2d(x, _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation),
                          layer.ceil_mode)  # fmt: skip


def adaptive_avg_pool(layer: nn.AdaptiveAvgPool2d, _: Quantization, x: Tensor) -> Tensor:
    return ops.adaptive_avg_pool2d(x, _list_with_default(_pair(layer.output_size), list(x.shape)))


FORWARDS = {
    nn.Conv2d: convolution,
    nn.Linear: linear,
    nn.BatchNorm2d: batch_norm,
    nn.ReLU: relu,
    nn.Dropout: dropout,
    nn.MaxPool2d: max_pool,
    nn.AdaptiveAvgPool2d: adaptive_avg_pool,
}


def is_supported(layer: nn.Module) -> bool:
    """Layers of these very types; not what the ops have no arguments for."""
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        return False
    return type(layer) in FORWARDS and not getattr(layer, "return_indices", False)


def convert(model: nn.Module, bits: int = 4, group_size: int = 256) -> Counter:
    """Converts the layers of `model` in place; returns how many of each type there were."""
    quantization = Quantization(bits, group_size)
    layers = [layer for layer in model.modules() if is_supported(layer)]
    for layer in layers:
        layer.forward = partial(FORWARDS[type(layer)], layer, quantization)
    return Counter(type(layer).__name__ for layer in layers)
