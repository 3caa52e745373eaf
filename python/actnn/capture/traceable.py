"""What TorchDynamo cuts a graph at, and common forwards have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def plain_isinstance() -> Iterator[None]:
    """Around a capture: `torch.jit.isinstance`, which checks types for scripts, is Python's own, as it is for plain
    types."""
    of_torch = torch.jit.isinstance
    torch.jit.isinstance = _isinstance
    try:
        yield
    finally:
        torch.jit.isinstance = of_torch


def _isinstance(obj: Any, target_type: Any) -> bool:
    return isinstance(obj, target_type)


def said_once() -> set[Callable]:
    """Methods that libraries give to loggers, and that say a thing once in a process, such as `warning_once`: not while
    a graph is captured."""
    return {method for name, method in vars(logging.Logger).items() if name.endswith("_once") and callable(method)}
