"""A training step with exact and with compressed activations: memory and speed, beside the usual ways to save memory.

Every variant is built and warmed up, and the memory of one of its steps measured; then all are timed in turn, a few
steps each, for some rounds. A variant that fails is a row that says why. 1 MiB = 2^20 bytes.

    .venv/bin/python benchmarks/training_step.py --model resnet50
    .venv/bin/python benchmarks/training_step.py --model bert-large --variants exact-amp,actnn4-amp
    .venv/bin/python benchmarks/training_step.py --model resnet50 --smoke --device cpu
"""

import gc
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import measure
import models
import torch
import torch.nn.functional as F  # noqa: N812
from measure import MIB, actnn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHECKPOINTED = ("Bottleneck", "BertLayer")
BASELINE = "exact-amp"


# --- what is trained --------------------------------------------------------------------------------------------------


class ResNet50:
    """Images with random labels, SGD with momentum. float32 is contiguous, bfloat16 channels_last."""

    def __init__(self, smoke: bool, batch: int | None):
        self.batch = batch or (4 if smoke else 128)
        self.pixels, self.classes = (32, 10) if smoke else (224, 1000)
        self.blocks, self.width = ((1, 1), 8) if smoke else ((3, 4, 6, 3), 64)

    def text(self) -> str:
        return f"ResNet-50, {self.batch} images of {self.pixels} x {self.pixels} pixels, SGD with momentum"

    def model(self, amp: bool, device: torch.device) -> nn.Module:
        model = models.ResNet(self.blocks, self.width, self.classes).to(device)
        return model.to(memory_format=torch.channels_last) if amp else model

    def inputs(self, amp: bool, device: torch.device) -> tuple[Tensor, ...]:
        images = torch.randn(self.batch, 3, self.pixels, self.pixels, device=device)
        form = torch.channels_last if amp else torch.contiguous_format
        return images.contiguous(memory_format=form), torch.randint(self.classes, (self.batch,), device=device)

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels)

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


class BertLarge:
    """Sequences of random words, 15 % of them to be predicted; AdamW (fused)."""

    def __init__(self, smoke: bool, batch: int | None):
        self.batch = batch or (2 if smoke else 32)
        self.sizes = models.BertSizes()
        if smoke:
            self.sizes = models.BertSizes(vocabulary=96, hidden=32, layers=2, heads=2, intermediate=64, positions=32)

    def text(self) -> str:
        return f"BERT-large, {self.batch} sequences of {self.sizes.positions} words, AdamW (fused)"

    def model(self, amp: bool, device: torch.device) -> nn.Module:
        return models.make_bert(self.sizes).to(device).train()

    def inputs(self, amp: bool, device: torch.device) -> tuple[Tensor, ...]:
        shape = (self.batch, self.sizes.positions)
        words = torch.randint(self.sizes.vocabulary, shape, device=device)
        return words, words.masked_fill(torch.rand(shape, device=device) > 0.15, -100)

    def loss(self, model: nn.Module, words: Tensor, labels: Tensor) -> Tensor:
        return model(words, labels)

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


WORKLOADS = {"resnet50": ResNet50, "bert-large": BertLarge}


# --- how it is trained ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    amp: bool
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model


def with_checkpoints(model: nn.Module) -> nn.Module:
    blocks = [module for module in model.modules() if type(module).__name__ in CHECKPOINTED]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def converted(bits: int, model: nn.Module, level: str = "L2") -> nn.Module:
    """Layer by layer. L2: the same bits for all layers and samples. L3: on average, by sensitivity."""
    actnn.convert(model, actnn.Config(level, activation_compression_bits=[bits]), blocks=False)
    return model


def with_blocks(bits: int, model: nn.Module, **options) -> nn.Module:
    config = actnn.Config("L2", activation_compression_bits=[bits])
    report = actnn.convert(model, config, blocks=actnn.BlockOptions(**options))
    if not report.blocks:
        raise ValueError("there are no blocks in this model")
    return model


