"""Accuracy after training with exact and with compressed activations, seed by seed: ResNet-20 on Fashion-MNIST.

All settings of a seed begin with the same weights and see the same images in the same order, moved and flipped alike.
So the difference to exact is taken seed by seed. The results are written after every run.

    .venv/bin/python benchmarks/accuracy.py                                    # 5 seeds, 4000 steps of 128 images
    .venv/bin/python benchmarks/accuracy.py --resume                           # what is missing in the results
    .venv/bin/python benchmarks/accuracy.py --device cpu --width 8 --batch 64 --steps 400 --images 10000 --seeds 3
    .venv/bin/python benchmarks/accuracy.py --table benchmarks/results/accuracy.json     # the table, as Markdown
    .venv/bin/python benchmarks/accuracy.py --smoke --device cpu               # does the program run?
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import images
import measure
import models
import torch
import torch.nn.functional as F  # noqa: N812
from images import Batch, Images
from measure import actnn
from torch import Tensor, nn

MOMENTUM, WEIGHT_DECAY, WARM_UP = 0.9, 5e-4, 0.05  # those of `actnn train`; the last is a share of all steps
UNTIMED = 5  # first steps
LOOKS = 10  # how often in a run bytes and bits are looked at
TEST_BATCH = 500
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# --- the settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    text: str
    config: Callable[[], actnn.Config] | None = None
    corrected: bool = False
    """Whether predictions of the noise are corrected by measurements now and then."""


FIXED = {"adaptive_conv_scheme": False, "adaptive_bn_scheme": False}
SETTINGS = {
    "exact": Setting("exact activations"),
    "L1": Setting("4 bits, batch norms exact", partial(actnn.Config, "L1")),
    "L2": Setting("4 bits", partial(actnn.Config, "L2")),
    "L3": Setting("2 bits on average, by layer and sample", partial(actnn.Config, "L3")),
    "fixed-2": Setting("2 bits", partial(actnn.Config, "L3", **FIXED)),
    "L3-gradient": Setting("L3, a gradient norm per training image", partial(actnn.Config, "L3", use_gradient=True)),
    "noise-0.05": Setting("noise target 0.05", partial(actnn.Config, "L3", noise_target=0.05), corrected=True),
}


# --- one step ---------------------------------------------------------------------------------------------------------


def make_model(seed: int, width: int, device: torch.device) -> nn.Sequential:
    torch.manual_seed(seed)
    return models.resnet20(width).to(device)


def convert(model: nn.Module, config: actnn.Config | None, training_images: int) -> None:
    if config is not None:
        actnn.convert(model, config)
        config.policy.set_num_samples(training_images)


def loss_of(model: nn.Module, batch: Batch, config: actnn.Config | None, dtype: torch.dtype) -> Tensor:
    if config is not None and config.use_gradient:
        config.policy.set_batch(batch.indices)
    with torch.autocast(batch.images.device.type, dtype, enabled=dtype != torch.float32):
        logits = model(batch.images)
    return F.cross_entropy(logits.float(), batch.labels)


def bytes_held(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """(bytes of storage that autograd holds for backward after `forward()`, what it returned).

    Each storage counts once, however many tensors are views of it. Parameters and buffers do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    return sum(size for pointer, size in storages.items() if pointer not in own), result


