"""The range of each group."""

import torch
from torch import Tensor

from .. import _checks


def minimax(data: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest element of each row of `data`, [groups, group_size] of float32, float16 or bfloat16.

    Returns two tensors [groups] with the dtype and device of `data`. A row with a NaN gives NaN. Raises TypeError or
    ValueError for another dtype or shape, or for rows without elements.
    """
    _checks.tensor("minimax", "data", data, _checks.FLOATING, 2)
    if data.shape[1] == 0:
        raise ValueError(f"minimax: data must have at least one element per group, got {_checks.describe(data)}")
    with torch.no_grad():
        smallest, largest = torch.aminmax(data, dim=1)
    return smallest, largest
