"""Gradients with blocks against exact ones in float32: their noise and their bias, at one trained state.

A network is trained with exact activations, or loaded. Then copies of it run with every plan: bits of codes, bits of a
block's result, recomputation or not; and the exact layers in bfloat16, for their own error. Of each plan many gradients
of the same batches are drawn. TF32 is off in what is measured.

    .venv/bin/python benchmarks/gradient_quality.py --graph --checkpoint runs/resnet20.pt
    .venv/bin/python benchmarks/gradient_quality.py --device cpu --bits 4 --output-bits 4 --norm-bits 2,3,4
    .venv/bin/python benchmarks/gradient_quality.py --bits 3,4 --output-bits 3 --dtypes bfloat16 --draws 400
    .venv/bin/python benchmarks/gradient_quality.py --device cpu --width 8 --steps 300 --draws 100 --noise-batches 1
    .venv/bin/python benchmarks/gradient_quality.py --table benchmarks/results/gradient_quality.json
    .venv/bin/python benchmarks/gradient_quality.py --smoke --device cpu
"""

import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, product

import measure
import torch
import trained_state
import training
from images import Batch, Images
from measure import actnn
from options import DTYPES, Options, add_options, chosen_options, names
from step_graph import WARM_UP, capture, side_stream
from torch import Tensor, nn

COLUMNS = 2**20
WIDTHS = {str(bits): bits for bits in range(2, 9)}
EXACT_DRAWS = 2  # they are all alike, but for the order of additions on a GPU


@dataclass(frozen=True)
class Plan:
    dtype: str
    blocks: actnn.BlockOptions | None = None
    """None: exact layers."""


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """Draws of a gradient against the exact one. Squares are relative to the exact gradient's squared norm."""

    cosine: float
    """Of one draw, the mean."""
    projection: float
    """Of the mean gradient onto the exact one: 1 without a bias."""
    projection_error: float
    noise: float
    """Variance over draws."""
    mean_error: float
    """Squared distance of the mean gradient from the exact one; without a bias, noise / draws on average."""
    bias: float
    """What the noise does not explain of it, estimated without bias; may be below 0."""
    bias_error: float
    """Standard error of that if there is no bias."""

    @classmethod
    def of(cls, draws: Tensor, exact: Tensor) -> "Quality":
        """From draws [N, P] and the exact gradient [P]."""
        count, squared_norm = len(draws), exact.double().square().sum()
        errors = draws - exact
        # Entry i, j is the product of the errors of two draws: on average the squared bias, and the noise where i = j.
        products = torch.zeros(count, count, dtype=torch.float64, device=exact.device)
        along = torch.zeros(count, dtype=torch.float64, device=exact.device)
        for columns, of_exact in zip(errors.split(COLUMNS, 1), exact.split(COLUMNS), strict=True):
            part = columns.double()  # all of them would take twice the memory of the draws
            products += part @ part.T / squared_norm
            along += part @ of_exact.double() / squared_norm
        cosines = (1 + along) / (1 + 2 * along + products.diagonal()).sqrt()
        first, second = torch.triu_indices(count, count, 1)
        pairs = products[first, second]
        mean_error = products.mean()
        noise = (products.diagonal().mean() - mean_error) * count / (count - 1)
        return cls(
            cosine=cosines.mean().item(),
            projection=1 + along.mean().item(),
            projection_error=(along.std() / math.sqrt(count)).item(),
            noise=noise.item(),
            mean_error=mean_error.item(),
            bias=pairs.mean().item(),
            bias_error=(pairs.square().mean() / len(pairs)).sqrt().item(),
        )


def row_of(plan: Plan, draws: int, measured: list[Quality], held: int) -> dict:
    """The mean over batches; standard errors are those of the draws."""

    def mean(key: str) -> float:
        return statistics.fmean(getattr(quality, key) for quality in measured)

    def error(key: str) -> float:
        return math.sqrt(sum(getattr(quality, key) ** 2 for quality in measured)) / len(measured)

    blocks = vars(plan.blocks) if plan.blocks else dict.fromkeys(("bits", "output_bits", "recompute", "norm_bits"))
    means = {key: mean(key) for key in ("cosine", "projection", "noise", "mean_error", "bias")}
    errors = {key: error(key) for key in ("projection_error", "bias_error")}
    return {"dtype": plan.dtype, **blocks, "draws": draws, **means, **errors, "activation_bytes": held}


# --- measuring --------------------------------------------------------------------------------------------------------


@contextmanager
def full_float32():
    """Convolutions do not round their inputs to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def replayed(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Calls of the function as replays of a CUDA graph."""
    with side_stream():
        for _ in range(WARM_UP):
            function()
    replay, result = capture(function)

    def call() -> Tensor:
        replay()
        return result

    return call