@contextmanager
def bits_used(model: nn.Module) -> Iterator[Callable[[], float | None]]:
    """Of the forward inside: bits per element that convolutions, linear layers and batch norms copied, or None."""
    copied: list[tuple[int, float]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        bits = layer.config.activation_compression_bits[layer.group] if layer.scheme is None else layer.scheme.bits
        copied.append((inputs[0].numel(), bits))

    def average() -> float | None:
        return sum(count * bits for count, bits in copied) / sum(count for count, _ in copied) if copied else None

    planned = [module for module in model.modules() if isinstance(module, actnn.layers.PlannedLayer)]
    handles = [module.register_forward_hook(note) for module in planned]
    try:
        yield average
    finally:
        for handle in handles:
            handle.remove()


def noise_of(
    model: nn.Module, config: actnn.Config | None, batches: Iterable[Batch], draws: int, dtype: torch.dtype
) -> list[float]:
    """The noise of the gradient of each batch, with the bits that a backward of the same batch leads to."""
    result = []
    for batch in batches:

        def backward(batch: Batch = batch) -> None:
            loss_of(model, batch, config, dtype).backward()

        backward()
        result.append(actnn.measure_gradient_noise(model, backward, draws))
    model.zero_grad()
    return result


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What results depend on. Those that `--resume` adds to must have the same."""

    steps: int = 4000
    batch: int = 128
    width: int = 16
    lr: float = 0.1
    device: str = "cuda"
    dtype: str = "float32"
    images: int | None = None
    test_images: int | None = None
    synthetic: bool = False
    draws: int = 8
    noise_batches: int = 4
    corrections: int = 10


SMOKE = Options(steps=12, batch=32, width=4, images=512, test_images=256, synthetic=True, draws=8, noise_batches=1)


def load_images(options: Options, folder: Path | None, device: torch.device) -> tuple[Images, Images]:
    """(for training, for testing)"""
    if options.synthetic:
        counts = options.images or 512, options.test_images or 256
        return tuple(images.synthetic(count, seed, device) for seed, count in enumerate(counts))
    folder = images.find_folder(folder)
    return (
        images.load(folder, "train", options.images, device),
        images.load(folder, "t10k", options.test_images, device),
    )


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm_up = math.ceil(WARM_UP * steps)
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def digest(tensors: Iterable[Tensor]) -> str:
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()[:16]


@torch.no_grad()
def accuracy(model: nn.Module, test: Images, dtype: torch.dtype) -> float:
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=test.labels.device)
    for batch in test.in_order(TEST_BATCH):
        with torch.autocast(batch.images.device.type, dtype, enabled=dtype != torch.float32):
            correct += (model(batch.images).argmax(1) == batch.labels).sum()
    model.train()
    return correct.item() / len(test)


@dataclass
class Clock:
    """Seconds of the steps that are timed: by the clock, and of the process's processors."""

    device: torch.device
    steps: int = 0
    wall: float = 0.0
    processor: float = 0.0
    started: tuple[float, float] | None = None

    def start(self) -> None:
        if self.started is None:
            measure.synchronize(self.device)
            self.started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        if self.started is not None:
            measure.synchronize(self.device)
            self.wall += time.perf_counter() - self.started[0]
            self.processor += time.process_time() - self.started[1]
            self.started = None

    def record(self) -> dict[str, float | None]:
        per_step = [seconds / self.steps if self.steps else None for seconds in (self.wall, self.processor)]
        return {"seconds_per_step": per_step[0], "processor_seconds_per_step": per_step[1]}


@dataclass
class Run:
    """Trains one model in one setting from one seed."""

    options: Options
    setting: str
    seed: int
    train: Images
    device: torch.device
    trace: list[dict] = field(default_factory=list)
    corrections: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dtype = DTYPES[self.options.dtype]
        self.model = make_model(self.seed, self.options.width, self.device)
        self.initialization = digest(self.model.state_dict().values())
        setting = SETTINGS[self.setting]
        self.config = setting.config() if setting.config else None
        convert(self.model, self.config, len(self.train))
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=self.options.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        self.clock = Clock(self.device)
        self.losses: list[Tensor] = []
        torch.manual_seed(self.seed)  # for the noise: whatever building and converting drew

    def times(self, count: int) -> set[int]:
        """`count` steps, spread over the run, the last among them."""
        steps = self.options.steps
        return {round((i + 1) * steps / count) - 1 for i in range(count)} if count else set()

    def fit(self) -> None:
        options = self.options
        looks = self.times(min(LOOKS, options.steps))
        corrected = self.config is not None and SETTINGS[self.setting].corrected
        corrections = self.times(min(options.corrections, options.steps)) if corrected else set()
        order = hashlib.sha256()
        self.model.train()
        for step, batch in enumerate(islice(self.train.batches(options.batch, self.seed), options.steps)):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, options.steps, options.lr)
            order.update(batch.indices.cpu().numpy().tobytes())
            timed = step >= min(UNTIMED, options.steps // 2) and step not in looks
            if timed:
                self.clock.start()
                self.clock.steps += 1
            else:
                self.clock.stop()
            self.step(step, batch, look=step in looks)
            if step in corrections:
                self.clock.stop()
                self.correct(step, batch)
        self.clock.stop()
        self.order = order.hexdigest()[:16]

    def step(self, step: int, batch: Batch, look: bool) -> None:
        forward = partial(loss_of, self.model, batch, self.config, self.dtype)
        if look:
            with bits_used(self.model) as bits:
                held, loss = bytes_held(self.model, forward)
                self.trace.append({"step": step, "bytes": held, "bits": bits(), "loss": loss.item()})
        else:
            loss = forward()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.detach())

    def correct(self, step: int, batch: Batch) -> None:
        def backward() -> None:
            loss_of(self.model, batch, self.config, self.dtype).backward()

        measured = actnn.measure_gradient_noise(self.model, backward, draws=2, correct=self.config)
        factor = self.config.policy.noise_correction()
        self.corrections.append({"step": step, "measured_noise": measured, "factor": factor})

    def record(self, test: Images) -> dict:
        losses = torch.stack(self.losses)
        result = {
            "setting": self.setting,
            "seed": self.seed,
            "initialization": self.initialization,
            "order": self.order,
            "first_loss": losses[0].item(),
            "final_loss": losses[-min(50, len(losses)) :].mean().item(),
            "test_accuracy": accuracy(self.model, test, self.dtype),
        }
        # The same batches for all runs.
        batches = list(islice(self.train.batches(self.options.batch, seed=2**20), self.options.noise_batches))
        noise = noise_of(self.model, self.config, batches, self.options.draws, self.dtype)
        predicted = math.nan if self.config is None else actnn.predicted_gradient_noise(self.config)
        bits = [look["bits"] for look in self.trace]
        return result | {
            "noise": statistics.fmean(noise),
            "noise_of_batches": noise,
            "predicted_noise": predicted if math.isfinite(predicted) else None,  # none without adaptive bits
            "activation_bytes": statistics.fmean(look["bytes"] for look in self.trace),
            "bits": None if None in bits else statistics.fmean(bits),
            **self.clock.record(),
            "trace": self.trace,
            "corrections": self.corrections,
        }


