"""Readers of layers with parameters, of attention, pools, interpolation and dropout."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx

from ..redirected import padding_of
from .steps import Step, dimension_of, expand, step_reader
from .values import UnsupportedError, rank, static_size, tensor


def _convolution(input, weight, bias, stride, padding, dilation, groups, transposed=False, output_padding=None):
    count = rank(weight) - 2
    if rank(input) != count + 2:
        raise UnsupportedError("its input has no batch dimension")
    stride, dilation = expand(stride, count), expand(dilation, count)
    if isinstance(padding, str):
        kernel = [static_size(weight, dimension) for dimension in range(2, count + 2)]
        padding = padding_of(padding, kernel, stride, dilation)
        if padding is None:
            raise UnsupportedError("its padding is not symmetric")
    fields = {
        "stride": stride,
        "padding": expand(padding, count),
        "dilation": dilation,
        "groups": groups,
        "transposed": transposed,
        "output_padding": expand(output_padding, count) if transposed else [],
    }
    return Step("convolution", (input,), fields, {"weight": weight, "bias": bias})


@step_reader(torch.conv1d, torch.conv2d, torch.conv3d)
def convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _convolution(input, weight, bias, stride, padding, dilation, groups)


@step_reader(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def conv_transpose(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    return _convolution(input, weight, bias, stride, padding, dilation, groups, True, output_padding)


@step_reader(F.linear, torch._C._nn.linear)
def linear(input, weight, bias=None):
    if rank(weight) != 2:
        raise UnsupportedError("its weight has no two dimensions")
    return Step("linear", (input,), {}, {"weight": weight, "bias": bias})


@step_reader(F.batch_norm)
def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if (running_mean is None) != (running_var is None):
        raise UnsupportedError("it has one of two running statistics")
    if running_mean is not None and training and {running_mean.op, running_var.op} - {"placeholder", "get_attr"}:
        raise UnsupportedError("its running statistics are computed")
    if momentum is None:
        raise UnsupportedError("it has no momentum")
    fields = {"training": bool(training), "momentum": momentum, "eps": eps}
    buffers = {"running_mean": running_mean, "running_var": running_var}
    return Step("batch_norm", (input,), fields, {"weight": weight, "bias": bias}, buffers)


@step_reader(torch.batch_norm)
def torch_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled):
    return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@step_reader(torch.ops.actnn.sync_batch_norm, torch.ops.actnn.sync_batch_norm.default)
def synchronized_batch_norm(
    input, weight, bias, running_mean, running_var, training, momentum, eps, group_name, **quantization
):
    step = batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return replace(step, fields=dict(step.fields) | {"group_name": group_name})


@step_reader(F.layer_norm)
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    return Step(
        "layer_norm", (input,), {"dimensions": len(normalized_shape), "eps": eps}, {"weight": weight, "bias": bias}
    )


@step_reader(torch.layer_norm)
def torch_layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    return layer_norm(input, normalized_shape, weight, bias, eps)


@step_reader(F.rms_norm, torch.rms_norm)
def rms_norm(input, normalized_shape, weight=None, eps=None):
    return Step("rms_norm", (input,), {"dimensions": len(normalized_shape), "eps": eps}, {"weight": weight})


@step_reader(F.group_norm)
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    return Step("group_norm", (input,), {"groups": num_groups, "eps": eps}, {"weight": weight, "bias": bias})


@step_reader(torch.group_norm)
def torch_group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    return group_norm(input, num_groups, weight, bias, eps)


@step_reader(F.instance_norm)
def instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if running_mean is not None or running_var is not None or not use_input_stats:
        raise UnsupportedError("it has running statistics")
    return Step("instance_norm", (input,), {"eps": eps}, {"weight": weight, "bias": bias})


@step_reader(F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)
def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if {rank(query), rank(key), rank(value)} != {4}:
        raise UnsupportedError("its arguments have no four dimensions")
    if attn_mask is not None and not (tensor(attn_mask).dtype == torch.bool or tensor(attn_mask).is_floating_point()):
        raise UnsupportedError("its mask is neither boolean nor added")
    fields = {"probability": dropout_p, "causal": is_causal, "scale": scale, "grouped": enable_gqa}
    return Step("attention", (query, key, value, *([] if attn_mask is None else [attn_mask])), fields)


def _batched(input: fx.Node, count: int) -> None:
    if rank(input) != count + 2:
        raise UnsupportedError("its input has no batch dimension")


def _max_pool(count):
    def read(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        if return_indices:
            raise UnsupportedError("it returns indices")
        _batched(input, count)
        sizes = {"kernel_size": kernel_size, "stride": stride or kernel_size, "padding": padding, "dilation": dilation}
        fields = {name: expand(value, count) for name, value in sizes.items()}
        return Step("max_pool", (input,), fields | {"ceil_mode": ceil_mode})

    return read


step_reader(F.max_pool1d, torch.max_pool1d)(_max_pool(1))
step_reader(F.max_pool2d, torch.max_pool2d)(_max_pool(2))
step_reader(F.max_pool3d, torch.max_pool3d)(_max_pool(3))


def _avg_pool(count):
    def read(
        input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    ):
        _batched(input, count)
        sizes = {"kernel_size": kernel_size, "stride": stride or kernel_size, "padding": padding}
        fields = {name: expand(value, count) for name, value in sizes.items()} | {"ceil_mode": ceil_mode}
        return Step(
            "avg_pool", (input,),
            fields | {"count_include_pad": count_include_pad, "divisor_override": divisor_override},
        )  # fmt: skip

    return read


step_reader(F.avg_pool1d, torch.avg_pool1d)(_avg_pool(1))
step_reader(F.avg_pool2d, torch._C._nn.avg_pool2d)(_avg_pool(2))
step_reader(F.avg_pool3d, torch._C._nn.avg_pool3d)(_avg_pool(3))


def _adaptive_avg_pool(count):
    def read(input, output_size):
        _batched(input, count)
        sizes = expand(output_size, count)
        sizes = [static_size(input, i + 2) if size is None else size for i, size in enumerate(sizes)]
        return Step("adaptive_avg_pool", (input,), {"output_size": sizes})

    return read


step_reader(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)(_adaptive_avg_pool(1))
step_reader(F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)(_adaptive_avg_pool(2))
step_reader(F.adaptive_avg_pool3d, torch._C._nn.adaptive_avg_pool3d)(_adaptive_avg_pool(3))

UPSAMPLES = {"nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear"}


@step_reader(F.interpolate)
def interpolate(
    input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
):  # fmt: skip
    if mode not in UPSAMPLES or antialias or recompute_scale_factor:
        raise UnsupportedError("upsampling of this mode is no step")
    count = rank(input) - 2
    if size is not None:
        size = list(size) if isinstance(size, (list, tuple)) else [size] * count
    factors = None if scale_factor is None else [float(factor) for factor in expand(scale_factor, count)]
    fields = {"mode": mode, "size": size, "scale_factors": factors, "align_corners": bool(align_corners)}
    return Step("upsample", (input,), fields)


@step_reader(F.dropout)
def dropout(input, p=0.5, training=True, inplace=False):
    if not isinstance(p, (int, float)) or not isinstance(training, bool):
        raise UnsupportedError("its probability is computed")
    if not training or p == 0:
        return Step("identity", (input,))
    if p >= 1:
        raise UnsupportedError("it drops everything")
    return Step("dropout", (input,), {"probability": p}, in_place=bool(inplace))


@step_reader(torch.dropout)
def torch_dropout(input, p, train):
    return dropout(input, p, train)


@step_reader(torch.dropout_)
def torch_dropout_(input, p, train):
    return dropout(input, p, train, True)


@step_reader(torch.mean, methods=("mean",))
def mean(input, dim=None, keepdim=False, *, dtype=None):
    if dim is None or dtype is not None:
        raise UnsupportedError("it is a mean over everything, or in another dtype")
    dimensions = [dim] if isinstance(dim, int) else list(dim)
    if not all(isinstance(dimension, int) for dimension in dimensions) or not dimensions:
        raise UnsupportedError("its dimensions are computed")
    fields = {"dimensions": [dimension_of(input, dimension) for dimension in dimensions], "keepdim": bool(keepdim)}
    return Step("mean", (input,), fields)
