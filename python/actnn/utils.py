"""Memory of now, bytes of tensors, and a notebook for the numbers of an experiment."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def get_memory_usage(print_info: bool = False) -> int:
    """The bytes in use now.

    With CUDA: what tensors hold on the current CUDA device (`torch.cuda.memory_allocated`). Without: the resident
    memory of the process, which torch's CPU allocator shares with everything else and does not always give back; for
    exact numbers on the CPU there is `actnn::AllocationObserver` in C++. With `print_info`, prints it, and on CUDA what
    the allocator has reserved.
    """
    if torch.cuda.is_available():
        used = torch.cuda.memory_allocated()
        lines = {"allocated": used, "reserved": torch.cuda.memory_reserved()}
    else:
        used = _resident_bytes()
        lines = {"resident": used}
    if print_info:
        for name, size in lines.items():
            print(f"{name + ':':<10} {size / 2**20:.2f} MiB", flush=True)
    return used


def compute_tensor_bytes(tensors: Any) -> int:
    """The bytes of the elements of a tensor, or of all tensors in (nested) lists, tuples and dictionaries.

    Every dtype and device; anything that is not a tensor counts nothing. Views count as if they had memory of their
    own.
    """
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    if isinstance(tensors, dict):
        tensors = tensors.values()
    elif not isinstance(tensors, Iterable) or isinstance(tensors, (str, bytes)):
        return 0
    return sum(compute_tensor_bytes(tensor) for tensor in tensors)


def empty_cache(ratio: float | None) -> None:
    """Gives the CUDA allocator's cache back if tensors hold less than `ratio` of what it has reserved on the current
    device.

    Does nothing if `ratio` is None or there is no CUDA. Raises ValueError for a ratio outside 0..1.
    """
    if ratio is None:
        return
    if not 0 <= ratio <= 1:
        raise ValueError(f"empty_cache: ratio must be None or in 0..1, got {ratio}")
    if not torch.cuda.is_available():
        return
    reserved = torch.cuda.memory_reserved()
    if reserved > 0 and torch.cuda.memory_allocated() / reserved < ratio:
        torch.cuda.empty_cache()


class ExperimentRecorder:
    """Named values of one run, in the order in which they came, for one line of a file."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def record(self, key: str, value: Any, precision: int = 6) -> None:
        """Keeps a value under `key`, instead of an earlier one. Numbers may be 0-D tensors or NumPy's; floats are
        rounded to `precision` decimals."""
        if callable(getattr(value, "item", None)):
            value = value.item()
        self.values[key] = round(value, precision) if isinstance(value, float) else value

    def dump(self, path: str | os.PathLike) -> None:
        """Appends the values to the file as one line of JSON."""
        line = json.dumps(self.values)  # before the file is opened: a value that JSON does not know leaves no half line
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def clear(self) -> None:
        self.values.clear()


exp_recorder = ExperimentRecorder()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