# --- all runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanSpread:
    """A mean, and the spread of what it is of (standard deviation, n - 1); the spread of one is not known."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: list[float]) -> "MeanSpread":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def error(self) -> float | None:
        """The standard error of the mean."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)


def summary(runs: list[Mapping]) -> list[dict]:
    """One row per setting, in the order of the first runs."""
    exact = {run["seed"]: run for run in runs if run["setting"] == "exact"}
    rows = []
    for setting in dict.fromkeys(run["setting"] for run in runs):
        own = [run for run in runs if run["setting"] == setting]

        def mean(key: str, own: list[Mapping] = own) -> float | None:
            values = [run[key] for run in own if run[key] is not None]
            return statistics.fmean(values) if values else None

        points = MeanSpread.of([100 * run["test_accuracy"] for run in own])
        paired = [100 * (run["test_accuracy"] - exact[run["seed"]]["test_accuracy"]) for run in own
                  if run["seed"] in exact]  # fmt: skip
        difference = MeanSpread.of(paired) if paired and setting != "exact" else None
        rows.append(
            {
                "setting": setting,
                "seeds": len(own),
                "accuracy": points.mean,
                "accuracy_deviation": points.deviation,
                "difference": difference and difference.mean,
                "difference_error": difference and difference.error,
                **{key: mean(key) for key in MEANS},
            }
        )
    return rows


MEANS = ("noise", "predicted_noise", "activation_bytes", "bits", "seconds_per_step", "processor_seconds_per_step")


def with_spread(mean: float | None, spread: float | None, sign: str = "") -> str | None:
    if mean is None:
        return None
    return f"{mean:{sign}.2f}" + ("" if spread is None else f" ({spread:.2f})")


def cells(row: Mapping, exact_bytes: float | None) -> dict[str, str | None]:
    """A row's texts by column; accuracy with its standard deviation, the difference with its standard error."""

    def number(key: str, form: str, factor: float = 1) -> str | None:
        return None if row[key] is None else format(row[key] * factor, form)

    less = exact_bytes / row["activation_bytes"] if exact_bytes else None
    return {
        "setting": row["setting"],
        "seeds": str(row["seeds"]),
        "accuracy % (sd)": with_spread(row["accuracy"], row["accuracy_deviation"]),
        "to exact (se)": with_spread(row["difference"], row["difference_error"], "+"),
        "noise": number("noise", ".2g"),
        "predicted": number("predicted_noise", ".2g"),
        "MiB held": number("activation_bytes", ".2f", 1 / measure.MIB),
        "less": None if less is None else f"{less:.1f} x",
        "bits": number("bits", ".2f"),
        "ms/step": number("seconds_per_step", ".1f", 1000),
        "CPU ms": number("processor_seconds_per_step", ".1f", 1000),
    }


def table_rows(rows: list[Mapping]) -> list[dict[str, str | None]]:
    exact = next((row["activation_bytes"] for row in rows if row["setting"] == "exact"), None)
    return [cells(row, exact) for row in rows]


def print_table(rows: list[dict[str, str | None]]) -> None:
    columns = {key: max(len(key), *(len(row[key] or "-") for row in rows)) for key in rows[0]}
    table = measure.Table(columns)
    for row in rows:
        table.row(row.values())


