"""Blocks in float16, whose packed copies are not those of float32 and bfloat16: gradients beside torch's."""

import copy

import actnn
import pytest
import torch
from torch import nn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(model, x, dtype=None):
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        y = model(x)
    (y.float().square().mean() * 10).backward()
    return [x.grad, *(parameter.grad for parameter in model.parameters())]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other.double()).norm() < 0.15 * other.double().norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(4, 16), lambda: nn.InstanceNorm2d(16, affine=True)],
                         ids=["group", "instance"])  # fmt: skip
def test_norms_of_samples(device, norm, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), norm(), nn.SiLU(), nn.Conv2d(16, 8, 3, padding=1)).to(device)
    x = torch.randn(4, 8, 10, 10, device=device)
    expected = gradients(copy.deepcopy(model), x)
    model = model.to(dtype)
    report = actnn.convert(model)
    found = gradients(model, x.to(dtype))
    assert len(report.blocks) == 1
    assert_alike(found[:2] + found[3:], expected[:2] + expected[3:])  # in front of a norm a bias does nothing


class Gated(nn.Module):
    """An activation of the input itself, in the input's dtype, that two products read in autocast's."""

    def __init__(self, activation):
        super().__init__()
        self.activation, self.first, self.second = activation, nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        x = self.activation(x)
        return self.first(x) * self.second(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU, nn.Tanh, nn.ReLU])
def test_activations_of_inputs_under_autocast(device, activation, dtype):
    torch.manual_seed(0)
    model = Gated(activation()).to(device)
    x = torch.randn(64, 32, device=device)
    expected = gradients(copy.deepcopy(model), x)
    report = actnn.convert(model)
    found = gradients(model, x, dtype)
    assert len(report.blocks) == 1
    assert_alike(found, expected)
