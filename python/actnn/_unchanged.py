"""What a measurement runs leaves no trace in the model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def unchanged(parameters: Iterable[Tensor], buffers: Iterable[Tensor]) -> Iterator[None]:
    """Puts gradients of parameters, and values of buffers, back at the end. Gradients are None at the beginning."""
    parameters, buffers = list(parameters), list(buffers)
    gradients, values = [parameter.grad for parameter in parameters], [buffer.clone() for buffer in buffers]
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