@dataclass
class Study:
    model: nn.Module
    """Trained, with exact activations."""
    train: Images
    options: Options

    def __post_init__(self) -> None:
        self.model.train()
        endless = self.train.batches(self.options.batch, training.SEED_OF_BATCHES, self.options.augmentation)
        self.batches = list(islice(endless, self.options.noise_batches))
        self.exact = [self.gradient_of(Plan("float32"), batch)[0]().clone() for batch in self.batches]

    def gradient_of(self, plan: Plan, batch: Batch) -> tuple[Callable[[], Tensor], Callable[[], int]]:
        """(what draws a gradient of the batch, flat; what says how many bytes are held for it)"""
        model = copy.deepcopy(self.model)
        config = actnn.Config("L2") if plan.blocks else None
        training.convert(model, config, len(self.train), plan.blocks or False)
        loss = partial(training.loss_of, model, batch, config, DTYPES[plan.dtype])

        def gradient() -> Tensor:
            model.zero_grad()
            loss().backward()
            return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

        return gradient, lambda: training.bytes_held(model, loss)[0]

    def row(self, plan: Plan) -> dict:
        draws = self.options.draws if plan.blocks else EXACT_DRAWS
        measured = []
        for batch, exact in zip(self.batches, self.exact, strict=True):
            gradient, bytes_held = self.gradient_of(plan, batch)
            if self.options.graph:
                gradient = replayed(gradient)
            measured.append(Quality.of(torch.stack([gradient().clone() for _ in range(draws)]), exact))
            held = bytes_held()
        return row_of(plan, draws, measured, held)


# --- the command line -------------------------------------------------------------------------------------------------


def cells(row: Mapping) -> dict[str, str]:
    kept = row["bits"] is not None
    return {
        "dtype": row["dtype"],
        "bits": str(row["bits"]) if kept else "exact",
        "results": str(row["output_bits"]) if kept else "",
        "norms": str(row["norm_bits"] or "") if kept else "",
        "recompute": ("yes" if row["recompute"] else "no") if kept else "",
        "draws": str(row["draws"]),
        "cosine": f"{row['cosine']:.4f}",
        "projection (se)": f"{row['projection']:.4f} ({row['projection_error']:.4f})",
        "noise": f"{row['noise']:.3g}",
        "mean error": f"{row['mean_error']:.2g}",
        "noise / draws": f"{row['noise'] / row['draws']:.2g}",
        "bias (se)": f"{row['bias']:.2g}" + (f" ({row['bias_error']:.1g})" if kept else ""),
        "MiB held": f"{row['activation_bytes'] / measure.MIB:.2f}",
    }


def plans_of(dtypes: list[str], bits: list[int], output_bits: list[int], norm_bits: list[int | None]) -> list[Plan]:
    """Exact ones, then every combination."""
    exact = [Plan(dtype) for dtype in DTYPES]
    combined = product(dtypes, bits, output_bits, (True, False), norm_bits)
    return exact + [Plan(dtype, actnn.BlockOptions(b, o, recompute, n)) for dtype, b, o, recompute, n in combined]


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    add_options(parser)
    parser.add_argument("--bits", default="2,3,4,5,8", help="of a code, of 2 to 8 (default: %(default)s)")
    parser.add_argument("--output-bits", default="2,3,4", help="of a block's result (default: %(default)s)")
    parser.add_argument(
        "--norm-bits", help="of normalized inputs saved in front of a sum, of 2 to 8 (default: the plan's)"
    )
    parser.add_argument("--dtypes", default="float32", help=f"of the blocks, of {', '.join(DTYPES)} (default: float32)")
    trained_state.add_options(parser)
    arguments = parser.parse_args(command_line)
    if arguments.table:
        measure.print_markdown([cells(row) for row in json.loads(arguments.table.read_text())["rows"]])
        return 0

    options = chosen_options(arguments, **({} if arguments.smoke else {"draws": 128, "noise_batches": 2}))
    texts = arguments.bits, arguments.output_bits
    bits, output_bits = ([WIDTHS[name] for name in names(text, WIDTHS, "bits")] for text in texts)
    norm_bits = [WIDTHS[name] for name in names(arguments.norm_bits, WIDTHS, "bits")] if arguments.norm_bits else [None]
    plans = plans_of(names(arguments.dtypes, DTYPES, "dtypes"), bits, output_bits, norm_bits)
    path = measure.output_path(arguments, "gradient_quality")
    record, model, train = trained_state.start("gradient_quality", arguments, options)
    with full_float32():
        study = Study(model, train, options)
        for plan in plans:
            record["rows"].append(study.row(plan))
            measure.save(path, record)
            print(", ".join(f"{key} {text}" for key, text in cells(record["rows"][-1]).items() if text), flush=True)
    print()
    measure.print_rows([cells(row) for row in record["rows"]])
    print("\nerror, noise, bias: relative to the exact gradient's squared norm; se of the bias: if there is none")
    if path is not None:
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
