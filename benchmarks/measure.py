"""What the benchmark programs share: loading the library, timing, what was run on what, tables, JSON."""

import argparse
import datetime
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
import actnn  # noqa: E402, F401  (of this checkout, also for the programs)

RESULTS = ROOT / "benchmarks/results"
MIB = 2**20


def random_state(op: torch._ops.OpOverloadPacket, device: torch.device, explicit: bool = False) -> torch.Tensor | None:
    """The argument rng_state of an op: None, the path of the layers, where the op takes it and `explicit` is off."""
    argument = next(a for a in op.default._schema.arguments if a.name == "rng_state")
    if isinstance(argument.type, torch.OptionalType) and not explicit:
        return None
    return torch.tensor([1234, 0], device=device)


# --- the command line -------------------------------------------------------------------------------------------------


def parser(description: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--device", default="cuda", help="cuda (default), or cpu to try the program out")
    result.add_argument("--smoke", action="store_true", help="tiny sizes: does the program run?")
    result.add_argument(
        "--output", type=Path, help="where the JSON goes (default: benchmarks/results, none for --smoke)"
    )
    return result


def chosen_device(arguments: argparse.Namespace) -> torch.device:
    device = torch.device(arguments.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("there is no CUDA device; `--smoke --device cpu` tries the program out without one")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def output_path(arguments: argparse.Namespace, name: str) -> Path | None:
    return arguments.output or (None if arguments.smoke else RESULTS / f"{name}.json")


# --- what was run on what ---------------------------------------------------------------------------------------------


def driver_version() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def machine(device: torch.device) -> dict:
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return record


def print_machine(record: Mapping) -> None:
    shown = ("date", "gpu", "driver", "torch", "cuda", "device")
    print("  ".join(f"{key} {record[key]}" for key in shown if record.get(key)), end="\n\n", flush=True)


# --- time -------------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Gives memory that nothing refers to back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


class Stopwatch:
    """Seconds between start and stop: of the device's work, by CUDA events, or of the host's on the CPU."""

    def __init__(self, device: torch.device):
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self.times = [0.0, 0.0]

    def _mark(self, index: int) -> None:
        if self.events:
            self.events[index].record()
        else:
            self.times[index] = time.perf_counter()

    def start(self) -> None:
        self._mark(0)

    def stop(self) -> None:
        self._mark(1)

    def seconds(self) -> float:
        """Waits for what was enqueued before stop."""
        if self.events:
            self.events[1].synchronize()
            return self.events[0].elapsed_time(self.events[1]) / 1000
        return self.times[1] - self.times[0]


def time_calls(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = 1) -> float:
    """Seconds per call, of all calls made one after the other.

    One call is made before, untimed: while the device is busy with it, the host enqueues the others, so that the host's
    time does not show where the device's is longer.
    """
    watch = Stopwatch(device)
    calls[-1]()
    watch.start()
    for _ in range(repeats):
        for call in calls:
            call()
    watch.stop()
    return watch.seconds() / (repeats * len(calls))


Name = TypeVar("Name", bound=Hashable)
Sample = TypeVar("Sample")


def interleaved(samples: Mapping[Name, Callable[[], Sample]], rounds: int) -> dict[Name, list[Sample]]:
    """Takes one sample of each in turn, `rounds` times."""
    taken = {name: [] for name in samples}
    for _ in range(rounds):
        for name, sample in samples.items():
            taken[name].append(sample())
    return taken


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def scaled(self, factor: float) -> "Spread":
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def record(self, unit: str) -> dict[str, float]:
        return {unit: self.median, f"{unit}_lower_quartile": self.low, f"{unit}_upper_quartile": self.high}

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


# --- tables and files -------------------------------------------------------------------------------------------------


class Table:
    """Prints rows as they come; the first column is aligned to the left."""

    def __init__(self, columns: Mapping[str, int]):
        self.widths = list(columns.values())
        self.row(columns)

    def row(self, cells: Iterable[object]) -> None:
        texts = ["-" if cell is None else str(cell) for cell in cells]
        first, *rest = zip(texts, self.widths, strict=True)
        print(f"{first[0]:<{first[1]}}" + "".join(f"  {text:>{width}}" for text, width in rest), flush=True)


def one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]


def finite(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_lines(value: object, margin: str = "") -> str:
    """JSON with a line for every record, as the objects in lists are."""
    if "[{" not in json.dumps(value):
        return json.dumps(value)
    inner = margin + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(str(key))}: {in_lines(item, inner)}" for key, item in value.items()]
    else:
        lines = [inner + json.dumps(item) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(lines), margin + closing])


def save(path: Path | None, record: Mapping) -> None:
    """Replaces the file at once: it is never half written."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(in_lines(finite(record)) + "\n")
    os.replace(part, path)


def write_json(path: Path | None, record: Mapping) -> None:
    save(path, record)
    if path is not None:
        print(f"\nwritten to {path}")


def print_rows(rows: list[dict[str, str | None]]) -> None:
    columns = {key: max(len(key), *(len(row[key] or "-") for row in rows)) for key in rows[0]}
    table = Table(columns)
    for row in rows:
        table.row(row.values())


def print_markdown(rows: list[dict[str, str | None]]) -> None:
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(text or '' for text in row.values())} |")
