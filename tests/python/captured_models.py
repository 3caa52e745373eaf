"""Small models for tests of the captured graph, and their comparison with the exact model."""

import copy

import actnn
import torch
from configurations import eight_bits, relative_error
from torch import nn


class Net(nn.Module):
    """Convolution, norm, activation, classifier."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def features(self, x):
        return torch.relu(self.bn(self.conv(x)))

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def mlp(layers=2):
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())))


def images(count=4):
    return torch.randn(count, 3, 8, 8)


def pair(make):
    """The exact model, its converted copy, the report."""
    exact = make()
    converted = copy.deepcopy(exact)
    return exact, converted, actnn.convert(converted, eight_bits())


def check_same(exact, converted, *inputs, tolerance=0.1):
    """Results are the same, gradients nearly."""
    wanted, got = exact(*inputs), converted(*inputs)
    assert torch.allclose(got, wanted, atol=1e-4)
    exact.zero_grad(), converted.zero_grad()
    wanted.square().sum().backward(), got.square().sum().backward()
    largest = max(p.grad.norm() for p in exact.parameters() if p.grad is not None)
    for p, q in zip(exact.parameters(), converted.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and p.grad.norm() > 0.05 * largest:
            assert relative_error(q.grad, p.grad) < tolerance
