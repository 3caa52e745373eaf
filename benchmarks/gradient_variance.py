"""What per-group ranges and adaptive bits do to the noise of the gradient: at one trained state, on fixed batches.

The noise is the variance of the gradient over draws of the rounding / the squared norm of the exact gradient of the
same batch. A ResNet-20 is trained on Fashion-MNIST with exact activations, or loaded; then its layers are converted in
one way after the other. Compare the table of Chen et al., "ActNN" (ICML 2021), section 5.2.

    .venv/bin/python benchmarks/gradient_variance.py --bits 2,4
    .venv/bin/python benchmarks/gradient_variance.py --bits 2 --exact-batch-norm         # of the other layers alone
    .venv/bin/python benchmarks/gradient_variance.py --checkpoint runs/resnet20.pt  # trained and written if missing
    .venv/bin/python benchmarks/gradient_variance.py --device cpu --steps 500 --bits 2,4 --draws 16
    .venv/bin/python benchmarks/gradient_variance.py --table benchmarks/results/gradient_variance.json
    .venv/bin/python benchmarks/gradient_variance.py --smoke --device cpu
"""

import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import measure
import torch
import trained_state
import training
from images import Batch, Images
from measure import actnn
from options import DTYPES, Options, add_options, chosen_options, names
from torch import Tensor, nn
from training import SEED_OF_BATCHES, loss_of

BLOCKS = 4  # the draws of a batch are taken in as many parts, whose spread gives the standard error
BATCHES_COMPARED = 16


# --- the ways to spend bits -------------------------------------------------------------------------------------------


def variant(bits: int, **flags: bool) -> actnn.Config:
    return actnn.Config("L3", activation_compression_bits=[bits], **flags)


VARIANTS: dict[str, Callable[[int], actnn.Config] | None] = {
    "exact": None,
    "per tensor": partial(variant, pergroup=False, **training.FIXED),
    "per group": partial(variant, **training.FIXED),
    "+ per sample": partial(variant, perlayer=False),
    "+ per layer": variant,
    "+ gradient table": partial(variant, use_gradient=True),
}
"""Each adds to the one before."""
SHORT = {name.removeprefix("+ ").replace(" ", "-"): name for name in VARIANTS}
"""As they are called on the command line."""


# --- measuring --------------------------------------------------------------------------------------------------------


def squared_norm(tensors: list[Tensor]) -> float:
    return sum(tensor.double().square().sum().item() for tensor in tensors)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


@dataclass
class Measured:
    """One variant on one batch."""

    noise: list[float]
    """Of each block of draws."""
    off: float
    """Squared distance of the mean gradient from the exact one / what the noise makes of it: about 1 without a bias."""
    activation_bytes: int
    bits: float | None
    predicted: float | None


def measure_batch(
    model: nn.Module, config: actnn.Config | None, batch: Batch, exact: list[Tensor], draws: int, dtype: torch.dtype
) -> Measured:
    """Of a model that was just converted. Bits and gradient norms come from one backward before, on this batch."""
    total = [torch.zeros_like(gradient, dtype=torch.float64) for gradient in exact]

    def backward() -> None:
        loss_of(model, batch, config, dtype).backward()
        for mean, gradient in zip(total, gradients(model), strict=True):
            mean += gradient

    loss_of(model, batch, config, dtype).backward()
    per_block = draws // BLOCKS
    noise = [actnn.measure_gradient_noise(model, backward, per_block) for _ in range(BLOCKS)]
    predicted = math.nan if config is None else actnn.predicted_gradient_noise(config)
    mean = [tensor / (BLOCKS * per_block) for tensor in total]
    distance = squared_norm([m - e for m, e in zip(mean, exact, strict=True)])
    expected = statistics.fmean(noise) * squared_norm(exact) / (BLOCKS * per_block)
    with training.bits_used(model) as bits:
        held, _ = training.bytes_held(model, partial(loss_of, model, batch, config, dtype))
        used = bits()
    off = distance / expected if config is not None and expected > 0 else math.nan
    return Measured(noise, off, held, used, predicted if math.isfinite(predicted) else None)


def row_of(name: str, bits: int, measured: list[Measured]) -> dict:
    """The mean over batches. The error is that of the draws: the batches are the same for all variants."""
    errors = [statistics.stdev(m.noise) / math.sqrt(len(m.noise)) for m in measured]
    predicted = [m.predicted for m in measured]
    return {
        "variant": name,
        "bits": None if name == "exact" else bits,
        "noise": statistics.fmean(statistics.fmean(m.noise) for m in measured),
        "noise_error": math.sqrt(sum(error**2 for error in errors)) / len(errors),
        "noise_of_batches": [statistics.fmean(m.noise) for m in measured],
        "predicted_noise": None if None in predicted else statistics.fmean(predicted),
        "mean_off": statistics.fmean(m.off for m in measured),
        "activation_bytes": statistics.fmean(m.activation_bytes for m in measured),
        "average_bits": None if name == "exact" else statistics.fmean(m.bits for m in measured),
    }


