"""Every op of actnn that moves a tensor, against a device-to-device copy of as many bytes in the same run.

For each row, copy and kernel are timed in turn. A sample is several launches over buffers that take turns, and outputs
are kept for as long, so that nothing fits a cache. The share of the copy's speed is computed per pair of samples; shown
are medians and quartiles.

    .venv/bin/python benchmarks/cuda_kernels.py
    .venv/bin/python benchmarks/cuda_kernels.py --rows 'quantize bfloat16'
    .venv/bin/python benchmarks/cuda_kernels.py --smoke --device cpu
"""

import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import measure
import torch
from torch import Tensor

ops = torch.ops.actnn
aten = torch.ops.aten

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BUFFERS = 3  # that take turns
SAMPLES = 64
DROPOUT = 0.1
RANDOMIZED = (
    "quantize",
    "quantize_per_sample",
    "quantize_columns",
    "norm_act",
    "norm_add_act",
    "dropout_forward",
    "dropout_forward_",
)
COLUMN_CHANNELS = 1024
NORM_CHANNELS = (64, 256, 2048)  # of as many elements, in bfloat16 with a ReLU
NORM_BITS = 3  # and the side of the kink
POOLINGS = {"k3 s2 p1": ([3, 3], [2, 2], [1, 1]), "k2 s2": ([2, 2], [2, 2], [0, 0])}
GOAL = 95.0
FP32_DEQUANTIZE_GOAL = 92.0

Calls = list[Callable[[], object]]


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensors_of(result: object) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass
class Case:
    """Calls of one kernel, one per buffer. `moved` are the tensors that each call reads or changes; the bytes of its
    results are added. `rival` are calls of torch's own kernel for the same thing."""

    calls: Calls
    moved: Sequence[Tensor]
    rival: Calls | None = None


@dataclass
class Row:
    name: str
    prepare: Callable[[], Case]
    goal: float = GOAL


@dataclass(frozen=True)
class Sizes:
    elements: int
    pool: tuple[int, int, int, int]
    rounds: int
    launches: int


FULL = Sizes(elements=128 * 512 * 56 * 56, pool=(128, 64, 112, 112), rounds=15, launches=9)
SMOKE = Sizes(elements=64 * 1024, pool=(2, 8, 14, 14), rounds=2, launches=3)


