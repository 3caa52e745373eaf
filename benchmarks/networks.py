"""Convolutional networks for images of 1000 classes, with the modules' names and places of torchvision's.

| network | paper |
|---|---|
| ResNet-50, ResNet-152 | He et al. 2015, arXiv:1512.03385; the stride is in the 3x3 convolution, as everybody has it |
| WideResNet-101-2 | Zagoruyko and Komodakis 2016, arXiv:1605.07146: twice the channels inside of each bottleneck |
| DenseNet-201 | Huang et al. 2016, arXiv:1608.06993 |
| MobileNetV2 | Sandler et al. 2018, arXiv:1801.04381 |
| EfficientNet-B0 | Tan and Le 2019, arXiv:1905.11946 |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from models import ResNet
from torch import Tensor, nn

# --- parts ------------------------------------------------------------------------------------------------------------


class Conv2dNormActivation(nn.Sequential):
    """A convolution that keeps the size (over its stride), normalized; with an activation, if there is one."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[..., nn.Module] | None = nn.ReLU6,
    ):
        padding = (kernel_size - 1) // 2
        convolution = nn.Conv2d(channels_in, channels_out, kernel_size, stride, padding, groups=groups, bias=False)
        layers = [convolution, nn.BatchNorm2d(channels_out)]
        super().__init__(*layers, *([activation(inplace=True)] if activation else []))


def divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of a divisor, unless that is less than 90 % of what was asked for."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


# --- DenseNet ---------------------------------------------------------------------------------------------------------


class DenseLayer(nn.Module):
    """New channels from all those before: norm, ReLU, 1x1 to `bottleneck` times as many, norm, ReLU, 3x3."""

    def __init__(self, channels_in: int, growth: int, bottleneck: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels_in, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        features = [x] if isinstance(x, Tensor) else x
        out = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(out)))


