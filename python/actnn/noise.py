"""How much noise the compressed copies add to the gradients."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from . import _checks
from ._unchanged import unchanged
from .conf import Config
from .conf import config as default_config


def measure_gradient_noise(
    model: nn.Module | Iterable[Tensor],
    backward: Callable[[], object],
    draws: int = 2,
    correct: Config | None = None,
) -> float:
    """Variance of the gradient over draws of the noise / squared norm of the exact gradient, on one batch.

    Both are estimated without bias from the draws; the exact gradient is not computed.

    Args:
        model: a module, or parameters. A module's buffers, such as running statistics, are put back afterwards, and so
            are the gradients.
        backward: computes the loss of one and the same batch and calls its backward; it is called `draws` times. What
            else is random in it, such as dropout, counts as noise.
        draws: two or more; the standard error falls with their number.
        correct: a configuration whose predictions (`Config.noise_target`) are multiplied from now on so that their mean
            over the draws, whose bits may differ, is what was measured.

    Raises ValueError for fewer than two draws, or if no parameter gets a gradient; TypeError for arguments of other
    types.
    """
    where = "measure_gradient_noise"
    if not _checks.is_integer(draws) or draws < 2:
        kind = ValueError if _checks.is_integer(draws) else TypeError
        raise kind(f"{where}: draws must be two or more, got {draws!r}")
    if not callable(backward):
        raise TypeError(f"{where}: backward must be a function, got {_checks.describe(backward)}")
    if correct is not None:
        _check_config(where, "correct", correct)
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else model
    parameters = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    if wrong := [value for value in parameters if not isinstance(value, Tensor)]:
        raise TypeError(f"{where}: model must be a module or parameters, got {_checks.describe(wrong[0])}")
    buffers = model.buffers() if isinstance(model, nn.Module) else ()
    noise = torch.classes.actnn.GradientNoise()
    predictions = []
    with unchanged(parameters, buffers):
        for _ in range(draws):
            for parameter in parameters:
                parameter.grad = None
            backward()
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if not gradients:
                raise ValueError("measure_gradient_noise: backward must give gradients to parameters, but none has one")
            noise.add([gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients])
            if correct is not None:
                predictions.append(correct.policy.predicted_noise())
    measured = noise.noise()
    if correct is not None:
        predicted = sum(predictions) / draws
        if measured > 0 and predicted > 0:
            correct.policy.set_noise_correction(correct.policy.noise_correction() * measured / predicted)
    return measured


def predicted_gradient_noise(config: Config = default_config) -> float:
    """The noise of the last backward as its sensitivities predict it: of the weights of convolutions and linear layers.

    With an `adapt_interval`, of the last one in a step that measured. NaN without a backward through layers with
    adaptive bits. Waits for the device.
    """
    _check_config("predicted_gradient_noise", "config", config)
    return config.policy.predicted_noise()


def _check_config(where: str, name: str, value: object) -> None:
    if not isinstance(value, Config):
        raise TypeError(f"{where}: {name} must be an actnn.Config, got {_checks.describe(value)}")
