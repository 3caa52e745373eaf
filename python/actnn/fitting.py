"""The bits of every value that blocks keep: the fewest bytes under a noise, or the least noise under a number of
bytes."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor, nn

from . import _checks
from ._unchanged import unchanged
from .capture.call import CapturedCall, call_of
from .kept_bytes import measure_kept_bytes
from .noise import measure_gradient_noise

NOISE = 0.05
"""The target where none is given: up to here no loss of accuracy shows (docs/accuracy.md)."""
PASSES = 2
"""Over which `fit_blocks` averages what it measures of single values."""
ROUNDS = 3
"""How often it corrects its prediction by a measurement of the whole."""
NEAR = 0.85
"""The part of the target from which on it is content."""


@dataclass(frozen=True)
class FittedValue:
    """What blocks keep of one value."""

    block: str
    """The name of the block, as in the report of `convert`, and a number for what its steps are."""
    value: int
    """Its number in the block's program."""
    bits: int
    """Of an element; the side of a ReLU is one of them."""
    elements: int
    noise: float
    """What it adds to the noise of the whole gradient, as predicted."""


@dataclass(frozen=True)
class BlockFit:
    """What `fit_blocks` found."""

    values: tuple[FittedValue, ...]
    noise: float
    """As measured with these bits."""
    kept_bytes: int
    """What the blocks kept for backward, of the batch that was measured."""

    @property
    def predicted_noise(self) -> float:
        """The sum over values, which was measured one by one."""
        return sum(value.noise for value in self.values)

    @property
    def mean_bits(self) -> float:
        """Of an element."""
        elements = sum(value.elements for value in self.values)
        return sum(value.bits * value.elements for value in self.values) / elements


def fit_blocks(
    model: nn.Module,
    backward: Callable[[], object],
    noise: float | None = None,
    draws: int = 8,
    memory: int | None = None,
) -> BlockFit:
    """Gives each value that the blocks of a converted model keep the bits with which they keep the fewest bytes whose
    gradient noise is under `noise`, or have the least noise with at most `memory` bytes.

    What each value adds to the noise, variance over squared norm, is measured at the model's present state, which
    should be a trained one: at random initialization gradients say nothing. With the bits that follow the noise of the
    whole is measured (`measure_gradient_noise`), and the bits are corrected if it is another; what layers outside of
    blocks add counts there. If nothing reaches the target, the bits closest to it stay, with a warning. Gradients and
    buffers are as before.

    Args:
        model: converted, with blocks.
        backward: computes the loss of one and the same batch and calls its backward.
        noise: the target, above 0; None, without `memory`: 0.05.
        draws: backwards for each measurement of the whole, two or more.
        memory: bytes that the blocks may keep for backward, of this batch, instead of a noise.

    Raises ValueError for a model without blocks, targets that are not above 0, and two of them; TypeError for other
    types.
    """
    noise = target_of("fit_blocks", noise, memory)
    calls = calls_of("fit_blocks", model)
    before = [call.settings.bits.of_blocks for call in calls]
    try:
        with _uncompiled(calls):
            measured = Measurement(calls)
            for _ in range(PASSES):
                _measure(measured, model, backward)
            fit = _Fit(model, backward, draws, calls, measured)
            return fit.under_bytes(memory) if noise is None else fit.under_noise(noise)
    except BaseException:
        for call, bits in zip(calls, before, strict=True):
            call.use_bits(bits)
        raise


