"""Small models with the patterns of well-known ones, and the blocks that conversion finds in them."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


def conv(inputs, outputs, kernel=3, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


class BasicBlock(nn.Module):
    """torchvision's."""

    def __init__(self, inputs=8, outputs=8, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.bn2.weight)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """torchvision's: ResNet, wide ResNet and, with groups, ResNeXt."""

    def __init__(self, inputs=8, width=4, outputs=8, stride=1, groups=1):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride, groups), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(), Bottleneck(8, 4, 16, 2, groups=2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self._forward_impl(x)

    def _forward_impl(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ConvNormActivation(nn.Sequential):
    """torchvision's, a container."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, groups=1, activation=nn.ReLU6):
        layers = [conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([activation(inplace=True)] if activation else []))


class InvertedResidual(nn.Module):
    """MobileNetV2's."""

    def __init__(self, inputs=8, outputs=8, stride=1):
        super().__init__()
        self.use_res_connect = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            ConvNormActivation(inputs, 16, 1),
            ConvNormActivation(16, 16, 3, stride, groups=16),
            conv(16, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        else:
            return self.conv(x)


class SqueezeExcitation(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.avgpool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        return torch.sigmoid(self.fc2(torch.relu(self.fc1(self.avgpool(x))))) * x


class MBConv(nn.Module):
    """MobileNetV3's with Hardswish, EfficientNet's with SiLU and stochastic depth."""

    def __init__(self, activation=nn.SiLU, depth=None):
        super().__init__()
        self.block = nn.Sequential(
            ConvNormActivation(8, 16, 1, activation=activation),
            ConvNormActivation(16, 16, 3, groups=16, activation=activation),
            SqueezeExcitation(16),
            ConvNormActivation(16, 8, 1, activation=None),
        )
        self.stochastic_depth = depth

    def forward(self, input):
        result = self.block(input)
        if self.stochastic_depth is not None:
            result = self.stochastic_depth(result)
        result += input
        return result


class StochasticDepth(nn.Module):
    def forward(self, x):
        return x * 1.0


class RegNetBlock(nn.Module):
    """torchvision's ResBottleneckBlock with a projection and squeeze-excitation."""

    def __init__(self):
        super().__init__()
        self.proj = ConvNormActivation(8, 16, 1, 2, activation=None)
        self.f = nn.Sequential()
        self.f.a = ConvNormActivation(8, 16, 1, activation=nn.ReLU)
        self.f.b = ConvNormActivation(16, 16, 3, 2, groups=2, activation=nn.ReLU)
        self.f.se = SqueezeExcitation(16)
        self.f.c = ConvNormActivation(16, 16, 1, activation=None)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.proj(x) + self.f(x)
        return self.activation(x)


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers = []
        for inputs, outputs in ((3, 8), (8, 8)):
            layers += [conv(inputs, outputs, bias=True), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2, 2), conv(8, 16, bias=True), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2, 2))
        self.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(True), nn.Linear(8, 5))

    def forward(self, x):
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


class DenseLayer(nn.Module):
    """torchvision's _DenseLayer, which asks for the type of its argument."""

    def __init__(self, inputs, growth=4, drop_rate=0.0):
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv(inputs, 8, 1)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, growth)
        self.drop_rate = float(drop_rate)

    def bn_function(self, inputs):
        return self.conv1(self.relu1(self.norm1(torch.cat(inputs, 1))))

    def forward(self, input):
        prev_features = [input] if isinstance(input, torch.Tensor) else input
        new_features = self.conv2(self.relu2(self.norm2(self.bn_function(prev_features))))
        if self.drop_rate > 0:
            new_features = F.dropout(new_features, p=self.drop_rate, training=self.training)
        return new_features


