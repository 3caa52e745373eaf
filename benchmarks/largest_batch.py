"""The largest batch whose training step runs in a given amount of memory."""

from collections.abc import Callable
from functools import partial

import measure
import torch
from steps import Run, Variant, Workload

DOUBLED_FROM = 8
"""Multiples: the first batch that is tried."""


class Trial:
    """A variant of a network, trained at one batch size after the other."""

    def __init__(self, workload: Callable[[int], Workload], variant: Variant, device: torch.device, batch: int):
        self.workload, self.device = workload, device
        self.run = Run(variant, workload(batch), device)
        self.run.warm_up(2)  # the optimizer's state is part of what must fit
        self.stopped_by = ""
        """The smallest batch that did not fit, and what torch said."""

    def fits(self, batch: int) -> bool:
        return self._attempt(batch, self.run.step)

    def measure(self, batch: int, steps: int) -> dict | None:
        """Time and peak of whole steps, weights, gradients, optimizer and inputs included; None if they do not fit."""
        self.run.milliseconds = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if not self._attempt(batch, partial(self.run.measure_time, steps, warm_up=1)):
            return None
        time = measure.Spread.of(self.run.milliseconds)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        speed = 1000 * batch / time.median
        return {"batch": batch, "peak_bytes": peak, **time.record("milliseconds"), "samples_per_second": speed}

    def _attempt(self, batch: int, action: Callable[[], None]) -> bool:
        self._release()
        try:
            self.run.workload = self.workload(batch)
            self.run.inputs = self.run.workload.inputs(self.run.amp, self.device)
            action()
            measure.synchronize(self.device)
            return True
        except RuntimeError as error:  # cuBLAS and cuDNN have texts of their own for a lack of memory
            self.stopped_by = f"{batch}: {measure.one_line(error)}"
        self._release()  # outside of the except clause, whose traceback holds tensors
        return False

    def _release(self) -> None:
        self.run.inputs = ()
        self.run.optimizer.zero_grad(set_to_none=True)
        measure.release_memory(self.device)


def search(fits: Callable[[int], bool], ceiling: int, multiple: int = 8) -> int:
    """The largest multiple of `multiple` up to `ceiling` that fits, if all smaller ones do; 0 if none does."""
    low, high = 0, min(DOUBLED_FROM * multiple, ceiling)
    while fits(high):
        low, high = high, min(2 * high, ceiling)
        if low == ceiling:
            return low
    while high - low > multiple:
        middle = (low + high) // 2 // multiple * multiple
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def find(
    workload: Callable[[int], Workload],
    variant: Variant,
    device: torch.device,
    limit: float,
    ceiling: int,
    multiple: int,
) -> dict[str, object]:
    """The batch, its peak and its time. `limit`: GiB of a GPU's memory, which this process is held to from here on."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 2**30 / total), device)
    trial = Trial(workload, variant, device, multiple)
    largest = search(trial.fits, ceiling, multiple)
    for batch in range(largest, 0, -multiple):  # at the limit, one step more may be one too many
        if measured := trial.measure(batch, steps=3):
            return measured | {"stopped_by": trial.stopped_by}
    return {"error": f"no batch runs; {trial.stopped_by}"}