class Kernels:
    """The rows, with the inputs that they share."""

    def __init__(self, sizes: Sizes, device: torch.device, explicit_state: bool):
        self.sizes, self.device, self.explicit_state = sizes, device, explicit_state
        self._cached: dict[object, list[Tensor]] = {}

    def activations(self, dtype: torch.dtype, shape: Sequence[int] | None = None, channels_last=False) -> list[Tensor]:
        shape = shape or (SAMPLES, self.sizes.elements // SAMPLES)
        key = (dtype, shape, channels_last)
        if key not in self._cached:
            form = torch.channels_last if channels_last else torch.contiguous_format
            make = partial(torch.randn, shape, device=self.device, dtype=dtype)
            self._cached[key] = [make().contiguous(memory_format=form) for _ in range(BUFFERS)]
        return self._cached[key]

    def forget(self) -> None:
        self._cached.clear()

    def state(self, op: torch._ops.OpOverloadPacket) -> Tensor | None:
        return measure.random_state(op, self.device, self.explicit_state)

    # Quantization

    def quantize(self, dtype: torch.dtype, bits: int, group_size=256, rounding="dithered") -> Case:
        xs = self.activations(dtype)
        state = self.state(ops.quantize)
        return Case([partial(ops.quantize, x, bits, group_size, rounding, state) for x in xs], xs[:1])

    def dequantize(self, dtype: torch.dtype, bits: int, group_size=256) -> Case:
        x = self.activations(dtype)[0]
        packed = [call() for call in self.quantize(dtype, bits, group_size).calls]
        layout = (x.shape, x.stride(), dtype)
        return Case([partial(ops.dequantize, p, *layout, bits, group_size) for p in packed], packed[:1])

    def sample_bits(self) -> Tensor:
        return torch.randint(1, 9, (SAMPLES,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def quantize_per_sample(self, dtype: torch.dtype) -> Case:
        xs = self.activations(dtype)
        bits = self.sample_bits()
        octets = -(-xs[0].shape[1] // 8)
        room = sum(-(-octets * b // 4) * 4 for b in bits.tolist())
        bits = bits.to(self.device)
        state = self.state(ops.quantize_per_sample)
        return Case([partial(ops.quantize_per_sample, x, bits, room, 256, "dithered", state) for x in xs], xs[:1])

    def dequantize_per_sample(self, dtype: torch.dtype) -> Case:
        x = self.activations(dtype)[0]
        bits = self.sample_bits().to(self.device)
        packed = [call() for call in self.quantize_per_sample(dtype).calls]
        dequantize = partial(ops.dequantize_per_sample, size=x.shape, stride=x.stride(), dtype=dtype, group_size=256)
        return Case([partial(dequantize, p, bits) for p in packed], packed[:1])

    # Masks and dropout

    def pack_mask(self) -> Case:
        masks = [x > 0 for x in self.activations(torch.bfloat16)]
        return Case([partial(ops.pack_mask, m) for m in masks], masks[:1])

    def unpack_mask(self) -> Case:
        x = self.activations(torch.bfloat16)[0]
        packed = [call() for call in self.pack_mask().calls]
        return Case([partial(ops.unpack_mask, p, x.shape, x.stride()) for p in packed], packed[:1])

    def relu_pack(self, dtype: torch.dtype) -> Case:
        xs = self.activations(dtype)
        return Case([partial(ops.relu_pack, x) for x in xs], xs[:1])

    def relu_pack_in_place(self, dtype: torch.dtype) -> Case:
        xs = [x.clone() for x in self.activations(dtype)]
        return Case([partial(ops.relu_pack_, x) for x in xs], [xs[0], xs[0]])

    def apply_mask(self, dtype: torch.dtype) -> Case:
        xs = self.activations(dtype)
        masks = [ops.pack_mask(x > 0) for x in xs]
        calls = [partial(ops.apply_mask, x, m, x.stride()) for x, m in zip(xs, masks, strict=True)]
        return Case(calls, [xs[0], masks[0]])

    def dropout_forward(self, dtype: torch.dtype) -> Case:
        xs = self.activations(dtype)
        state = self.state(ops.dropout_forward)
        return Case([partial(ops.dropout_forward, x, DROPOUT, state) for x in xs], xs[:1])

    def dropout_forward_in_place(self, dtype: torch.dtype) -> Case:
        xs = [x.clone() for x in self.activations(dtype)]
        state = self.state(ops.dropout_forward_)
        return Case([partial(ops.dropout_forward_, x, DROPOUT, state) for x in xs], [xs[0], xs[0]])

    def apply_dropout(self, dtype: torch.dtype) -> Case:
        xs = self.activations(dtype)
        state = torch.tensor([1234, 0], device=self.device)
        return Case([partial(ops.apply_dropout, x, DROPOUT, state, x.stride()) for x in xs], xs[:1])

    # Pooling

    def max_pool(self, dtype: torch.dtype, window: str, channels_last: bool) -> Case:
        xs = self.activations(dtype, self.sizes.pool, channels_last)
        arguments = (*POOLINGS[window], [1, 1], False)
        rival = [partial(aten.max_pool2d_with_indices, x, *arguments) for x in xs]
        return Case([partial(ops.max_pool2d_pack, x, *arguments) for x in xs], xs[:1], rival)

    def max_pool_backward(self, dtype: torch.dtype, window: str, channels_last: bool) -> Case:
        xs = self.activations(dtype, self.sizes.pool, channels_last)
        arguments = (*POOLINGS[window], [1, 1], False)
        calls, rival = [], []
        for x in xs:
            output, positions = ops.max_pool2d_pack(x, *arguments)
            gradient = torch.randn_like(output)
            _, indices = aten.max_pool2d_with_indices(x, *arguments)
            calls.append(partial(ops.max_pool2d_pack_backward, gradient, positions, x.shape, channels_last, *arguments))
            rival.append(partial(aten.max_pool2d_with_indices_backward, gradient, x, *arguments, indices))
        return Case(calls, [gradient, positions], rival)

    # Columns, and the passes of norms over matrices of rows x channels

    def matrices(self, channels: int, dtype=torch.bfloat16, like: int = 0) -> list[Tensor]:
        """Other ones for each `like`, which stands for what they are of."""
        rows = self.sizes.elements // channels
        key = (dtype, rows, channels, like)
        if key not in self._cached:
            self._cached[key] = [torch.randn(rows, channels, device=self.device, dtype=dtype) for _ in range(BUFFERS)]
        return self._cached[key]

    def quantize_columns(self, dtype: torch.dtype, bits: int) -> Case:
        xs = self.matrices(COLUMN_CHANNELS, dtype)
        state = self.state(ops.quantize_columns)
        return Case([partial(ops.quantize_columns, x, bits, 256, "dithered", state) for x in xs], xs[:1])

    def dequantize_columns(self, dtype: torch.dtype, bits: int) -> Case:
        packed = [call() for call in self.quantize_columns(dtype, bits).calls]
        x = self.matrices(COLUMN_CHANNELS, dtype)[0]
        return Case([partial(ops.dequantize_columns, p, *x.shape, dtype, bits, 256) for p in packed], packed[:1])

    def norm(self, channels: int, kink=True) -> tuple[Tensor, Tensor, Tensor]:
        """What the passes know of a norm: weights near 1, biases near 0."""
        x = self.matrices(channels)[0]
        weight = torch.linspace(0.5, 1.5, channels, device=self.device)
        bias = torch.linspace(-0.2, 0.2, channels, device=self.device)
        return ops.batch_norm_channels(x, weight, bias, None, None, None, 0.1, 1e-5, kink)

    def norm_statistics(self, channels: int) -> Case:
        xs = self.matrices(channels)
        return Case([partial(ops.batch_norm_channels, x, *[None] * 5, 0.1, 1e-5, True) for x in xs], xs[:1])

    def norm_forward(self, channels: int) -> Case:
        xs = self.matrices(channels)
        state = self.state(ops.norm_act)
        of_channels = self.norm(channels)[0]
        arguments = (None, of_channels, "leaky_relu", 0.0, NORM_BITS, False, "dithered", state)
        return Case([partial(ops.norm_act, x, *arguments) for x in xs], xs[:1])

    def norm_add_forward(self, channels: int) -> Case:
        xs, residuals = self.matrices(channels), self.matrices(channels, like=1)
        state = self.state(ops.norm_add_act)
        norm = self.norm(channels, kink=False)[0]
        sums = ops.sum_channels(norm, xs[0])[0]
        arguments = (sums, norm, "leaky_relu", 0.0, NORM_BITS, NORM_BITS, False, "dithered", state)
        calls = [partial(ops.norm_add_act, x, r, *arguments) for x, r in zip(xs, residuals, strict=True)]
        return Case(calls, [xs[0], residuals[0]])

    def norm_backward(self, op: str, channels: int) -> Case:
        grads = self.matrices(channels, like=2)
        _, decode, rstd = self.norm(channels)
        packed = [call()[1] for call in self.norm_forward(channels).calls]
        how = ("leaky_relu", 0.0, NORM_BITS, None, None, None, 0)
        if op == "norm_act_output":
            arguments = (decode, grads[0].shape[0], grads[0].dtype, *how[:3])
            return Case([partial(ops.norm_act_output, p, *arguments) for p in packed], packed[:1])
        of_pass = decode
        if op == "norm_act_input_gradient":
            sums = ops.norm_act_sums(packed[0], grads[0], None, decode, *how)
            of_pass = ops.norm_act_gradients(sums, decode, None, rstd, grads[0].shape[0])[0]
        calls = [partial(getattr(ops, op), p, g, None, of_pass, *how) for p, g in zip(packed, grads, strict=True)]
        return Case(calls, [packed[0], grads[0]])

    # Reductions

    def reduction(self, op: str, dtype: torch.dtype, *arguments: object) -> Case:
        xs = self.activations(dtype)
        return Case([partial(getattr(ops, op), x, *arguments) for x in xs], xs[:1])

    def rows(self) -> Iterator[Row]:
        for dtype in FLOATS:
            goal = FP32_DEQUANTIZE_GOAL if dtype == torch.float32 else GOAL
            for bits in range(1, 9):
                yield Row(f"quantize {short(dtype)} {bits} bits", partial(self.quantize, dtype, bits))
            yield Row(f"quantize {short(dtype)} 4 bits nearest", partial(self.quantize, dtype, 4, rounding="nearest"))
            for bits in range(1, 9):
                yield Row(f"dequantize {short(dtype)} {bits} bits", partial(self.dequantize, dtype, bits), goal)
            yield Row(f"quantize_per_sample {short(dtype)}", partial(self.quantize_per_sample, dtype))
            yield Row(f"dequantize_per_sample {short(dtype)}", partial(self.dequantize_per_sample, dtype), goal)
            if dtype != torch.float16:
                for size in (32, 128, 512, 1024, 160):
                    text = f"{short(dtype)} 4 bits groups of {size}"
                    yield Row(f"quantize {text}", partial(self.quantize, dtype, 4, size))
                    yield Row(f"dequantize {text}", partial(self.dequantize, dtype, 4, size), goal)
        yield Row("pack_mask", self.pack_mask)
        yield Row("unpack_mask", self.unpack_mask)
        for dtype in FLOATS:
            yield Row(f"relu_pack {short(dtype)}", partial(self.relu_pack, dtype))
            yield Row(f"relu_pack_ {short(dtype)}", partial(self.relu_pack_in_place, dtype))
            yield Row(f"apply_mask {short(dtype)}", partial(self.apply_mask, dtype))
            yield Row(f"dropout_forward {short(dtype)}", partial(self.dropout_forward, dtype))
            yield Row(f"dropout_forward_ {short(dtype)}", partial(self.dropout_forward_in_place, dtype))
            yield Row(f"apply_dropout {short(dtype)}", partial(self.apply_dropout, dtype))
        for dtype in FLOATS:
            for op, arguments in (("group_range_squares", (256,)), ("square_norms", ())):
                if hasattr(torch.ops.actnn, op):
                    yield Row(f"{op} {short(dtype)}", partial(self.reduction, op, dtype, *arguments))
        for dtype in FLOATS:
            for bits in (2, 4, 8):
                yield Row(f"quantize_columns {short(dtype)} {bits} bits", partial(self.quantize_columns, dtype, bits))
                yield Row(
                    f"dequantize_columns {short(dtype)} {bits} bits", partial(self.dequantize_columns, dtype, bits)
                )
        for channels in NORM_CHANNELS:
            yield Row(f"norm statistics, {channels} channels", partial(self.norm_statistics, channels))
            yield Row(f"norm_act, {channels} channels", partial(self.norm_forward, channels))
            yield Row(f"norm_add_act, {channels} channels", partial(self.norm_add_forward, channels))
            for op in ("norm_act_sums", "norm_act_input_gradient", "norm_act_output"):
                yield Row(f"{op}, {channels} channels", partial(self.norm_backward, op, channels))
        for dtype in (torch.bfloat16, torch.float32):
            for channels_last in (True, False):
                for window in POOLINGS:
                    text = f"{short(dtype)} {window} {'channels_last' if channels_last else 'contiguous'}"
                    arguments = (dtype, window, channels_last)
                    yield Row(f"max_pool2d_pack {text}", partial(self.max_pool, *arguments))
                    yield Row(f"max_pool2d_pack_backward {text}", partial(self.max_pool_backward, *arguments))


class Copy:
    """Device-to-device copies of any number of bytes, over buffers that take turns."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def calls(self, moved: int) -> Calls:
        """Copies that read and write `moved` bytes together."""
        size = max(moved // 2, 1)
        if not self.pairs or self.pairs[0][0].numel() < size:
            self.pairs.clear()
            measure.release_memory(self.device)
            make = partial(torch.zeros, size, dtype=torch.uint8, device=self.device)
            self.pairs = [(make(), make()) for _ in range(BUFFERS)]
        return [partial(target[:size].copy_, source[:size]) for target, source in self.pairs]


def measure_row(row: Row, copy: Copy, sizes: Sizes, device: torch.device) -> dict:
    case = row.prepare()
    moved = bytes_of(case.moved) + bytes_of(tensors_of(case.calls[0]()))
    held: deque[object] = deque(maxlen=BUFFERS)  # results, so that they take turns as well

    def sampler(calls: Calls) -> Callable[[], float]:
        holding = [lambda call=call: held.append(call()) for call in calls]
        return partial(measure.time_calls, holding, device, max(1, sizes.launches // len(calls)))

    samples = {"copy": sampler(copy.calls(moved)), "kernel": sampler(case.calls)}
    if case.rival:
        samples["torch"] = sampler(case.rival)
    for sample in samples.values():
        sample()
        held.clear()
    taken = measure.interleaved(samples, sizes.rounds)
    shares = [100 * c / k for c, k in zip(taken["copy"], taken["kernel"], strict=True)]
    spreads = {name: measure.Spread.of(seconds) for name, seconds in taken.items()}
    share = measure.Spread.of(shares)
    record = {"name": row.name, "bytes": moved, **spreads["kernel"].scaled(1e3).record("milliseconds")}
    record |= {
        "terabytes_per_second": moved / spreads["kernel"].median / 1e12,
        "copy_terabytes_per_second": moved / spreads["copy"].median / 1e12,
        **share.record("percent_of_copy"),
        "goal": row.goal,
        "reached": share.median >= row.goal,
    }
    if "torch" in spreads:
        record |= spreads["torch"].scaled(1e3).record("torch_milliseconds")
    return record


def print_row(table: measure.Table, record: dict) -> None:
    if "error" in record:
        table.row([record["name"], *["-"] * 6, record["error"]])
        return
    share = measure.Spread(*(record[f"percent_of_copy{part}"] for part in ("", "_lower_quartile", "_upper_quartile")))
    rival = record.get("torch_milliseconds")
    table.row(
        [
            record["name"],
            f"{record['bytes'] / 1e6:.1f}",
            f"{record['milliseconds']:.4f}",
            f"{record['terabytes_per_second']:.3f}",
            share.text(1),
            f"{record['goal']:.0f}",
            None if rival is None else f"{rival:.4f}",
            "ok" if record["reached"] else "below",
        ]
    )


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", default="", metavar="REGEX", help="only rows whose name matches")
    parser.add_argument("--state", action="store_true", help="give randomized ops a state tensor instead of none")
    parser.add_argument("--rounds", type=int, help="pairs of samples per row")
    arguments = parser.parse_args()
    device = measure.chosen_device(arguments)
    sizes = SMOKE if arguments.smoke else FULL
    if arguments.rounds:
        sizes = Sizes(sizes.elements, sizes.pool, arguments.rounds, sizes.launches)

    record = {"benchmark": "cuda_kernels", "machine": measure.machine(device)}
    kernels = Kernels(sizes, device, arguments.state)
    record["settings"] = {
        "elements": sizes.elements,
        "pool_shape": sizes.pool,
        "rounds": sizes.rounds,
        "launches_per_sample": sizes.launches,
        "without_rng_state": [op for op in RANDOMIZED if kernels.state(getattr(ops, op)) is None],
        "mean_bits_per_sample": kernels.sample_bits().float().mean().item(),
    }
    measure.print_machine(record["machine"])
    print("  ".join(f"{key} {value}" for key, value in record["settings"].items()), end="\n\n")
    columns = {"name": 56, "MB moved": 8, "ms": 8, "TB/s": 6, "% of copy (quartiles)": 21, "goal": 4, "torch ms": 8}
    table = measure.Table({**columns, "": 5})

    copy = Copy(device)
    record["rows"] = []
    pooling = False
    for row in kernels.rows():
        if not re.search(arguments.rows, row.name):
            continue
        try:
            if row.name.startswith("max_pool") and not pooling:
                pooling = True
                kernels.forget()
                measure.release_memory(device)
            result = measure_row(row, copy, sizes, device)
        except (RuntimeError, ValueError, TypeError) as error:  # NotImplementedError: the device has no kernel
            result = {"name": row.name, "error": measure.one_line(error)}
        record["rows"].append(result)
        print_row(table, result)

    measured = [row for row in record["rows"] if "error" not in row]
    failed = len(record["rows"]) - len(measured)
    print(
        f"\n{sum(row['reached'] for row in measured)} of {len(record['rows'])} rows reach their goal, {failed} failed"
    )
    measure.write_json(measure.output_path(arguments, "cuda_kernels"), record)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
