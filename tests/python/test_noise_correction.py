"""Predictions of the gradient's noise are corrected by measurements."""

from collections.abc import Callable

import actnn
import pytest
import torch
from torch import nn


def linear_model() -> tuple[nn.Module, actnn.Config, Callable[[], None]]:
    config = actnn.Config(perlayer=False)
    model = nn.Linear(256, 16, bias=False)
    actnn.convert(model, config)
    x, target = torch.randn(64, 256), torch.randn(64, 16)

    def backward():
        (model(x) - target).square().mean().backward()

    return model, config, backward


def test_the_corrected_prediction_is_what_was_measured():
    model, config, backward = linear_model()
    measured = actnn.measure_gradient_noise(model, backward, draws=4, correct=config)
    assert measured > 0
    # The gradient's norm, over which the prediction is, is that of one draw: here the noise is a part of it.
    assert actnn.predicted_gradient_noise(config) == pytest.approx(measured, rel=0.2)


def test_draws_with_different_bits_count_with_the_prediction_of_each():
    model, config, backward = linear_model()
    bits = iter((1.0, 8.0))

    def changing():
        model.scheme.bits = next(bits)
        backward()

    actnn.measure_gradient_noise(model, changing, draws=2, correct=config)
    # The draw of 8 bits has hardly any noise: over its prediction alone, the factor would be tens of thousands.
    assert 0.1 < config.policy.noise_correction() < 10