VARIANTS = {
    "exact-fp32": Variant(amp=False),
    "exact-amp": Variant(amp=True),
    "checkpoint-amp": Variant(amp=True, prepare=with_checkpoints),
    "compile-amp": Variant(amp=True, prepare=torch.compile),
    "actnn4-amp": Variant(amp=True, prepare=partial(converted, 4)),
    "actnn2-amp": Variant(amp=True, prepare=partial(converted, 2)),
    "adaptive2-amp": Variant(amp=True, prepare=partial(converted, 2, level="L3")),
    "blocks4-amp": Variant(amp=True, prepare=partial(with_blocks, 4)),
    "blocks3-amp": Variant(amp=True, prepare=partial(with_blocks, 3)),
    "stored4-amp": Variant(amp=True, prepare=partial(with_blocks, 4, recompute=False)),
    "actnn4-fp32": Variant(amp=False, prepare=partial(converted, 4)),
}
ONLY_RESNET = ("blocks4-amp", "blocks3-amp", "stored4-amp")


def default_names(model: str, smoke: bool) -> list[str]:
    left_out = {"compile-amp"} if smoke else {"actnn4-fp32"}  # compiling takes its time
    left_out.update(ONLY_RESNET if model != "resnet50" else ())
    return [name for name in VARIANTS if name not in left_out]


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def forget_workspaces() -> None:
    """cuBLAS keeps its workspace; without this the first variant would pay for all."""
    if hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
        torch._C._cuda_clearCublasWorkspaces()


