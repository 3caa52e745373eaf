"""Tasks that a process of their own measures, and another goes on with where that one had to end.

A failed capture of a CUDA graph, or a failed kernel, leaves a process unfit for more. A task says what is to be
measured (`parts`), measures it and sends it part by part, and returns whether the process is fit for the next task.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar

import torch

Send = Callable[[Hashable, dict], None]
T = TypeVar("T", bound="Task")


class Task(Protocol):
    @property
    def parts(self) -> list[Hashable]:
        """What is measured, in the order in which it is sent."""

    def without(self: T, parts: set[Hashable]) -> T:
        """What is left of the task."""

    def run(self, device: torch.device, send: Send) -> bool:
        """Whether the process is fit for the next task."""


def run(tasks: Sequence[Task], device: torch.device) -> Iterator[tuple[Hashable, dict]]:
    """Parts and what was measured of them; {"ended": reason} for a part that brought its process down."""
    done: set[Hashable] = set()
    while left := [task.without(done) for task in tasks if set(task.parts) - done]:
        before = len(done)
        receiver, process = _start(left, device)
        while True:
            try:
                part, values = receiver.recv()
            except EOFError:
                break
            done.add(part)
            yield part, values
        process.join()
        if process.exitcode or len(done) == before:
            part = next((part for task in left for part in task.parts if part not in done), None)
            if part is not None:
                done.add(part)
                yield part, {"ended": f"its process ended with {process.exitcode}"}


def is_usable(device: torch.device) -> bool:
    """Whether the device still does what it is asked to."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _start(tasks: Sequence[Task], device: torch.device) -> tuple[Connection, multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(list(tasks), device, sender))
    process.start()
    sender.close()  # here: so that its end is the worker's
    return receiver, process


def _work(tasks: list[Task], device: torch.device, sender: Connection) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for task in tasks:
        begin = time.perf_counter()
        is_fit = task.run(device, lambda part, values: sender.send((part, values)))
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
        if not is_fit:
            sender.close()
            sys.stderr.flush()
            os._exit(0)  # at once: taking down what a failure has spoiled may fail, too
