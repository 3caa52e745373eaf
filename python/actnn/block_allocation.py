"""Bits of blocks that follow the gradients while a model trains."""

from torch import nn

from . import _checks
from .fitting import FittedValue, Measurement, calls_of, target_of


class BlockAllocation:
    """Gives the values that blocks keep new bits every so many steps, for what they add to the noise of the gradient
    then.

        allocation = actnn.BlockAllocation(model, noise=0.05, every=1000)
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            allocation.step()
            optimizer.step()

    The first step is measured, and then every `every`-th. A step that is measured takes a few backwards of each block
    more (as many as it keeps copies), and waits for the device once, at its end; in all others nothing is computed,
    and nothing waits. Other bits are other programs: the graph stays, its programs are planned anew.

    Against `fit_blocks` the noise is predicted from single values, and not measured as a whole. It is that of the step
    which is measured: of all backwards in it, against the gradient that they leave. Where that is the mean over ranks,
    each rank counts its own noise as if it were that of all, and keeps too many bits rather than too few.

    Args:
        model: converted, with blocks, without a compiler: those graphs would be compiled anew each time.
        noise: the target, above 0; None, without `memory`: 0.05.
        every: steps.
        memory: bytes that the blocks may keep for backward, as they count them, instead of a noise.

    Raises ValueError for a model without blocks or with a compiler, targets that are not above 0, and two of them;
    TypeError for other types.
    """

    def __init__(
        self, model: nn.Module, noise: float | None = None, every: int = 1000, memory: int | None = None
    ) -> None:
        where = "BlockAllocation"
        self.noise, self.memory = target_of(where, noise, memory), memory
        self.every = _checks.integer(where, "every", every, 1)
        self.model, self.calls = model, calls_of(where, model)
        if any(call.settings.compile is not None for call in self.calls):
            raise ValueError(f"{where}: model must have no compiler; fit_blocks fits a compiled one, once")
        self.values: tuple[FittedValue, ...] = ()
        """What was found last; empty before the first time."""
        self._steps = 0
        self._measurement: Measurement | None = None
        self._begin()

    def step(self) -> bool:
        """Counts a step. To be called behind its backwards, while the gradients are what these left: before a clipping,
        and before `GradScaler.unscale_`. Returns whether the blocks have got new bits."""
        self._steps += 1
        found = self._measurement is not None and self._take_over(self._measurement)
        if (self._is_due and not found) or self._steps % self.every == 0:
            self._begin()
        return found

    def _begin(self) -> None:
        self._is_due = True
        measurement = Measurement(self.calls)
        self._measurement = measurement if measurement.start() else None

    def _take_over(self, measurement: Measurement) -> bool:
        self._measurement = None
        if not measurement.finish(self.model.parameters()):
            return False
        self._is_due = False
        bits = measurement.bits_for(self.noise, self.memory)
        measurement.use(bits)
        self.values = measurement.values(bits)
        return True
