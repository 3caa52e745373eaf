"""`nn.SyncBatchNorm` in captured graphs.

What it runs over a process group is a Python function of autograd with collectives in it, which TorchDynamo cannot
capture: it would cut the graph at each of these norms. While a graph is captured, the layer calls the library's op
instead, which is one node, and a step of programs. As captured it is exact; outside of programs lowering says how its
input is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_of_torch = nn.SyncBatchNorm.forward


@contextmanager
def synchronized_norms() -> Iterator[None]:
    """Around a capture: norms over a process group are calls of `torch.ops.actnn.sync_batch_norm` in its graph."""
    nn.SyncBatchNorm.forward = _forward
    try:
        yield
    finally:
        nn.SyncBatchNorm.forward = _of_torch


def _forward(self: nn.SyncBatchNorm, input: Tensor) -> Tensor:
    if not (self.training and torch.distributed.is_available() and torch.distributed.is_initialized()):
        return _of_torch(self, input)
    group = torch.distributed.group.WORLD
    if self.process_group:
        group = self.process_group
    counts = self.track_running_stats
    if counts and self.momentum is None:
        return _of_torch(self, input)
    self._check_input_dim(input)
    self._check_non_zero_input_channels(input)
    if counts:
        self.num_batches_tracked.add_(1)
    statistics = (self.running_mean, self.running_var) if counts else (None, None)
    momentum = self.momentum if counts else 0.0
    if torch.distributed.get_world_size(group) < 2:
        return F.batch_norm(input, *statistics, self.weight, self.bias, True, momentum, self.eps)
    return torch.ops.actnn.sync_batch_norm(
        input, self.weight, self.bias, *statistics, True, momentum, self.eps, group.group_name, compress=False
    )


def compressed_norm(quantization: dict[str, Any], *args: Any, **exact: Any) -> Tensor:
    """What `_forward` calls, with a compressed copy of its input."""
    return torch.ops.actnn.sync_batch_norm(*args, **quantization)


def group_of_all() -> tuple[str, int] | None:
    """The name and the size of the default process group; None if there is none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    group = torch.distributed.group.WORLD
    return group.group_name, group.size()
