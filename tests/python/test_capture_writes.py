"""Values that a forward overwrites between its blocks, and what a forward does with numbers."""

import pytest
import torch
from captured_models import check_same, pair
from torch import nn


class Written(nn.Module):
    """One block makes a value, and others read it before and after somebody overwrites it."""

    def __init__(self, write, reads_before):
        super().__init__()
        self.write, self.reads_before = write, reads_before
        self.made = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        )
        self.before = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.behind = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x):
        value = self.made(x)
        first = self.before(value).detach().mean() if self.reads_before else 0.0
        self.write(value)
        return self.behind(value) + first


@pytest.mark.parametrize("reads_before", [False, True])
@pytest.mark.parametrize("write", [
    lambda v: v.clamp_(min=0.3), lambda v: v.__setitem__((slice(None), slice(4)), 0.5), lambda v: v.relu_(),
    lambda v: torch.nn.functional.relu(v, inplace=True), lambda v: v[:, 2:].mul_(0.1), lambda v: v.mul_(2).add_(1),
])  # fmt: skip
def test_a_copy_is_of_the_value_that_is_read(write, reads_before):
    torch.manual_seed(0)
    exact, converted, report = pair(lambda: Written(write, reads_before))
    check_same(exact, converted, torch.randn(8, 3, 12, 12), tolerance=0.2)
    assert report.blocks


@pytest.mark.parametrize("end", [
    lambda y: y.sum().squeeze(-1), lambda y: y.sum().mean(0), lambda y: y.mean().unsqueeze(0)])  # fmt: skip
def test_values_without_dimensions_leave_the_rest_in_blocks(end):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))

        def forward(self, x):
            return end(self.layers(x).square())

    exact, converted, report = pair(Model)
    check_same(exact, converted, torch.randn(4, 3, 10, 10))
    assert report.blocks


def test_a_view_of_a_function_that_was_written_out_is_written_to():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
            self.weight = nn.Parameter(torch.rand(8))

        def forward(self, x):
            h = self.a(x)
            normalized = self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))
            view = normalized[:, 1:].detach()
            y = self.c(nn.functional.gelu(self.b(x) + normalized))
            view[:] = 5.0
            return nn.functional.gelu(y) + normalized.mean()

    exact, converted, _ = pair(Model)
    check_same(exact, converted, torch.randn(16, 6, 8))