def print_markdown(rows: list[dict[str, str | None]]) -> None:
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(text or '' for text in row.values())} |")


def save(path: Path | None, record: Mapping) -> None:
    """Replaces the file at once: it is never half written."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(measure.finite(record), indent=1) + "\n")
    os.replace(part, path)


# --- the command line -------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `Options`, whose defaults `--smoke` changes."""
    full = Options()
    parser.add_argument("--steps", type=int, help=f"of training (default: {full.steps})")
    parser.add_argument("--batch", type=int, help=f"images of a step (default: {full.batch})")
    parser.add_argument("--width", type=int, help=f"channels of the first stage (default: {full.width})")
    parser.add_argument("--lr", type=float, help=f"highest learning rate (default: {full.lr})")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 is autocast (default: float32)")
    parser.add_argument("--images", type=int, help="the first ones of the training images (default: all)")
    parser.add_argument("--test-images", type=int, help="the same for testing")
    parser.add_argument("--data", type=Path, help="folder of the idx files (default: data/fashion-mnist)")
    parser.add_argument("--synthetic", action="store_true", default=None, help="made-up images instead")
    parser.add_argument("--draws", type=int, help=f"backwards on a batch, for its noise (default: {full.draws})")
    parser.add_argument("--noise-batches", type=int, help=f"for the noise (default: {full.noise_batches})")
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's)")


def chosen_options(arguments: argparse.Namespace) -> Options:
    defaults = SMOKE if arguments.smoke else Options()
    given = {key: getattr(arguments, key, None) for key in Options.__dataclass_fields__}
    options = Options(**{key: getattr(defaults, key) if value is None else value for key, value in given.items()})
    if min(options.steps, options.batch, options.width, options.noise_batches) < 1 or options.draws < 2:
        raise SystemExit("--steps, --batch, --width and --noise-batches must be positive, --draws two or more")
    return options


def names(text: str, known: Mapping[str, object], what: str) -> list[str]:
    result = text.split(",")
    if unknown := [name for name in result if name not in known]:
        raise SystemExit(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return result


def previous_runs(path: Path | None, options: Mapping) -> list[dict]:
    if path is None or not path.exists():
        return []
    record = json.loads(path.read_text())
    if different := [key for key in options if record["options"].get(key) != options[key]]:
        raise SystemExit(f"{path} has results of other options ({', '.join(different)}): --resume cannot add to it")
    return record["runs"]


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--settings", default=",".join(SETTINGS), help=f"comma-separated, of {', '.join(SETTINGS)}")
    parser.add_argument("--seeds", type=int, help="how many, from --first-seed on (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--corrections", type=int, help="of predicted noise, in a run (default: 10)")
    parser.add_argument("--resume", action="store_true", help="add what is missing to the results in the output file")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print such results as Markdown, no run")
    add_options(parser)
    arguments = parser.parse_args(command_line)
    if arguments.table:
        print_markdown(table_rows(summary([run for f in arguments.table for run in json.loads(f.read_text())["runs"]])))
        return 0

    chosen = names(arguments.settings, SETTINGS, "settings")
    options = chosen_options(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = measure.chosen_device(arguments)
    path = measure.output_path(arguments, "accuracy")
    record = {"benchmark": "accuracy", "machine": measure.machine(device), "options": vars(options)}
    record["runs"] = previous_runs(path, record["options"]) if arguments.resume else []
    record["settings"] = {name: setting.text for name, setting in SETTINGS.items()}
    train, test = load_images(options, arguments.data, device)
    record["images"] = {"train": len(train), "test": len(test)}
    measure.print_machine(record["machine"])

    seeds = arguments.seeds or (2 if arguments.smoke else 5)
    done = {(run["setting"], run["seed"]) for run in record["runs"]}
    # All settings of a seed before the next seed: what there is can be compared at any time.
    for seed in range(arguments.first_seed, arguments.first_seed + seeds):
        for setting in chosen:
            if (setting, seed) in done:
                continue
            run = Run(options, setting, seed, train, device)
            run.fit()
            record["runs"].append(run.record(test))
            record["summary"] = summary(record["runs"])
            save(path, record)
            last = record["runs"][-1]
            print(f"seed {seed}  {setting:<12} accuracy {100 * last['test_accuracy']:.2f} %  noise {last['noise']:.3g}",
                  flush=True)  # fmt: skip
    print()
    print_table(table_rows(summary(record["runs"])))
    print("\nsd: standard deviation over seeds; se: standard error of the mean difference, seed by seed")
    if path is not None:
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
