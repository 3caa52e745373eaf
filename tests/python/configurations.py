"""Configurations for tests: the process's, put back afterwards, and ones of a test's own; small models."""

import gc

import pytest
import torch
from actnn import Config, QScheme, config
from torch import nn

DEFAULTS = {
    "compress_activation": True, "training": True, "activation_compression_bits": [2, 8, 8], "group_size": 256,
    "pergroup": True, "rounding": "dithered", "simulate": False, "enable_quantized_bn": True,
    "adaptive_conv_scheme": True, "adaptive_bn_scheme": True, "initial_bits": 8, "perlayer": True,
    "adapt_interval": 1,
    "use_gradient": False, "noise_target": None, "empty_cache_threshold": None, "pipeline_threshold": None,
    "cudnn_benchmark_conv2d": None, "swap": False, "debug_memory_model": False, "debug_speed": False,
    "debug_memory_op_forward": False, "debug_memory_op_backward": False, "debug_remove_bn": False,
    "debug_remove_relu": False,
}  # fmt: skip
"""The flags of `Config()`."""


def fixed(**flags):
    """No bits of a sample's or a layer's own."""
    return Config(**{"adaptive_conv_scheme": False, "adaptive_bn_scheme": False} | flags)


def eight_bits(**flags):
    """Fixed bits, and so few errors that gradients are compared with the exact ones."""
    return Config("L2", activation_compression_bits=[8], **flags)


@pytest.fixture
def process_config():
    """`actnn.config`, with the flags that it had, chosen or not, and its policy without a batch, afterwards."""
    gc.collect()  # schemes of models that are gone
    flags, is_chosen = config.flags(), config.is_chosen
    samples, update = QScheme.num_samples, QScheme.update_scale
    yield config
    QScheme.batch = None
    for name, value in flags.items():
        setattr(config, name, value)
    object.__setattr__(config, "is_chosen", is_chosen)
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
