"""Blocks: parts of a model's forward that the library runs as one node of autograd.

`tracing` reads a module's forward as a graph, `steps` says which of its nodes the library's executor can compute,
`cutting` which of those go together, `plan` puts calls of blocks in their place, and `running` is the forward that a
module with blocks has. `find_forwards` does it for a model.
"""

from collections.abc import Iterator

from torch import nn

from .. import layers as q
from ..conf import Config
from .bits import bits_of_steps
from .fitting import BlockFit, fit_blocks
from .norm_act import CONFIG, is_norm_with_more
from .running import BlockForward, BlockOptions, why_not

__all__ = [
    "CONFIG",
    "BlockFit",
    "BlockForward",
    "BlockOptions",
    "bits_of_steps",
    "find_forwards",
    "fit_blocks",
    "is_norm",
    "is_norm_with_more",
    "why_not",
]

_NORMS = (q.QBatchNorm1d, q.QBatchNorm2d, q.QBatchNorm3d, q.QSyncBatchNorm)
COLLECTIONS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_norm(module: nn.Module) -> bool:
    """Whether blocks may have this batch norm."""
    return isinstance(module, _NORMS) or CONFIG in vars(module)


def find_forwards(
    path: str, module: nn.Module, config: Config, options: BlockOptions, seen: set[nn.Module]
) -> Iterator[tuple[str, nn.Module, BlockForward]]:
    """The modules at and below `path` whose own forward calls batch norms, with the forward that each could have.

    A container that such a forward looks through is not among them, and neither is what is in `seen`.
    """
    if module in seen:
        return
    seen.add(module)
    containers: list[nn.Module] = []
    if _calls_norms(module) and type(module).forward is not nn.Module.forward and "forward" not in vars(module):
        forward = BlockForward(module, config, options)
        containers = forward.plan().containers
        yield path, module, forward
    yield from _below(path, module, containers, config, options, seen)


def _below(path, module, containers, config, options, seen) -> Iterator[tuple[str, nn.Module, BlockForward]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if child in containers:
            seen.add(child)
            yield from _below(child_path, child, containers, config, options, seen)
        else:
            yield from find_forwards(child_path, child, config, options, seen)


def _calls_norms(module: nn.Module) -> bool:
    return any(
        is_norm(child) or (isinstance(child, COLLECTIONS) and _calls_norms(child)) for child in module.children()
    )