class DenseBlock(nn.ModuleDict):
    """Layers that each see the outputs of all those before."""

    def __init__(self, layers: int, channels_in: int, growth: int, bottleneck: int):
        made = (DenseLayer(channels_in + i * growth, growth, bottleneck) for i in range(layers))
        super().__init__({f"denselayer{i + 1}": layer for i, layer in enumerate(made)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features = [*features, layer(features)]  # a new list: one that a checkpoint holds must stay what it is
        return torch.cat(features, 1)


class Transition(nn.Sequential):
    """Between two dense blocks: half the channels, a quarter of the pixels."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.pool = nn.AvgPool2d(2)


class DenseNet(nn.Module):
    """The defaults are DenseNet-201's."""

    def __init__(self, blocks: Sequence[int] = (6, 12, 48, 32), growth: int = 32, width: int = 64, classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential()
        self.features.conv0 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.features.norm0 = nn.BatchNorm2d(width)
        self.features.relu0 = nn.ReLU(inplace=True)
        self.features.pool0 = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for i, layers in enumerate(blocks, 1):
            self.features.add_module(f"denseblock{i}", DenseBlock(layers, channels, growth, bottleneck=4))
            channels += layers * growth
            if i < len(blocks):
                self.features.add_module(f"transition{i}", Transition(channels, channels // 2))
                channels //= 2
        self.features.norm5 = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.features(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))


# --- MobileNetV2 ------------------------------------------------------------------------------------------------------


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 of each channel alone, 1x1 to fewer; added to the input where the shape allows."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels_in * expansion
        layers = [Conv2dNormActivation(channels_in, hidden, 1)] if expansion != 1 else []
        layers.append(Conv2dNormActivation(hidden, hidden, stride=stride, groups=hidden))
        layers += [nn.Conv2d(hidden, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


# The paper's table 2: expansion, channels, how many blocks, the stride of the first.
MOBILE_STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV2(nn.Module):
    def __init__(self, width: float = 1.0, stages: Sequence[tuple[int, ...]] = MOBILE_STAGES, classes: int = 1000):
        super().__init__()
        channels, last = divisible(32 * width), divisible(1280 * max(1.0, width))
        layers: list[nn.Module] = [Conv2dNormActivation(3, channels, stride=2)]
        for expansion, channels_out, count, stride in stages:
            for block in range(count):
                channels_in, channels = channels, divisible(channels_out * width)
                layers.append(InvertedResidual(channels_in, channels, stride if block == 0 else 1, expansion))
        self.features = nn.Sequential(*layers, Conv2dNormActivation(channels, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


# --- EfficientNet -----------------------------------------------------------------------------------------------------


class SqueezeExcitation(nn.Module):
    """Scales each channel by what two layers make of the channels' means (Hu et al. 2017, arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU(inplace=True)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class StochasticDepth(nn.Module):
    """In training, leaves images out with probability p and scales the others (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.p).div_(1 - self.p)


class MBConv(nn.Module):
    """An inverted residual with squeeze and excitation."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int, kernel_size: int, drop: float):
        super().__init__()
        hidden, activation = channels_in * expansion, nn.SiLU
        layers = [Conv2dNormActivation(channels_in, hidden, 1, activation=activation)] if expansion != 1 else []
        layers.append(Conv2dNormActivation(hidden, hidden, kernel_size, stride, hidden, activation))
        layers.append(SqueezeExcitation(hidden, max(1, channels_in // 4)))
        layers.append(Conv2dNormActivation(hidden, channels_out, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = StochasticDepth(drop)
        self.use_res_connect = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.use_res_connect:
            result = self.stochastic_depth(result)
            result += x
        return result


# The paper's table 1: expansion, channels, how many blocks, the stride of the first, the kernel's size.
EFFICIENT_STAGES = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)


class EfficientNet(nn.Module):
    """The defaults are EfficientNet-B0's."""

    def __init__(self, stages: Sequence[tuple[int, ...]] = EFFICIENT_STAGES, width: int = 32, classes: int = 1000):
        super().__init__()
        features: list[nn.Module] = [Conv2dNormActivation(3, width, stride=2, activation=nn.SiLU)]
        channels, done, total = width, 0, sum(count for _, _, count, _, _ in stages)
        for expansion, channels_out, count, stride, kernel_size in stages:
            blocks = []
            for block in range(count):
                first, drop = stride if block == 0 else 1, 0.2 * done / total
                blocks.append(MBConv(channels, channels_out, first, expansion, kernel_size, drop))
                channels, done = channels_out, done + 1
            features.append(nn.Sequential(*blocks))
        features.append(Conv2dNormActivation(channels, 4 * channels, 1, activation=nn.SiLU))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(4 * channels, classes))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


# --- which there are --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    title: str
    batches: tuple[int, ...]
    """Of the comparison."""
    make: Callable[[], nn.Module]
    make_tiny: Callable[[], nn.Module]
    """The same parts, for 10 classes."""


NETWORKS = {
    "resnet50": Network("ResNet-50", (32, 128, 256, 512, 1024), ResNet, partial(ResNet, (1, 1), 8, 10)),
    "resnet152": Network("ResNet-152", (64,), partial(ResNet, (3, 8, 36, 3)), partial(ResNet, (2, 1), 8, 10)),
    "wide_resnet101_2": Network(
        "WideResNet-101-2",
        (64,),
        partial(ResNet, (3, 4, 23, 3), widening=2),
        partial(ResNet, (1, 1), 8, 10, widening=2),
    ),
    "densenet201": Network("DenseNet-201", (64,), DenseNet, partial(DenseNet, (2, 2), 8, 16, 10)),
    "mobilenet_v2": Network("MobileNetV2", (128,), MobileNetV2, partial(MobileNetV2, 0.5, MOBILE_STAGES[:3], 10)),
    "efficientnet_b0": Network(
        "EfficientNet-B0", (128,), EfficientNet, partial(EfficientNet, EFFICIENT_STAGES[:3], 16, 10)
    ),
}
