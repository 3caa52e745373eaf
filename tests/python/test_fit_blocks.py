"""The plan of blocks under a noise target."""

import actnn
import pytest
import torch
from actnn import BlockOptions, Config, fit_blocks, measure_gradient_noise
from actnn.capture.call import call_of
from block_models import BasicBlock
from torch import nn


def trained():
    """A small network after some exact steps, and what computes its gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), BasicBlock(8, 8), nn.Flatten())
    model.append(nn.Linear(8 * 64, 4))
    images, labels = torch.randn(32, 3, 8, 8), torch.randint(4, (32,))

    def backward():
        nn.functional.cross_entropy(model(images), labels).backward()

    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(10):
        optimizer.zero_grad()
        backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, backward


def test_the_noise_is_under_the_target_with_fewest_bytes():
    model, backward = trained()
    actnn.convert(model, Config("L2", activation_compression_bits=[8]))
    buffers = [buffer.clone() for buffer in model.buffers()]
    coarse, fine = fit_blocks(model, backward, 0.3), fit_blocks(model, backward, 0.01)
    assert coarse.noise <= 0.3 and fine.noise <= 0.01
    assert 0 < coarse.kept_bytes < fine.kept_bytes
    assert measure_gradient_noise(model, backward, 16) < 0.02
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    actnn.restore(model)


def test_a_target_that_nothing_reaches():
    model, backward = trained()
    actnn.convert(model, Config("L2"))
    with pytest.warns(UserWarning, match="above 1e-09"):
        assert fit_blocks(model, backward, 1e-9).options == BlockOptions(8, 8)


def test_errors():
    model, backward = trained()
    with pytest.raises(ValueError, match="model has no blocks"):
        fit_blocks(model, backward)
    actnn.convert(model, Config("L2"))
    with pytest.raises(ValueError, match="noise must be above 0, got 0"):
        fit_blocks(model, backward, 0)
    with pytest.raises(TypeError, match="noise must be"):
        fit_blocks(model, backward, "0.05")
    with pytest.raises(ZeroDivisionError):
        fit_blocks(model, lambda: 1 / 0)
    assert call_of(model).settings.options == BlockOptions()
