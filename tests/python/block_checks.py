"""Models with blocks beside their exact twins, for the tests of conversion."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn import convert
from block_models import conv
from configurations import eight_bits
from reference_block import ReferenceBlock
from torch import nn


@pytest.fixture
def reference_blocks(request, monkeypatch):
    """Blocks run as torch's functions, which keep everything exact, unless a test wants the library's."""
    ReferenceBlock.runs = 0
    if "library" not in request.keywords:
        monkeypatch.setattr("actnn.blocks.running.executor", ReferenceBlock)


def convert_blocks(model, config=None, **arguments):
    """Converts what is in blocks, and nothing else, so that everything stays exact."""
    config = config or eight_bits()
    found = convert(copy.deepcopy(model), config, **arguments)
    outside = [entry.path for entry in found.converted if not entry.block and entry.type != "Dropout"]
    return convert(model, config, skip=outside, **arguments)


def converted(make, *args, **arguments):
    """A model with blocks, its exact twin, and the report."""
    model = make(*args).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    exact = copy.deepcopy(model)
    return model, exact, convert_blocks(model, **arguments)


def steps(report):
    return [" ".join(block.steps) for block in report.blocks]


def outcome(model, *inputs):
    """The result, the gradients of inputs and parameters, and the buffers."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    model.zero_grad()
    result = model(*inputs)
    (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
    parameters = [p.grad for p in model.parameters()]
    return [result.detach(), *(x.grad for x in inputs), *parameters, *(b.clone() for b in model.buffers())]


def assert_same(model, exact, *inputs, blocks=None):
    ReferenceBlock.runs = 0
    found = outcome(model, *inputs)
    assert blocks is None or ReferenceBlock.runs == blocks
    for a, b in zip(found, outcome(exact, *inputs), strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


class Norms(nn.Module):
    """Two convolutions and norms, for forwards of a test's own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.conv2, self.norm2 = conv(8, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8)
        self.p, self.seen, self.last = 0.0, [], None

    def block(self, x):
        return F.relu(self.norm(self.conv(x)))


def forward_of(function):
    return type("Own", (Norms,), {"forward": function})