class DenseBlock(nn.ModuleDict):
    def __init__(self):
        super().__init__()
        self.add_module("denselayer1", DenseLayer(8))
        self.add_module("denselayer2", DenseLayer(12))

    def forward(self, init_features):
        features = [init_features]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential()
        for name, module in (
            ("conv0", conv(3, 8)), ("norm0", nn.BatchNorm2d(8)), ("relu0", nn.ReLU(inplace=True)),
            ("pool0", nn.MaxPool2d(2)), ("denseblock1", DenseBlock()),
            ("transition1", nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(True), conv(16, 8, 1), nn.AvgPool2d(2))),
            ("norm5", nn.BatchNorm2d(8)),
        ):  # fmt: skip
            self.features.add_module(name, module)

    def forward(self, x):
        return F.adaptive_avg_pool2d(F.relu(self.features(x), inplace=True), 1)


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's."""

    def __init__(self, channels, activation=nn.ReLU, drop=None, momentum=0.1, affine=True, track_running_stats=True):
        super().__init__(channels, momentum=momentum, affine=affine, track_running_stats=track_running_stats)
        self.drop = drop() if drop else nn.Identity()
        self.act = activation(inplace=True) if activation else nn.Identity()

    def forward(self, x):
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        exponential_average_factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                exponential_average_factor = 1.0 / float(self.num_batches_tracked)
            else:
                exponential_average_factor = self.momentum
        bn_training = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            bn_training,
            exponential_average_factor,
            self.eps,
        )
        return self.act(self.drop(x))


class ConvNormAct(nn.Module):
    """timm's ConvNormAct and, with a shortcut, its EdgeResidual."""

    def __init__(self, activation=nn.SiLU):
        super().__init__()
        self.conv_exp, self.bn1 = conv(8, 16), BatchNormAct2d(16, activation)
        self.conv_pwl, self.bn2 = conv(16, 8, 1), BatchNormAct2d(8, None)

    def forward(self, x):
        shortcut = x
        x = self.bn1(self.conv_exp(x))
        return self.bn2(self.conv_pwl(x)) + shortcut


class TimmBottleneck(nn.Module):
    """timm's ResNet-D: optional modules that are identities or None, an average pool in the shortcut."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(4, 4, 3, 2), nn.BatchNorm2d(4)
        self.drop_block, self.act2, self.aa = nn.Identity(), nn.ReLU(inplace=True), nn.Identity()
        self.conv3, self.bn3 = conv(4, 16, 1), nn.BatchNorm2d(16)
        self.se, self.act3, self.drop_path = None, nn.ReLU(inplace=True), None
        self.downsample = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), conv(8, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x):
        shortcut = x
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act3(x)


class Functional(nn.Module):
    """A user's model: functions and methods instead of layers."""

    def __init__(self):
        super().__init__()
        self.norm0, self.conv1, self.norm1 = nn.BatchNorm2d(3), conv(3, 8), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = conv(8, 8), nn.BatchNorm2d(8)
        self.shortcut = nn.Sequential()

    def forward(self, x):
        x = F.max_pool2d(F.leaky_relu(self.norm1(self.conv1(self.norm0(x))), 0.2), 2)
        y = self.norm2(self.conv2(x)).relu_()
        return torch.add(F.silu(self.norm2(self.conv2(y))), self.shortcut(x)).relu()


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2 = nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8), conv(8, 8)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(out))) + x


class Branches(nn.Module):
    """Parallel branches, as in Inception and ShuffleNet."""

    def __init__(self):
        super().__init__()
        self.a, self.b = ConvNormActivation(8, 4, 1), ConvNormActivation(8, 8, 3)
        self.c = ConvNormActivation(8, 4, 3, activation=nn.Hardswish)

    def forward(self, x):
        first, second = self.a(x), self.c(self.b(x))
        return torch.cat([first, second], 1)


