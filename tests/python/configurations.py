"""Configurations for tests: the process's, put back afterwards, and ones of a test's own; small models."""

import gc

import pytest
import torch
from actnn import QScheme, config
from torch import nn


@pytest.fixture
def process_config():
    """`actnn.config`, with the flags that it had, and its policy without a batch, afterwards."""
    gc.collect()  # schemes of models that are gone
    flags = config.flags()
    samples, update = QScheme.num_samples, QScheme.update_scale
    yield config
    QScheme.batch = None
    for name, value in flags.items():
        setattr(config, name, value)
    QScheme.num_samples, QScheme.update_scale = samples, update


@pytest.fixture
def one_thread():
    """Small tensors are faster with one; on a busy machine, by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net(channels=8, classes=5):
    """Convolution, batch norm, ReLU, convolution, batch norm, ReLU, pool, linear: for inputs [N, 3, H, W]."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, classes),
    )


def gradients(model, x, seed=0):
    """The gradients of a fixed linear function of the output: of all parameters that want one, by name."""
    generator = torch.Generator().manual_seed(seed)
    y = model(x)
    (y * torch.randn(y.shape, generator=generator, device="cpu").to(y)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def relative_error(actual, wanted):
    return ((actual - wanted).norm() / wanted.norm()).item()
