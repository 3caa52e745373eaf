"""Small networks at a trained state, and what single values of their blocks add to the noise of gradients, measured one
by one: what estimates are compared to."""

import torch
from actnn import measure_gradient_noise
from actnn.capture.call import call_of
from actnn.fitting import Measurement
from block_models import BasicBlock, InvertedResidual, MBConv, conv
from torch import nn


def resnet20(width=16):
    """That of He et al. for 32 x 32 pictures."""
    layers, inputs = [conv(3, width), nn.BatchNorm2d(width), nn.ReLU()], width
    for stage in range(3):
        for block in range(3):
            outputs = width << stage
            layers.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def small_resnet():
    """The pattern of ResNet-18: a stem with a pool, blocks with and without projections."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        BasicBlock(8, 8), BasicBlock(8, 16, 2), BasicBlock(16, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def mobilenet():
    """MobileNetV2's blocks, and one of EfficientNet's with SiLU."""
    return nn.Sequential(
        conv(3, 8, stride=2), nn.BatchNorm2d(8), nn.ReLU6(),
        InvertedResidual(), InvertedResidual(), InvertedResidual(8, 8, 2), MBConv(), MBConv(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


class _Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def mlps(width=32, depth=4):
    """The halves of transformer layers that have a smooth activation: noise of a derivative reaches all in front."""
    patches = nn.Conv2d(3, width, 4, 4)
    return nn.Sequential(
        patches, nn.Flatten(2), _Transposed(), *(_Mlp(width) for _ in range(depth)), nn.LayerNorm(width), _Mean(),
        nn.Linear(width, 10),
    )  # fmt: skip


class _Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class _Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def trained(model, steps=30, batch=32, rate=0.05):
    """The model after some exact steps on noisy pictures of ten classes, and what computes a batch's gradient."""
    torch.manual_seed(0)
    classes = torch.randn(10, 3, 8, 8)
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)

    def draw():
        labels = torch.randint(10, (batch,), generator=generator)
        pictures = nn.functional.interpolate(classes[labels], (32, 32))
        return pictures + 1.5 * torch.randn(pictures.shape, generator=generator), labels

    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    for _ in range(steps):
        pictures, labels = draw()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pictures), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    pictures, labels = draw()

    def backward():
        nn.functional.cross_entropy(model(pictures), labels).backward()

    return model, backward


def estimate(model, backward, passes=1):
    """A `Measurement` of a converted model."""
    measurement = Measurement([call_of(model)])
    for _ in range(passes):
        model.zero_grad()
        assert measurement.start()
        backward()
        assert measurement.finish(model.parameters())
    model.zero_grad()
    return measurement


def measured_one_by_one(model, backward, measurement, draws):
    """What each value adds to the noise with its bits of now, by gradients in which it alone has so few bits."""
    bits = measurement.bits
    finest = [8] * len(bits)
    try:
        measurement.use(finest)
        rest = measure_gradient_noise(model, backward, 4 * draws)
        found = []
        for i in range(len(bits)):
            measurement.use([*finest[:i], bits[i], *finest[i + 1 :]])
            found.append(measure_gradient_noise(model, backward, draws) - rest)
    finally:
        measurement.use(bits)
    return found


def rank_correlation(a, b):
    """Spearman's."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()
