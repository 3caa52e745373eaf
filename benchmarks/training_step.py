"""A training step with exact and with compressed activations: memory and speed, beside the usual ways to save memory.

Every variant is built and warmed up, and the memory of one of its steps measured; then all are timed in turn, a few
steps each, for some rounds. A variant that fails is a row that says why. 1 MiB = 2^20 bytes.

    .venv/bin/python benchmarks/training_step.py --model resnet50
    .venv/bin/python benchmarks/training_step.py --model bert-large --variants exact-amp,actnn4-amp
    .venv/bin/python benchmarks/training_step.py --model resnet50 --smoke --device cpu
"""

import sys
from functools import partial

import measure
import models
import torch
from measure import MIB
from steps import Images, Runs, Variant, converted, with_blocks, with_checkpoints
from torch import Tensor, nn

BASELINE = "exact-amp"


# --- what is trained --------------------------------------------------------------------------------------------------


def resnet50(smoke: bool, batch: int | None) -> Images:
    if smoke:
        return Images("ResNet-50", partial(models.ResNet, (1, 1), 8, 10), batch or 4, pixels=32, classes=10)
    return Images("ResNet-50", models.ResNet, batch or 128)


class BertLarge:
    """Sequences of random words, 15 % of them to be predicted; AdamW (fused)."""

    autocast = True

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


WORKLOADS = {"resnet50": resnet50, "bert-large": BertLarge}


# --- how it is trained ------------------------------------------------------------------------------------------------


VARIANTS = {
    "exact-fp32": Variant(amp=False),
    "exact-amp": Variant(amp=True),
    "checkpoint-amp": Variant(amp=True, prepare=with_checkpoints),
    "compile-amp": Variant(amp=True, prepare=torch.compile),
    "actnn4-amp": Variant(amp=True, prepare=partial(converted, 4)),
    "actnn2-amp": Variant(amp=True, prepare=partial(converted, 2)),
    "adaptive2-amp": Variant(amp=True, prepare=partial(converted, 2, level="L3")),
    "adaptive2-of10-amp": Variant(amp=True, prepare=partial(converted, 2, level="L3", adapt_interval=10)),
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
    runs = Runs({name: VARIANTS[name] for name in names}, workload, device, BASELINE)
    runs.build()
    runs.time(rounds, steps)

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