class Sequence(nn.Module):
    """Three dimensions, and two with a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding="same")
        self.norm1, self.fc, self.norm2 = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv(x.flatten(2))))
        return F.relu(self.norm2(self.fc(x.mean(2))))


IMAGE, FEATURES = (4, 3, 16, 16), (4, 8, 8, 8)
PATTERNS = {
    "BasicBlock": (BasicBlock, FEATURES, ["conv1 bn1 relu conv2 bn2 add relu"]),
    "BasicBlock with downsample": (
        lambda: BasicBlock(8, 16, 2), FEATURES, ["conv1 bn1 relu conv2 bn2 downsample.0 downsample.1 add relu"],
    ),
    "Bottleneck": (Bottleneck, FEATURES, ["conv1 bn1 relu conv2 bn2 relu conv3 bn3 add relu"]),
    "ResNet": (ResNet, IMAGE, [
        "conv1 bn1 relu maxpool",
        "layer1.0.conv1 layer1.0.bn1 layer1.0.relu layer1.0.conv2 layer1.0.bn2 add layer1.0.relu",
        "layer1.1.conv1 layer1.1.bn1 layer1.1.relu layer1.1.conv2 layer1.1.bn2 layer1.1.relu layer1.1.conv3"
        " layer1.1.bn3 layer1.1.downsample.0 layer1.1.downsample.1 add layer1.1.relu",
    ]),
    "MobileNetV2 with shortcut": (
        InvertedResidual, FEATURES, ["conv.0.0 conv.0.1 conv.0.2 conv.1.0 conv.1.1 conv.1.2 conv.2 conv.3 add"],
    ),
    "MobileNetV2": (
        lambda: InvertedResidual(8, 16, 2), FEATURES,
        ["conv.0.0 conv.0.1 conv.0.2", "conv.1.0 conv.1.1 conv.1.2", "conv.2 conv.3"],
    ),
    "MobileNetV3": (
        lambda: MBConv(nn.Hardswish), FEATURES,
        ["block.0.0 block.0.1 block.0.2", "block.1.0 block.1.1 block.1.2", "block.3.0 block.3.1 add"],
    ),
    "EfficientNet": (
        lambda: MBConv(nn.SiLU, StochasticDepth()), FEATURES,
        ["block.0.0 block.0.1 block.0.2", "block.1.0 block.1.1 block.1.2", "block.3.0 block.3.1"],
    ),
    "RegNet": (RegNetBlock, FEATURES, [
        "proj.0 proj.1", "f.a.0 f.a.1 f.a.2", "f.b.0 f.b.1 f.b.2", "f.c.0 f.c.1 add activation",
    ]),
    "VGG": (VGG, IMAGE, [
        "features.0 features.1 features.2", "features.3 features.4 features.5 features.6",
        "features.7 features.8 features.9 features.10",
    ]),
    "DenseNet": (DenseNet, IMAGE, [
        "features.conv0 features.norm0 features.relu0 features.pool0",
        "features.transition1.0 features.transition1.1 features.transition1.2",
        "features.norm5 relu",
        *[" ".join(f"features.denseblock1.denselayer{i}.{name}" for name in
                   ("norm1", "relu1", "conv1", "norm2", "relu2", "conv2")) for i in (1, 2)],
    ]),
    "timm": (TimmBottleneck, FEATURES, [
        "conv1 bn1 act1", "conv2 bn2 act2", "conv3 bn3 downsample.1 downsample.2 add act3",
    ]),
    "timm's norms": (ConvNormAct, FEATURES, ["conv_exp bn1 bn1.act conv_pwl bn2 add"]),
    "timm's norms with ReLU": (lambda: ConvNormAct(nn.ReLU), FEATURES, ["conv_exp bn1 bn1.act conv_pwl bn2 add"]),
    "functions": (Functional, IMAGE, [
        "norm0 conv1 norm1 leaky_relu max_pool", "conv2 norm2 relu conv2 norm2 silu add relu",
    ]),
    "pre-activation": (PreActivation, FEATURES, ["bn1 relu conv1 bn2 relu conv2 add"]),
    "branches": (Branches, FEATURES, ["a.0 a.1 a.2", "b.0 b.1 b.2", "c.0 c.1 c.2"]),
    "one dimension": (Sequence, FEATURES, ["conv norm1 relu", "norm2 relu"]),
}  # fmt: skip
"""Name: (model, shape of an input, steps of its blocks)."""
