"""How the library behaves from tiny tensors to huge ones, and what its layers cost on the host. Three parts:

large   a bfloat16 tensor of 3 x 2^31 elements through quantize, dequantize, relu_pack and apply_mask, checked
time    time per element of quantize and dequantize (4 bits) for 10^5 to 10^9 elements
host    the host's time for forward and backward of chains of 200 tiny layers, torch's against actnn's

    .venv/bin/python benchmarks/scale.py
    .venv/bin/python benchmarks/scale.py --parts host
    .venv/bin/python benchmarks/scale.py --plot benchmarks/results/scale.json      (needs matplotlib)
    .venv/bin/python benchmarks/scale.py --smoke --device cpu
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import measure
import torch
from measure import actnn
from torch import Tensor, nn

ops = torch.ops.actnn

BITS = 4
GROUP = 256
HEADER = 16  # bytes
PARTS = ("large", "time", "host")
IMAGE = measure.ROOT / "docs/images/time_per_element.svg"

# --- large ------------------------------------------------------------------------------------------------------------

LARGE = 3 * 2**31
BLOCK = 2**26
NEIGHBOURHOOD = 64 * GROUP  # elements compared on each side of a place


def blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))


def places(count: int) -> list[slice]:
    """Around the begin, a third (2^31 elements), two thirds (2^32) and the end: whole groups."""
    around = [0, count // 3 // GROUP * GROUP, 2 * count // 3 // GROUP * GROUP, count]
    return [slice(max(place - NEIGHBOURHOOD, 0), min(place + NEIGHBOURHOOD, count)) for place in around]


def parameters(packed: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Minimum and step of each group of a slice of whole groups, [groups, 1], float32."""
    grid = packed[HEADER:][part.start // GROUP * 4 : part.stop // GROUP * 4].view(torch.bfloat16).view(-1, 2).float()
    return grid[:, :1], grid[:, 1:]


def codes(packed: Tensor, count: int, part: slice) -> Tensor:
    """The 4-bit codes of a slice, [groups, GROUP]: element 2k in the low half of byte k, 2k + 1 in the high half."""
    begin = HEADER + -(-count // GROUP * 4 // 16) * 16
    data = packed[begin + part.start // 2 : begin + part.stop // 2]
    return torch.stack([data & 15, data >> 4], -1).view(-1, GROUP).float()


def decoded_as_stored(packed: Tensor, y: Tensor) -> bool:
    """Are the values that the parameters and codes say, without noise, bit for bit, what was decoded?"""
    equal = True
    for part in places(y.numel()):
        minimum, step = parameters(packed, part)
        expected = (minimum + codes(packed, y.numel(), part) * step).bfloat16()
        equal = equal and torch.equal(y[part].view(-1, GROUP), expected)
    return equal


def largest_error(packed: Tensor, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The largest error of an element as a share of what is allowed, half a step, the resolution of the noise, and the
    rounding of the result to bfloat16; and the mean error in steps."""
    worst, total = 0.0, 0.0
    for part in blocks(x.numel(), BLOCK):
        _, step = parameters(packed, part)
        value = y[part].view(-1, GROUP).float()
        error = value - x[part].view(-1, GROUP).float()
        worst = max(worst, (error.abs() / (step * (0.5 + 2.0**-9) + value.abs() * 2.0**-8)).max().item())
        total += (error / step).double().sum().item()
    return worst, total / x.numel()


def same_as_alone(packed: Tensor, x: Tensor, device: torch.device) -> bool:
    """Rounding to nearest does not depend on where an element is: are the bytes those of a slice quantized alone?"""
    equal = True
    for part in places(x.numel()):
        alone = ops.quantize(x[part], BITS, GROUP, "nearest", measure.random_state(ops.quantize, device))
        local = slice(0, part.stop - part.start)
        for theirs, own in zip(parameters(packed, part), parameters(alone, local), strict=True):
            equal = equal and torch.equal(theirs, own)
        equal = equal and torch.equal(codes(packed, x.numel(), part), codes(alone, local.stop, local))
    return equal


def equals_relu(y: Tensor, x: Tensor) -> bool:
    return all(torch.equal(y[part], x[part].clamp_min(0)) for part in blocks(x.numel(), BLOCK))


def large(count: int, device: torch.device) -> dict:
    print(f"large: {count} elements, bfloat16", flush=True)
    begin = time.perf_counter()
    x = torch.empty(count, dtype=torch.bfloat16, device=device)
    for part in blocks(count, BLOCK):
        x[part].normal_()

    checks = {}
    packed = ops.quantize(x, BITS, GROUP, "dithered", measure.random_state(ops.quantize, device))
    y = ops.dequantize(packed, x.shape, x.stride(), x.dtype, BITS, GROUP)
    worst, mean = largest_error(packed, x, y)
    checks["the size is the format's"] = packed.numel() == HEADER + -(-count // GROUP * 4 // 16) * 16 + count // 2
    checks["every error is below half a step"] = worst <= 1.0
    checks["the mean error is below a thousandth of a step"] = abs(mean) < max(1e-3, 6 * (12 * count) ** -0.5)
    packed = ops.quantize(x, BITS, GROUP, "stochastic", measure.random_state(ops.quantize, device))
    y = ops.dequantize(packed, x.shape, x.stride(), x.dtype, BITS, GROUP)
    checks["the values are those of the codes, around 0, 2^31, 2^32 and the end"] = decoded_as_stored(packed, y)
    del packed, y
    nearest = ops.quantize(x, BITS, GROUP, "nearest", measure.random_state(ops.quantize, device))
    checks["rounded to nearest, the bytes there are those of a slice alone"] = same_as_alone(nearest, x, device)
    del nearest
    y, mask = ops.relu_pack(x)
    checks["relu_pack"] = equals_relu(y, x)
    del y
    checks["apply_mask"] = equals_relu(ops.apply_mask(x, mask, x.stride()), x)

    for name, passed in checks.items():
        print(f"  {'ok    ' if passed else 'FAILED'}  {name}")
    seconds = time.perf_counter() - begin
    print(f"  largest error {worst:.6f} of what is allowed, mean error {mean:.2e} steps, {seconds:.1f} s\n", flush=True)
    return {
        "elements": count,
        "checks": checks,
        "largest_error_of_allowed": worst,
        "mean_error_in_steps": mean,
        "passed": all(checks.values()),
    }


# --- time -------------------------------------------------------------------------------------------------------------

SIZES = [digit * 10**power for power in range(5, 9) for digit in (1, 2, 5)] + [10**9]
WORKING_SET = 200e6  # bytes, four times the second-level cache of an H100
MOST_BUFFERS = 512

Calls = list[Callable[[], object]]


def kernel_calls(count: int, dtype: torch.dtype, device: torch.device) -> dict[str, Calls]:
    """Calls of a copy, quantize and dequantize, each over buffers that together do not fit the cache."""
    size = count * dtype.itemsize
    buffers = min(max(3, int(-(-WORKING_SET // size))), MOST_BUFFERS)
    xs = list(torch.randn(buffers, count, dtype=dtype, device=device))
    state = measure.random_state(ops.quantize, device)
    packed = [ops.quantize(x, BITS, GROUP, "dithered", state) for x in xs]
    return {
        "copy": [x.clone for x in xs],
        "quantize": [partial(ops.quantize, x, BITS, GROUP, "dithered", state) for x in xs],
        "dequantize": [partial(ops.dequantize, p, (count,), (1,), dtype, BITS, GROUP) for p in packed],
    }


class Replay:
    """A CUDA graph of some calls, which keeps their results apart."""

    def __init__(self, calls: Calls):
        calls[0]()  # loads the kernel, which may not be possible while recording
        torch.cuda.synchronize()
        self.graph, self.length = torch.cuda.CUDAGraph(), len(calls)
        with torch.cuda.graph(self.graph):
            self.results = [call() for call in calls]

    def seconds(self, device: torch.device, repeats: int = 3) -> float:
        return measure.time_calls([self.graph.replay], device, repeats) / self.length


def time_one_size(count: int, dtype: torch.dtype, device: torch.device, rounds: int) -> Iterator[dict]:
    calls = kernel_calls(count, dtype, device)
    samples = {(name, "launches"): partial(measure.time_calls, of_kernel, device) for name, of_kernel in calls.items()}
    if device.type == "cuda":
        try:
            samples |= {
                (name, "graph"): partial(Replay(of_kernel).seconds, device) for name, of_kernel in calls.items()
            }
        except RuntimeError as error:
            print(f"no graph: {measure.one_line(error)}")
    for sample in samples.values():
        sample()
    for (name, how), seconds in measure.interleaved(samples, rounds).items():
        nanoseconds = measure.Spread.of(seconds).scaled(1e9 / count)
        row = {"kernel": name, "dtype": str(dtype).removeprefix("torch."), "elements": count, "how": how}
        yield row | nanoseconds.record("nanoseconds_per_element")


def time_per_element(sizes: list[int], device: torch.device, rounds: int) -> list[dict]:
    print(f"time: nanoseconds per element, {BITS} bits; launched one by one, and as a CUDA graph")
    table = measure.Table({"kernel": 10, "dtype": 9, "elements": 11, "launches": 9, "graph": 9})
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for count in sizes:
            try:
                found = list(time_one_size(count, dtype, device, rounds))
            except (RuntimeError, ValueError, TypeError) as error:
                found = [{"dtype": str(dtype), "elements": count, "error": measure.one_line(error)}]
                print(f"{dtype} {count}: {found[0]['error']}")
            rows += found
            shown = {(row["kernel"], row["how"]): row["nanoseconds_per_element"] for row in found if "error" not in row}
            for kernel in dict.fromkeys(kernel for kernel, _ in shown):
                cells = [shown.get((kernel, how)) for how in ("launches", "graph")]
                cells = [None if cell is None else f"{cell:.5f}" for cell in cells]
                table.row([kernel, str(dtype).removeprefix("torch."), count, *cells])
            measure.release_memory(device)
    print()
    return rows


# --- host -------------------------------------------------------------------------------------------------------------


def convolution_blocks(count: int) -> tuple[nn.Module, Tensor]:
    block = (
        lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False),
        lambda: nn.BatchNorm2d(16),
        lambda: nn.ReLU(inplace=True),
    )
    return nn.Sequential(*(block[i % 3]() for i in range(count))), torch.randn(2, 16, 8, 8)


def relus(count: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(nn.ReLU() for _ in range(count))), torch.randn(2, 16, 8, 8)


def linears(count: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(nn.Linear(32, 32) for _ in range(count))), torch.randn(16, 32)


CHAINS = {"conv, batch norm, relu": convolution_blocks, "relu": relus, "linear": linears}


class Chain:
    """Forward and backward of a chain of layers: until all is enqueued, and until it is done."""

    def __init__(self, model: nn.Module, x: Tensor, device: torch.device):
        self.model, self.x, self.device = model.to(device), x.to(device).requires_grad_(), device

    def seconds(self) -> tuple[float, float]:
        self.model.zero_grad(set_to_none=True)
        self.x.grad = None
        measure.synchronize(self.device)
        begin = time.perf_counter()
        self.model(self.x).sum().backward()
        enqueued = time.perf_counter()
        measure.synchronize(self.device)
        return enqueued - begin, time.perf_counter() - begin


def host_cost(count: int, device: torch.device, rounds: int) -> list[dict]:
    print(f"host: microseconds per layer of forward + backward, chains of {count} layers")
    table = measure.Table({"layers": 24, "whose": 6, "enqueue (quartiles)": 22, "until done": 10, "enqueue, ratio": 14})
    rows = []
    for name, make in CHAINS.items():
        torch.manual_seed(0)
        model, x = make(count)
        twin = copy.deepcopy(model)
        actnn.convert(twin, actnn.Config("L2", activation_compression_bits=[BITS]))
        chains = {"torch": Chain(model, x, device), "actnn": Chain(twin, x.clone(), device)}
        try:
            taken = measure.interleaved({whose: chain.seconds for whose, chain in chains.items()}, rounds + 2)
        except RuntimeError as error:
            rows.append({"chain": name, "error": measure.one_line(error)})
            print(f"{name}: {rows[-1]['error']}")
            continue
        taken = {whose: samples[2:] for whose, samples in taken.items()}  # the first two warm up
        for whose, samples in taken.items():
            enqueue, done = (measure.Spread.of([s[i] / count * 1e6 for s in samples]) for i in (0, 1))
            row = {"chain": name, "layers": count, "whose": whose, **enqueue.record("enqueue_microseconds_per_layer")}
            row |= done.record("microseconds_per_layer")
            exact = measure.Spread.of([enqueued for enqueued, _ in taken["torch"]])
            row["enqueue_against_torch"] = enqueue.median / (exact.median / count * 1e6)
            rows.append(row)
            table.row([name, whose, enqueue.text(2), f"{done.median:.2f}", f"{row['enqueue_against_torch']:.2f} x"])
    print()
    return rows


# --- plot -------------------------------------------------------------------------------------------------------------


def plot(results: Path, image: Path) -> None:
    """Time per element over the number of elements, both axes logarithmic, a panel per dtype."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "actnn"  # the same file from the same numbers
    import matplotlib.pyplot as plt

    record = json.loads(results.read_text())
    rows = [row for row in record["time"] if "error" not in row]
    how = "graph" if any(row["how"] == "graph" for row in rows) else "launches"
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(1, len(dtypes), figsize=(9, 4), sharey=True, squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for kernel in ("copy", "quantize", "dequantize"):
            chosen = [row for row in rows if (row["kernel"], row["dtype"], row["how"]) == (kernel, dtype, how)]
            counts = [row["elements"] for row in chosen]
            median, low, high = ([row[f"nanoseconds_per_element{part}"] for row in chosen]
                                 for part in ("", "_lower_quartile", "_upper_quartile"))  # fmt: skip
            axis.plot(counts, median, marker="o", markersize=3, label=kernel)
            axis.fill_between(counts, low, high, alpha=0.2)
        axis.set(xscale="log", yscale="log", xlabel="elements", title=dtype)
        axis.grid(True, which="both", alpha=0.2)
    axes[0][0].set_ylabel("nanoseconds per element")
    axes[0][-1].legend()
    where = record["machine"].get("gpu", record["machine"]["device"])
    figure.suptitle(f"4 bits, groups of {GROUP}; {where}, torch {record['machine']['torch']}", fontsize=10)
    figure.tight_layout()
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, metadata={"Date": None})
    print(f"written to {image}")


# --- all --------------------------------------------------------------------------------------------------------------


def chosen_parts(text: str) -> list[str]:
    parts = text.split(",")
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(PARTS)}, got {text}")
    return parts


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument(
        "--parts", type=chosen_parts, default=list(PARTS), help=f"comma-separated, of {', '.join(PARTS)}"
    )
    parser.add_argument("--elements", type=int, help="elements of the large tensor (rounded to whole groups)")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="only draw what was measured before")
    parser.add_argument("--image", type=Path, default=IMAGE, help="where --plot draws")
    arguments = parser.parse_args()
    if arguments.plot:
        plot(arguments.plot, arguments.image)
        return 0

    device = measure.chosen_device(arguments)
    smoke = arguments.smoke
    record = {"benchmark": "scale", "machine": measure.machine(device)}
    measure.print_machine(record["machine"])
    if "large" in arguments.parts:
        count = arguments.elements or (3 * 2**16 if smoke else LARGE)
        try:
            record["large"] = large(max(count // GROUP, 1) * GROUP, device)
        except RuntimeError as error:  # e.g. too little memory
            record["large"] = {"error": measure.one_line(error), "passed": False}
            print(f"large: {record['large']['error']}")
        measure.release_memory(device)
    if "time" in arguments.parts:
        sizes = [100_000, 200_000] if smoke else SIZES
        record["time"] = time_per_element(sizes, device, rounds=2 if smoke else 15)
    if "host" in arguments.parts:
        record["host"] = host_cost(9 if smoke else 200, device, rounds=3 if smoke else 30)
    measure.write_json(measure.output_path(arguments, "scale"), record)
    return 0 if record.get("large", {}).get("passed", True) else 1


if __name__ == "__main__":
    sys.exit(main())
