"""The plan of blocks with the fewest bytes under a noise target."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real

from torch import nn

from . import _checks
from .capture.call import CapturedCall, call_of
from .capture.options import BlockOptions
from .kept_bytes import measure_kept_bytes
from .noise import measure_gradient_noise

CANDIDATES = tuple(
    BlockOptions(bits, output_bits)
    for bits, output_bits in ((3, 2), (3, 3), (3, 4), (4, 3), (4, 4), (5, 4), (5, 5), (6, 6), (8, 8))
)


@dataclass(frozen=True)
class BlockFit:
    """What `fit_blocks` found."""

    options: BlockOptions
    noise: float
    """As measured with these options."""
    kept_bytes: int
    """What the blocks kept for backward, of the batch that was measured."""


def fit_blocks(model: nn.Module, backward: Callable[[], object], noise: float = 0.05, draws: int = 8) -> BlockFit:
    """Gives all blocks of a converted model the options with the fewest bytes whose gradient noise is under `noise`.

    The noise, variance over squared norm, is measured (`measure_gradient_noise`) at the model's present state, which
    should be a trained one: at random initialization gradients say nothing. What layers outside of blocks add counts
    too. If nothing reaches the target, the finest options stay, with a warning. Gradients and buffers are as before.

    Args:
        model: converted, with blocks.
        backward: computes the loss of one and the same batch and calls its backward.
        noise: the target, above 0.
        draws: backwards for each measurement, two or more.

    Raises ValueError for a model without blocks and a target that is not above 0; TypeError for other types.
    """
    if not isinstance(noise, Real) or isinstance(noise, bool):
        raise TypeError(f"fit_blocks: noise must be a number, got {_checks.describe(noise)}")
    if not noise > 0:
        raise ValueError(f"fit_blocks: noise must be above 0, got {noise}")
    calls = [call for module in model.modules() if (call := call_of(module)) is not None]
    if not calls:
        raise ValueError("fit_blocks: model has no blocks; convert makes them, and its report says why it made none")
    before = [call.settings.options for call in calls]
    try:
        sizes = {options: _kept_bytes(model, calls, options, backward) for options in CANDIDATES}
        if not any(sizes.values()):
            raise ValueError("fit_blocks: nothing in the model's graph became a block; the report of convert says why")
        for options in sorted(CANDIDATES, key=sizes.__getitem__):
            _use(calls, [options] * len(calls))
            measured = measure_gradient_noise(model, backward, draws)
            if measured <= noise:
                return BlockFit(options, measured, sizes[options])
    except BaseException:
        _use(calls, before)
        raise
    warnings.warn(f"fit_blocks: the noise is {measured:.3g} even with {options}, above {noise:g}", stacklevel=2)
    return BlockFit(options, measured, sizes[options])


def _use(calls: list[CapturedCall], options: list[BlockOptions]) -> None:
    for call, its in zip(calls, options, strict=True):
        if its != call.settings.options:
            call.use(replace(call.settings, options=its))


def _kept_bytes(
    model: nn.Module, calls: list[CapturedCall], options: BlockOptions, backward: Callable[[], object]
) -> int:
    _use(calls, [options] * len(calls))
    return sum(measure_kept_bytes(model, backward).blocks.values())
