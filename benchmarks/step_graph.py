"""A training step as a CUDA graph: captured once, then launched as a whole. A small network is bound by the host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

WARM_UP = 4  # calls before the capture; the optimizer's state and the libraries' workspaces must be there


@contextmanager
def side_stream() -> Iterator[None]:
    """What is launched inside comes between what was launched before and what is launched afterwards."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """(what replays a call of the function, the tensor that every replay writes its result to); calls nothing yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


Batch = TypeVar("Batch", bound=tuple)  # a named one, of tensors


class ReplayedStep(Generic[Batch]):
    """Calls of a function of a batch: the first ones as they are, the others as replays of a graph.

    The function may change tensors in place, such as parameters and running statistics. Whatever it reads must be in
    tensors that stay where they are: a number of the host's would be what it was at the capture.
    """

    def __init__(self, function: Callable[[Batch], Tensor]) -> None:
        self.function = function
        self.calls = 0
        self.batch: Batch | None = None
        self.replay: Callable[[], None] | None = None
        self.result: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        self._take(batch)
        self.calls += 1
        if self.calls <= WARM_UP:
            with side_stream():
                return self.function(self.batch)
        if self.replay is None:
            self.replay, self.result = capture(lambda: self.function(self.batch))
        self.replay()
        return self.result.clone()

    def _take(self, batch: Batch) -> None:
        if self.batch is None:
            self.batch = batch._make(tensor.clone() for tensor in batch)
        for own, tensor in zip(self.batch, batch, strict=True):
            own.copy_(tensor)
