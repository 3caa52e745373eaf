"""Trainings of a transformer, seed by seed, with exact and with compressed activations: losses on the way and at last.

All settings of a seed begin with the same weights and see the same samples in the same order, which the results confirm
by checksums (`initialization`, `order`). bfloat16 autocast, AdamW, linear warm-up and a cosine, gradients clipped at 1.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import accuracy
import measure
import steps
import torch
import training
from accuracy import with_spread
from measure import actnn
from options import names
from step_graph import WARM_UP, ReplayedStep
from torch import Tensor, nn

POINTS = 30  # of a curve
SHOWN = (1, 3, 6, 10, 15, 20, 25, 30)  # of these, in the printed table
LAST = 10  # the final training loss is that of the last tenth
REDRAWN = 2**16  # is added to a seed
WEIGHT_DECAY, BETAS, CLIPPED = 0.1, (0.9, 0.99), 1.0


class Task(Protocol):
    """A model, samples in the device's memory, and a loss."""

    steps: int
    rate: float

    def text(self) -> str: ...

    def model(self) -> nn.Module: ...

    def order(self, seed: int) -> Tensor:
        """int64 [steps, batch] on the CPU: the samples of every step."""

    def loss(self, model: nn.Module, samples: Tensor) -> Tensor: ...

    def validation_loss(self, model: nn.Module) -> Tensor:
        """Of all that is held out; the model is in evaluation mode."""


# --- the settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    text: str
    prepare: Callable[[nn.Module], object] = lambda model: None
    """Changes the model in place."""
    redraws: bool = False
    """Whether dropout is another one than that of other settings."""


SETTINGS = {
    "exact": Setting("exact activations"),
    "redrawn": Setting("exact activations, another dropout", redraws=True),
    "blocks8": Setting("actnn.convert, 8 bits", partial(steps.with_blocks, 8)),
    "blocks": Setting("actnn.convert, 4 bits", lambda model: actnn.convert(model)),
    "blocks3": Setting("3 bits", partial(steps.with_blocks, 3)),
    "blocks2": Setting("2 bits", partial(steps.with_blocks, 2)),
    "checkpoint": Setting("layers computed again in backward", steps.with_checkpoints),
}
DEFAULT = ("exact", "blocks", "blocks3", "checkpoint")


# --- one run ----------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    samples: Tensor


