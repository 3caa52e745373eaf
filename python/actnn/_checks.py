"""Argument checks that modules share: sentences with the argument, what it must be, and what it was."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16)
ROUNDINGS = ("dithered", "stochastic", "nearest")
INTEGER = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{type(value).__name__} {value!r}"
    return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)} on {value.device}"


def tensor(where: str, name: str, value: Any, dtypes: Sequence[torch.dtype], dim: int | None = None) -> Tensor:
    """`value` if it is a strided tensor with one of the dtypes and `dim` dimensions."""
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(value, Tensor) or value.dtype not in dtypes or value.layout != torch.strided:
        raise TypeError(f"{where}: {name} must be a strided tensor of {wanted}, got {describe(value)}")
    if dim is not None and value.dim() != dim:
        raise ValueError(f"{where}: {name} must have {dim} dimensions, got {describe(value)}")
    return value


def shape(where: str, name: str, value: Any, expected: Sequence[int], device: torch.device) -> None:
    """Raises ValueError unless `value` is a tensor of this shape on this device."""
    if not isinstance(value, Tensor) or list(value.shape) != list(expected) or value.device != device:
        raise ValueError(f"{where}: {name} must have shape {list(expected)} on {device}, got {describe(value)}")


def integer(where: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int if it is an integer in low..high."""
    wanted = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
    if not is_integer(value):
        raise TypeError(f"{where}: {name} must be {wanted}, got {describe(value)}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{where}: {name} must be {wanted}, got {int(value)}")
    return int(value)


def rounding(where: str, value: Any) -> str:
    """`value` if it is one of the `ROUNDINGS`."""
    if value not in ROUNDINGS:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f'{where}: rounding must be "dithered", "stochastic" or "nearest", got {describe(value)}')
    return value


def switch(where: str, name: str, value: Any) -> bool:
    """`value` as a bool if it is True, False, 1 or 0."""
    if not isinstance(value, Integral) or value not in (0, 1):
        raise TypeError(f"{where}: {name} must be a bool, got {describe(value)}")
    return bool(value)
