"""What benchmarks of whole training steps train: the convolutional networks and the transformers, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from networks import NETWORKS
from steps import Images, Workload
from transformer_workloads import TRANSFORMERS


@dataclass(frozen=True)
class Known:
    title: str
    batches: tuple[int, ...]
    """Of the comparison."""
    make: Callable[[bool, int], Workload]
    """Of whether tiny sizes will do, and the samples of a step."""
    multiple: int
    """That the largest batch is to be one of."""


def _images(network: str, smoke: bool, batch: int) -> Images:
    known = NETWORKS[network]
    if smoke:
        return Images(known.title, known.make_tiny, batch, pixels=32, classes=10)
    return Images(known.title, known.make, batch)


WORKLOADS = {
    **{name: Known(network.title, network.batches, partial(_images, name), 8) for name, network in NETWORKS.items()},
    **{name: Known(model.title, (model.batch,), model.make, model.multiple) for name, model in TRANSFORMERS.items()},
}
