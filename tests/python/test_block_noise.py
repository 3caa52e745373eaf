"""What single values are said to add to the noise of gradients, against what they are measured to add."""

import actnn
import noise_models
import pytest
import torch
from actnn import BlockOptions, Config, measure_gradient_noise

TOTAL = 0.3
"""How far the sum may be off, of the measured noise of the whole."""
RANKS = 0.9
"""The least correlation of ranks between what is said and what is measured of single values."""


def check(model, backward, draws, passes=1):
    backward()  # captures the graph
    measurement = noise_models.estimate(model, backward, passes)
    bits = measurement.bits
    said = [value.noise for value in measurement.values(bits)]
    measured = noise_models.measured_one_by_one(model, backward, measurement, draws)
    assert measurement.noise(bits) == pytest.approx(measure_gradient_noise(model, backward, 4 * draws), rel=TOTAL)
    assert noise_models.rank_correlation(said, measured) >= RANKS


def test_a_small_residual_network():
    torch.manual_seed(0)
    model, backward = noise_models.trained(noise_models.small_resnet(), steps=20)
    actnn.convert(model, Config("L2"))
    check(model, backward, draws=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "small_resnet", "mobilenet", "mlps"])
@pytest.mark.parametrize("options", [BlockOptions(), BlockOptions(3, 3), BlockOptions(recompute=False)])
def test_networks(name, options):
    torch.manual_seed(0)
    model, backward = noise_models.trained(getattr(noise_models, name)(), steps=60)
    actnn.convert(model, Config("L2"), blocks=options)
    check(model, backward, draws=8, passes=2)