def calls_of(where: str, model: nn.Module) -> list[CapturedCall]:
    """Of the converted models in a model. Raises ValueError if there are none, TypeError for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: model must be a torch.nn.Module, got {_checks.describe(model)}")
    calls = [call for module in model.modules() if (call := call_of(module)) is not None]
    if not calls:
        raise ValueError(f"{where}: model has no blocks; convert makes them, and its report says why it made none")
    return calls


def target_of(where: str, noise: float | None, memory: int | None) -> float | None:
    """The noise that is asked for; None if bytes are."""
    if noise is not None and memory is not None:
        raise ValueError(f"{where}: noise or memory must be given, not both, got noise {noise!r} and memory {memory!r}")
    if memory is not None:
        _checks.integer(where, "memory", memory, 1)
        return None
    noise = NOISE if noise is None else noise
    if not isinstance(noise, Real) or isinstance(noise, bool):
        raise TypeError(f"{where}: noise must be a number, got {_checks.describe(noise)}")
    if not noise > 0:
        raise ValueError(f"{where}: noise must be above 0, got {noise}")
    return noise


class Measurement:
    """What the values of models' blocks add to the noise, and the bits that follow."""

    def __init__(self, calls: list[CapturedCall]) -> None:
        self.calls = calls
        self._noise = torch.classes.actnn.BlockNoise()

    def start(self) -> bool:
        """Begins: the next forwards and backwards are measured. False if something else is measured just now."""
        return self._noise.start([call.settings.bits.prefix for call in self.calls])

    def finish(self, parameters: Iterator[Tensor]) -> bool:
        """Ends with the gradients of now. False if nothing was measured, or something not finite."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return self._noise.finish([g.to_dense() if g.is_sparse else g for g in gradients])

    def cancel(self) -> None:
        self._noise.cancel()

    @property
    def bits(self) -> list[int]:
        """Of each value, as it is measured."""
        return [bits for _, _, bits, *_ in self._noise.values()]

    def bits_for(self, noise: float | None, memory: int | None) -> list[int]:
        """Of each value: for a noise, or for bytes."""
        return self._noise.bits_for_bytes(memory) if noise is None else self._noise.bits_for_noise(noise)

    def kept_bytes(self, bits: list[int]) -> int:
        """As the blocks count them: what two of them keep together counts for both."""
        return self._noise.kept_bytes(bits)

    def noise(self, bits: list[int]) -> float:
        return self._noise.noise(bits)

    def values(self, bits: list[int]) -> tuple[FittedValue, ...]:
        """With these bits."""
        values, least, found = self._noise.values(), [8] * len(bits), []
        for i, (block, value, _, _, _, elements, _) in enumerate(values):
            # All others at 8 bits on both sides of the difference.
            alone = self._noise.noise([*least[:i], bits[i], *least[i + 1 :]]) - self._noise.noise(least)
            found.append(FittedValue(block.partition("/")[2], value, bits[i], elements, alone))
        return tuple(found)

    def use(self, bits: list[int]) -> None:
        """The blocks have these bits from the next forward on."""
        of_calls: dict[str, dict[str, dict[int, int]]] = {call.settings.bits.prefix: {} for call in self.calls}
        for (block, value, *_), its in zip(self._noise.values(), bits, strict=True):
            prefix, _, name = block.partition("/")
            of_calls[f"{prefix}/"].setdefault(name, {})[value] = its
        for call in self.calls:
            call.use_bits(call.settings.bits.of_blocks | of_calls[call.settings.bits.prefix])


def _measure(measured: Measurement, model: nn.Module, backward: Callable[[], object]) -> None:
    with unchanged(model.parameters(), model.buffers()):
        if not measured.start():
            raise RuntimeError("fit_blocks: something else is measured just now")
        try:
            backward()
            found = measured.finish(model.parameters())
        finally:
            measured.cancel()
    if not found:
        raise ValueError(
            "fit_blocks: nothing in the model's graph became a block, or backward gave no finite gradients; the report "
            "of convert says why there are no blocks"
        )


class _Fit:
    def __init__(
        self,
        model: nn.Module,
        backward: Callable[[], object],
        draws: int,
        calls: list[CapturedCall],
        measured: Measurement,
    ) -> None:
        self.model, self.backward, self.draws = model, backward, draws
        self.calls, self.measured = calls, measured

    def under_noise(self, target: float) -> BlockFit:
        aim, best = target, None
        for _ in range(ROUNDS):
            fit = self._with(self.measured.bits_for(aim, None))
            if best is None or _rank(fit, target) < _rank(best, target):
                best = fit
            if NEAR * target <= fit.noise <= target:
                break
            aim *= target / fit.noise * (0.97 if fit.noise > target else 1.0)
        self._use(best)
        if best.noise > target:
            warnings.warn(
                f"fit_blocks: the noise is {best.noise:.3g} even with {best.mean_bits:.2g} bits, above {target:g}",
                stacklevel=3,
            )
        return best

    def under_bytes(self, memory: int) -> BlockFit:
        measured = self.measured
        twice = measured.kept_bytes(measured.bits) - self._kept_bytes()
        fit = self._with(measured.bits_for(None, memory + twice))
        if fit.kept_bytes > memory:
            fit = self._with(measured.bits_for(None, memory + twice - (fit.kept_bytes - memory)))
        if fit.kept_bytes > memory:
            warnings.warn(
                f"fit_blocks: the blocks keep {fit.kept_bytes:,} bytes even with {fit.mean_bits:.2g} bits, above "
                f"{memory:,}",
                stacklevel=3,
            )
        return fit

    def _with(self, bits: list[int]) -> BlockFit:
        self.measured.use(bits)
        noise = measure_gradient_noise(self.model, self.backward, self.draws)
        return BlockFit(self.measured.values(bits), noise, self._kept_bytes())

    def _use(self, fit: BlockFit) -> None:
        self.measured.use([value.bits for value in fit.values])

    def _kept_bytes(self) -> int:
        return sum(measure_kept_bytes(self.model, self.backward).blocks.values())


def _rank(fit: BlockFit, target: float) -> tuple[bool, float]:
    """The smaller the better: first the noise, as long as it is above the target, then the bytes."""
    return (True, fit.noise) if fit.noise > target else (False, fit.kept_bytes)


@contextmanager
def _uncompiled(calls: list[CapturedCall]) -> Iterator[None]:
    """What a compiler has compiled is not measured: meanwhile the graphs run without."""
    compiled = [(call, call.settings) for call in calls if call.settings.compile is not None]
    for call, settings in compiled:
        call.use(replace(settings, compile=None))
    try:
        yield
    finally:
        for call, settings in compiled:
            call.use(settings)
