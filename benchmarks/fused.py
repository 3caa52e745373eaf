"""ResNets of bottlenecks whose normalizations run together with the activations behind them: by hand, layer for layer.

A block calls `batch_norm_act` and `add_act` in the place of batch norm, addition and ReLU. The convolutions behind them
read the packed copies that these make, and keep none of their own.
"""

from functools import partial

import models
import torch
from measure import actnn
from torch import Tensor, nn

ops = torch.ops.actnn


def normalize(norm: nn.BatchNorm2d, x: Tensor, slope: float, bits: int) -> Tensor:
    """The norm and leaky ReLU with `slope`; ReLU for 0, nothing for 1. Like torch's layer with a momentum."""
    norm.num_batches_tracked.add_(1)
    return ops.batch_norm_act(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.training,
                              norm.momentum, norm.eps, slope, bits)  # fmt: skip


def block(self: models.Bottleneck, bits: int, output_bits: int, x: Tensor) -> Tensor:
    out = normalize(self.bn1, self.conv1(x), 0.0, bits)
    out = normalize(self.bn2, self.conv2(out), 0.0, bits)
    out = normalize(self.bn3, self.conv3(out), 1.0, output_bits)
    if self.downsample is not None:
        convolution, norm = self.downsample
        x = normalize(norm, convolution(x), 1.0, output_bits)
    return ops.add_act(out, x, 0.0, output_bits)


def network(self: models.ResNet, bits: int, x: Tensor) -> Tensor:
    x = self.maxpool(normalize(self.bn1, self.conv1(x), 0.0, bits))
    for stage in range(self.stages):
        x = getattr(self, f"layer{stage + 1}")(x)
    return self.fc(self.avgpool(x).flatten(1))


def fuse(model: models.ResNet, bits: int, output_bits: int) -> models.ResNet:
    """In place. `bits`: of activations behind a norm; `output_bits`: of what is added, and of the sums."""
    actnn.convert(model, actnn.Config("L2", activation_compression_bits=[bits]), skip=(nn.BatchNorm2d, nn.ReLU))
    for module in model.modules():
        if isinstance(module, models.Bottleneck):
            module.forward = partial(block, module, bits, output_bits)
    model.forward = partial(network, model, bits)
    return model