def noise_of_sampling(model: nn.Module, batches: list[Batch], dtype: torch.dtype) -> float:
    """What the choice of the batch does, in the unit of noise: variance of exact gradients / mean squared norm."""
    spread = torch.classes.actnn.GradientNoise()
    for batch in batches:
        model.zero_grad()
        loss_of(model, batch, None, dtype).backward()
        spread.add(gradients(model))
    return spread.variance() / (spread.variance() + spread.squared_norm())


@dataclass
class Study:
    model: nn.Module
    """Trained, with exact activations. Its buffers are not kept."""
    train: Images
    options: Options
    exact_batch_norm: bool = False
    """Batch norms keep what torch's do: the noise of the other layers' copies alone."""

    def __post_init__(self) -> None:
        self.dtype = DTYPES[self.options.dtype]
        self.model.train()
        endless = self.train.batches(self.options.batch, SEED_OF_BATCHES, self.options.augmentation)
        self.batches = list(islice(endless, max(BATCHES_COMPARED, self.options.noise_batches)))

    def exact_gradient(self, batch: Batch) -> list[Tensor]:
        model = copy.deepcopy(self.model)
        loss_of(model, batch, None, self.dtype).backward()
        return gradients(model)

    def sampling(self) -> float:
        return noise_of_sampling(copy.deepcopy(self.model), self.batches[:BATCHES_COMPARED], self.dtype)

    def row(self, name: str, bits: int) -> dict:
        measured = []
        for batch in self.batches[: self.options.noise_batches]:
            model = copy.deepcopy(self.model)
            make = VARIANTS[name]
            config = make(bits) if make else None
            if config is not None:
                config.enable_quantized_bn = not self.exact_batch_norm
            training.convert(model, config, len(self.train))
            exact = self.exact_gradient(batch)
            measured.append(measure_batch(model, config, batch, exact, self.options.draws, self.dtype))
        return row_of(name, bits, measured)


# --- the command line -------------------------------------------------------------------------------------------------


def cells(row: Mapping, rows: list[Mapping]) -> dict[str, str | None]:
    group = next((r for r in rows if r["variant"] == "per group" and r["bits"] == row["bits"]), None)
    ratio = row["noise"] / group["noise"] if group and group["noise"] else None
    predicted, off = row["predicted_noise"], row["mean_off"]
    return {
        "variant": row["variant"],
        "bits": None if row["bits"] is None else str(row["bits"]),
        "noise (se)": f"{row['noise']:.3g} ({row['noise_error']:.1g})",
        "to per group": None if ratio is None else f"{ratio:.2f}",
        "predicted": None if predicted is None else f"{predicted:.3g}",
        "mean off": None if off is None or not math.isfinite(off) else f"{off:.2f}",
        "MiB held": f"{row['activation_bytes'] / measure.MIB:.2f}",
        "bits used": None if row["average_bits"] is None else f"{row['average_bits']:.2f}",
    }


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    add_options(parser)
    parser.add_argument("--bits", default="2", help="on average, comma-separated, of 1 to 8 (default: 2)")
    parser.add_argument("--variants", default=",".join(SHORT), help=f"comma-separated, of {', '.join(SHORT)}")
    parser.add_argument("--exact-batch-norm", action="store_true", help="do not convert batch norms")
    trained_state.add_options(parser)
    arguments = parser.parse_args(command_line)
    if arguments.table:
        rows = json.loads(arguments.table.read_text())["rows"]
        measure.print_markdown([cells(row, rows) for row in rows])
        return 0

    options = chosen_options(arguments)
    if options.draws < 2 * BLOCKS:
        raise SystemExit(f"--draws must be {2 * BLOCKS} or more, got {options.draws}")
    chosen = [SHORT[name] for name in names(arguments.variants, SHORT, "variants")]
    widths = [int(width) for width in names(arguments.bits, {str(b): b for b in range(1, 9)}, "bits")]
    path = measure.output_path(arguments, "gradient_variance")
    record, model, train = trained_state.start("gradient_variance", arguments, options)

    record["exact_batch_norm"] = arguments.exact_batch_norm
    study = Study(model, train, options, arguments.exact_batch_norm)
    record["noise_of_sampling"] = study.sampling()
    print(f"noise of the choice of the batch: {record['noise_of_sampling']:.3g}\n", flush=True)
    wanted = [(name, bits) for bits in widths for name in chosen if name != "exact"]
    if "exact" in chosen:
        wanted.insert(0, ("exact", 0))
    rows = record["rows"]
    for name, bits in wanted:
        rows.append(study.row(name, bits))
        measure.save(path, record)
        print(f"{name}, {bits} bits: noise {rows[-1]['noise']:.3g}" if bits else name, flush=True)
    print()
    measure.print_rows([cells(row, rows) for row in rows])
    print("\nse: standard error over draws. Predicted: of the weights of convolutions and linear layers only")
    print("Mean off: squared distance of the mean gradient from the exact one, over what is expected without a bias")
    if path is not None:
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
