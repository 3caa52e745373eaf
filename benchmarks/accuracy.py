"""Accuracy after training with exact and with compressed activations, seed by seed: a ResNet on Fashion-MNIST.

All settings of a seed begin with the same weights and see the same images in the same order, moved and flipped alike.
So the difference to exact is taken seed by seed. The results are written after every run. `parity.py` makes many runs
at once.

    .venv/bin/python benchmarks/accuracy.py                                    # 5 seeds, 4000 steps of 128 images
    .venv/bin/python benchmarks/accuracy.py --resume                           # what is missing in the results
    .venv/bin/python benchmarks/accuracy.py --settings exact,blocks,blocks3 --graph
    .venv/bin/python benchmarks/accuracy.py --settings exact,blocks --images-per-class 100 --label-noise 0.2 \
        --augmentation strong --steps 2000
    .venv/bin/python benchmarks/accuracy.py --device cpu --width 8 --batch 64 --steps 400 --images 10000 --seeds 3
    .venv/bin/python benchmarks/accuracy.py --table benchmarks/results/accuracy.json     # the table, as Markdown
    .venv/bin/python benchmarks/accuracy.py --smoke --device cpu               # does the program run?
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import torch
from options import Options, add_options, chosen_options, names
from training import LAYERS, SETTINGS, Run, load_images

# --- the table --------------------------------------------------------------------------------------------------------


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


def values_of(runs: list[Mapping], key: str) -> list[float]:
    """Those that are known: a run may have lost its way."""
    return [run[key] for run in runs if run[key] is not None and math.isfinite(run[key])]


def differences(runs: list[Mapping], setting: str, key: str) -> dict[int, float]:
    """By seed: how far a setting is above the exact run of the same seed."""
    exact = {run["seed"]: run[key] for run in runs if run["setting"] == "exact" and values_of([run], key)}
    own = [run for run in runs if run["setting"] == setting and values_of([run], key)]
    return {run["seed"]: run[key] - exact[run["seed"]] for run in own if run["seed"] in exact}


def spreads(runs: list[Mapping], setting: str, key: str, name: str, factor: float = 1) -> dict[str, float | None]:
    """Mean and spread of a number, and of its difference to exact."""
    own = values_of([run for run in runs if run["setting"] == setting], key)
    paired = [] if setting == "exact" else list(differences(runs, setting, key).values())
    points, difference = (MeanSpread.of([factor * value for value in v]) if v else None for v in (own, paired))
    prefix = "" if name == "accuracy" else f"{name}_"
    return {
        name: points and points.mean,
        f"{name}_deviation": points and points.deviation,
        f"{prefix}difference": difference and difference.mean,
        f"{prefix}difference_error": difference and difference.error,
    }


def summary(runs: list[Mapping]) -> list[dict]:
    """One row per setting, in the order of the first runs."""
    rows = []
    for setting in dict.fromkeys(run["setting"] for run in runs):
        own = [run for run in runs if run["setting"] == setting]
        known = {key: values_of(own, key) for key in MEANS}
        rows.append(
            {
                "setting": setting,
                "seeds": len(own),
                **spreads(runs, setting, "test_accuracy", "accuracy", 100),
                **spreads(runs, setting, "final_loss", "loss"),
                **{key: statistics.fmean(values) if values else None for key, values in known.items()},
            }
        )
    return rows


MEANS = ("noise", "predicted_noise", "activation_bytes", "bits", "seconds_per_step", "processor_seconds_per_step")


def with_spread(mean: float | None, spread: float | None, sign: str = "", digits: int = 2) -> str | None:
    if mean is None:
        return None
    return f"{mean:{sign}.{digits}f}" + ("" if spread is None else f" ({spread:.{digits}f})")


def cells(row: Mapping, exact_bytes: float | None) -> dict[str, str | None]:
    """A row's texts by column; means with their standard deviations, differences with their standard errors."""

    def number(key: str, form: str, factor: float = 1) -> str | None:
        return None if row[key] is None else format(row[key] * factor, form)

    less = exact_bytes / row["activation_bytes"] if exact_bytes else None
    return {
        "setting": row["setting"],
        "seeds": str(row["seeds"]),
        "accuracy % (sd)": with_spread(row["accuracy"], row["accuracy_deviation"]),
        "to exact (se)": with_spread(row["difference"], row["difference_error"], "+"),
        "train loss (sd)": with_spread(row["loss"], row["loss_deviation"], digits=4),
        "loss to exact (se)": with_spread(row["loss_difference"], row["loss_difference_error"], "+", 4),
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


def runs_in(files: list[Path]) -> list[dict]:
    return [run for file in files for run in json.loads(file.read_text())["runs"]]


# --- the command line -------------------------------------------------------------------------------------------------


def previous_runs(path: Path | None, options: Mapping) -> list[dict]:
    if path is None or not path.exists():
        return []
    record = json.loads(path.read_text())
    before = vars(Options()) | record["options"]
    if different := [key for key in options if before[key] != options[key]]:
        raise SystemExit(f"{path} has results of other options ({', '.join(different)}): --resume cannot add to it")
    return record["runs"]


def print_run(run: Mapping, graph: bool) -> None:
    remark = "  (eager: its bits are decided on the host)" if graph and not run["graph"] else ""
    accuracy, noise = 100 * run["test_accuracy"], run["noise"]
    print(f"seed {run['seed']}  {run['setting']:<12} accuracy {accuracy:.2f} %  noise {noise:.3g}{remark}", flush=True)


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    known = ", ".join(SETTINGS)
    parser.add_argument("--settings", default=",".join(LAYERS), help=f"of {known} (default: those without blocks)")
    parser.add_argument("--seeds", type=int, help="how many, from --first-seed on (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--corrections", type=int, help="of predicted noise, in a run (default: 10)")
    parser.add_argument("--resume", action="store_true", help="add what is missing to the results in the output file")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print such results as Markdown, no run")
    add_options(parser)
    arguments = parser.parse_args(command_line)
    if arguments.table:
        measure.print_markdown(table_rows(summary(runs_in(arguments.table))))
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
            measure.save(path, record)
            print_run(record["runs"][-1], options.graph)
    print()
    measure.print_rows(table_rows(summary(record["runs"])))
    print("\nsd: standard deviation over seeds; se: standard error of the mean difference, seed by seed")
    if path is not None:
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