@dataclass
class Run:
    """Trains one model in one setting from one seed."""

    task: Task
    setting: str
    seed: int
    device: torch.device
    graph: bool = False
    """Whether steps are replayed as a CUDA graph."""
    losses: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        measure.release_memory(self.device)
        torch.manual_seed(self.seed)
        self.model = self.task.model().to(self.device).train()
        self.initialization = training.digest(self.model.parameters())
        self.order = self.task.order(self.seed)
        SETTINGS[self.setting].prepare(self.model)
        # The fused kernel, and a rate in a tensor: a number would be part of the graph.
        rate = torch.tensor(self.task.rate, device=self.device) if self.graph else self.task.rate
        self.optimizer = torch.optim.AdamW(
            self.groups(), lr=rate, betas=BETAS, fused=self.device.type == "cuda", capturable=self.graph
        )
        samples = self.order.to(self.device)
        self.held = self.bytes_held(samples[0])
        self.batches = [Batch(row) for row in samples]
        # For dropout and noise: whatever building and converting drew.
        torch.manual_seed(self.seed + (REDRAWN if SETTINGS[self.setting].redraws else 0))

    def groups(self) -> list[dict]:
        """Matrices decay, vectors do not."""
        by_decay = {WEIGHT_DECAY: [], 0.0: []}
        for parameter in self.model.parameters():
            by_decay[WEIGHT_DECAY if parameter.dim() > 1 else 0.0].append(parameter)
        return [{"params": parameters, "weight_decay": decay} for decay, parameters in by_decay.items()]

    def loss(self, samples: Tensor) -> Tensor:
        # A cast weight that autocast kept from before a capture would not be cast again at a replay.
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            return self.task.loss(self.model, samples)

    def bytes_held(self, samples: Tensor) -> int | None:
        """What is allocated right after forward, and was not before; at the second call, when all is set up."""
        if self.device.type != "cuda":
            return None
        for _ in range(2):
            before = steps.allocated(self.device)
            loss = self.loss(samples)
            held = steps.allocated(self.device) - before
            del loss
        return held

    def step(self, batch: Batch) -> Tensor:
        loss = self.loss(batch.samples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIPPED)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def fit(self) -> None:
        step = ReplayedStep(self.step) if self.graph else self.step
        untimed = min(2 * WARM_UP, self.task.steps - 1)
        for number, batch in enumerate(self.batches):
            if number == untimed:
                measure.synchronize(self.device)
                started = time.perf_counter()
            self.set_rate(training.learning_rate(number, self.task.steps, self.task.rate))
            self.losses.append(step(batch))
        measure.synchronize(self.device)
        self.seconds_per_step = (time.perf_counter() - started) / (self.task.steps - untimed)

    def record(self) -> dict:
        losses = torch.stack(self.losses).float()
        self.model.eval()
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            validation_loss = self.task.validation_loss(self.model).item()
        return {
            "setting": self.setting,
            "seed": self.seed,
            "graph": self.graph,
            "initialization": self.initialization,
            "order": training.digest([self.order]),
            "first_loss": losses[0].item(),
            "final_loss": losses[-max(1, len(losses) // LAST) :].mean().item(),
            "validation_loss": validation_loss,
            "losses": [part.mean().item() for part in losses.tensor_split(min(POINTS, len(losses)))],
            "activation_bytes": self.held,
            "seconds_per_step": self.seconds_per_step,
        }


# --- the table --------------------------------------------------------------------------------------------------------


def summary(runs: list[Mapping]) -> list[dict]:
    """One row per setting, in the order of the first runs."""
    rows = []
    for setting in dict.fromkeys(run["setting"] for run in runs):
        own = [run for run in runs if run["setting"] == setting]
        known = {key: accuracy.values_of(own, key) for key in ("activation_bytes", "seconds_per_step")}
        rows.append(
            {
                "setting": setting,
                "seeds": len(own),
                **accuracy.spreads(runs, setting, "final_loss", "training"),
                **accuracy.spreads(runs, setting, "validation_loss", "validation"),
                **{key: statistics.fmean(values) if values else None for key, values in known.items()},
            }
        )
    return rows


def is_inside(row: Mapping, exact: Mapping | None, name: str) -> str | None:
    """Whether a setting's mean is as near to the exact one as exact runs are to theirs."""
    difference, spread = row[f"{name}_difference"], exact and exact[f"{name}_deviation"]
    return None if difference is None or spread is None else "yes" if abs(difference) <= spread else "no"


def cells(row: Mapping, exact: Mapping | None) -> dict[str, str | None]:
    def of_loss(name: str) -> dict[str, str | None]:
        return {
            f"{name} loss (sd)": with_spread(row[name], row[f"{name}_deviation"], digits=4),
            f"{name} to exact (se)": with_spread(row[f"{name}_difference"], row[f"{name}_difference_error"], "+", 4),
            "within sd" if name == "training" else "within sd ": is_inside(row, exact, name),
        }

    held = row["activation_bytes"]
    return {
        "setting": row["setting"],
        "seeds": str(row["seeds"]),
        **of_loss("training"),
        **of_loss("validation"),
        "MiB held": None if held is None else f"{held / measure.MIB:.0f}",
        "ms/step": f"{1000 * row['seconds_per_step']:.1f}",
    }


def curve_rows(runs: list[Mapping]) -> list[dict[str, str]]:
    """The mean curve of each setting."""
    rows = []
    for setting in dict.fromkeys(run["setting"] for run in runs):
        curves = [run["losses"] for run in runs if run["setting"] == setting]
        means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
        shown = {f"to {i / len(means):.0%}": f"{means[i - 1]:.4f}" for i in SHOWN if i <= len(means)}
        rows.append({"training loss": setting, **shown})
    return rows


def print_results(runs: list[Mapping]) -> None:
    rows = summary(runs)
    exact = next((row for row in rows if row["setting"] == "exact"), None)
    print()
    measure.print_markdown([cells(row, exact) for row in rows])
    print()
    measure.print_markdown(curve_rows(runs))
    print("\nsd: standard deviation over seeds; se: standard error of the mean difference, seed by seed")
    print("within sd: the mean differs from the exact one by less than exact runs of different seeds do")


# --- the command line -------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(SETTINGS)
    parser.add_argument("--settings", default=",".join(DEFAULT), help=f"of {known} (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="how many, from --first-seed on (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--until", type=float, metavar="SECONDS", help="no run starts after so many seconds")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print such results as Markdown, no run")


def print_table(arguments: argparse.Namespace) -> None:
    """Raises SystemExit if the files are of different tasks."""
    records = [json.loads(path.read_text()) for path in arguments.table]
    tasks = {record["task"] for record in records}
    if len(tasks) > 1:
        raise SystemExit(f"these results cannot be compared: {'; '.join(sorted(tasks))}")
    print(*tasks)
    print_results([run for record in records for run in record["runs"]])


def run_all(
    arguments: argparse.Namespace, task: Task, record: dict, device: torch.device, can_replay: Callable[[str], bool]
) -> None:
    """Makes the runs that the command line asks for, and saves the results after each. `can_replay` says in which
    settings steps can be a CUDA graph."""
    chosen = names(arguments.settings, SETTINGS, "settings")
    path = measure.output_path(arguments, record["benchmark"])
    record |= {"task": task.text(), "settings": {name: SETTINGS[name].text for name in chosen}, "runs": []}
    print(task.text(), end="\n\n", flush=True)
    started = time.monotonic()
    seeds = arguments.seeds or (2 if arguments.smoke else 5)
    # All settings of a seed before the next seed: what there is can be compared at any time.
    jobs = [(seed, name) for seed in range(arguments.first_seed, arguments.first_seed + seeds) for name in chosen]
    for seed, setting in jobs:
        if arguments.until is not None and time.monotonic() - started > arguments.until:
            print(f"{arguments.until:g} seconds are over", flush=True)
            break
        run = Run(task, setting, seed, device, can_replay(setting))
        run.fit()
        record["runs"].append(run.record())
        del run  # its memory, and that of its graph
        record["summary"] = summary(record["runs"])
        measure.save(path, record)
        print_run(record["runs"][-1], time.monotonic() - started)
    if record["runs"]:
        print_results(record["runs"])
    measure.write_json(path, record)


def print_run(run: Mapping, seconds: float) -> None:
    losses = f"training {run['final_loss']:.4f}  validation {run['validation_loss']:.4f}"
    print(f"{seconds:6.0f} s  seed {run['seed']}  {run['setting']:<11} {losses}", flush=True)


def whole(arguments: argparse.Namespace, name: str, smoke: int, full: int) -> int:
    """A number of the command line, or its default."""
    given: int | None = getattr(arguments, name)
    return given or (smoke if arguments.smoke else full)