@dataclass
class Run:
    """One variant: its model, and what was measured of it. `base` is what others hold on the device."""

    name: str
    workload: ResNet50 | BertLarge
    device: torch.device
    milliseconds: list[float] = field(default_factory=list)
    activations: int | None = None
    peak: int | None = None
    first_loss: float | None = None

    def __post_init__(self):
        forget_workspaces()
        measure.release_memory(self.device)
        self.base = allocated(self.device)
        variant = VARIANTS[self.name]
        torch.manual_seed(0)
        self.amp = variant.amp
        with self.device:  # initialized there: quicker
            model = self.workload.model(self.amp, self.device)
        self.optimizer = self.workload.optimizer(model, self.device)
        self.inputs = self.workload.inputs(self.amp, self.device)
        self.model = variant.prepare(model)

    def forward(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            return self.workload.loss(self.model, *self.inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.backward(self.forward())

    def warm_up(self, steps: int) -> None:
        loss = self.forward()
        self.first_loss = loss.item()
        self.backward(loss)
        del loss
        for _ in range(steps - 1):
            self.step()
        measure.synchronize(self.device)

    def measure_memory(self, steps: int) -> None:
        """The largest of some steps. Activations: what is held right after forward, and was not before."""
        if self.device.type != "cuda":
            return
        held = []
        torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(steps):
            before = allocated(self.device)
            loss = self.forward()
            held.append(allocated(self.device) - before)
            self.backward(loss)
            del loss
        self.activations = max(held)
        self.peak = torch.cuda.max_memory_allocated(self.device) - self.base

    def measure_time(self, steps: int, warm_up: int = 2) -> None:
        measure.release_memory(self.device)  # of the variant before
        for _ in range(warm_up):
            self.step()
        watches = [measure.Stopwatch(self.device) for _ in range(steps)]
        for watch in watches:
            watch.start()
            self.step()
            watch.stop()
        self.milliseconds += [1000 * watch.seconds() for watch in watches]


class Runs:
    """The variants that have not failed, and why the others did."""

    def __init__(self, names: list[str], workload: ResNet50 | BertLarge, device: torch.device):
        self.names, self.workload, self.device = names, workload, device
        self.alive: dict[str, Run] = {}
        self.errors: dict[str, str] = {}

    def attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever one variant does, the others are measured
            self.errors[name] = measure.one_line(error)
            traceback.print_exc(limit=-4)
        if name in self.errors:  # outside of the except clause, whose traceback holds tensors
            print(f"{name} failed: {self.errors[name]}", flush=True)
            self.alive.pop(name, None)
            gc.collect()

    def build(self, name: str) -> None:
        run = Run(name, self.workload, self.device)
        self.alive[name] = run
        run.warm_up(3)
        run.measure_memory(2)

    def measure(self, rounds: int, steps: int) -> None:
        for name in self.names:
            print(f"building {name}", flush=True)
            self.attempt(name, partial(self.build, name))
        for _ in range(rounds):
            for name in list(self.alive):
                self.attempt(name, partial(self.alive[name].measure_time, steps))

    def record(self, name: str) -> dict:
        variant = VARIANTS[name]
        record = {"variant": name, "dtype": "bfloat16 autocast" if variant.amp else "float32"}
        if name in self.errors:
            return record | {"error": self.errors[name]}
        run = self.alive[name]
        time = measure.Spread.of(run.milliseconds)
        record |= {"activation_bytes": run.activations, "peak_bytes": run.peak, **time.record("milliseconds")}
        record |= {"samples_per_second": 1000 * self.workload.batch / time.median, "first_loss": run.first_loss}
        if BASELINE in self.alive:
            exact = self.alive[BASELINE]
            record["speed_against_exact_amp"] = measure.Spread.of(exact.milliseconds).median / time.median
            if run.activations:
                record["activations_against_exact_amp"] = exact.activations / run.activations
        return record


def print_rows(rows: list[dict]) -> None:
    table = measure.Table(
        {
            "variant": 14,
            "activations MiB": 15,
            "peak MiB": 9,
            "ms (quartiles)": 24,
            "samples/s": 9,
            "speed": 7,
            "less": 7,
        }
    )
    for row in rows:
        if "error" in row:
            print(f"{row['variant']:<14}  {row['error']}")
            continue
        time = measure.Spread(*(row[f"milliseconds{part}"] for part in ("", "_lower_quartile", "_upper_quartile")))
        memory = [
            None if row[f"{key}_bytes"] is None else f"{row[f'{key}_bytes'] / MIB:.0f}"
            for key in ("activation", "peak")
        ]
        ratios = [row.get(f"{key}_against_exact_amp") for key in ("speed", "activations")]
        ratios = [None if ratio is None else f"{ratio:.2f} x" for ratio in ratios]
        table.row([row["variant"], *memory, time.text(2), f"{row['samples_per_second']:.1f}", *ratios])
    print(f"\nspeed, less: against {BASELINE}, times as fast and times less activation memory")


def variant_names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise SystemExit(f"unknown variants {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    return names


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", choices=WORKLOADS, default="resnet50")
    parser.add_argument(
        "--variants",
        help=f"comma-separated, of {', '.join(VARIANTS)} (default: all that the model has but actnn4-fp32)",
    )
    parser.add_argument("--batch", type=int, help="samples of a step (default: 128 images, 32 sequences)")
    parser.add_argument("--rounds", type=int, help="how often all variants take their turn (default: 5)")
    parser.add_argument("--steps", type=int, help="timed steps of a turn (default: 6)")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms (torch: off)")
    arguments = parser.parse_args()
    device = measure.chosen_device(arguments)
    torch.backends.cudnn.benchmark = arguments.cudnn_benchmark
    workload = WORKLOADS[arguments.model](arguments.smoke, arguments.batch)
    names = variant_names(arguments.variants) if arguments.variants else default_names(arguments.model, arguments.smoke)
    rounds, steps = arguments.rounds or (2 if arguments.smoke else 5), arguments.steps or (2 if arguments.smoke else 6)

    record = {"benchmark": "training_step", "machine": measure.machine(device)}
    measure.print_machine(record["machine"])
    runs = Runs(names, workload, device)
    runs.measure(rounds, steps)

    example = next(iter(runs.alive.values()), None)
    record["settings"] = {
        "model": arguments.model,
        "implementation": None
        if example is None
        else type(getattr(example.model, "_orig_mod", example.model)).__name__,
        "batch": workload.batch,
        "optimizer": None if example is None else type(example.optimizer).__name__,
        "rounds": rounds,
        "steps": steps,
        "cudnn_benchmark": arguments.cudnn_benchmark,
    }
    record["rows"] = [runs.record(name) for name in names]
    print(f"\n{workload.text()}{' (tiny sizes instead)' if arguments.smoke else ''}")
    if device.type == "cuda":
        tf32 = [f"{what} {'TF32' if record['machine'][key] else 'IEEE'}" for what, key in
                (("convolutions", "cudnn_tf32"), ("matrix products", "matmul_tf32"))]  # fmt: skip
        print(f"float32: {', '.join(tf32)}")
    print()
    print_rows(record["rows"])
    measure.write_json(measure.output_path(arguments, f"training_step_{arguments.model}"), record)
    return 0 if runs.alive else 1


if __name__ == "__main__":
    sys.exit(main())
