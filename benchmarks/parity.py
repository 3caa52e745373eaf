"""Do fused blocks train as exact activations do? Several networks, settings and seeds, many runs at once.

Each run is a process of `accuracy.py`. A small network does not fill a GPU: processes share it best through CUDA's
multi-process service, which must run already. Results are collected in one file, written after every run.

    .venv/bin/python benchmarks/parity.py --graph --parallel 10 --until 480
    .venv/bin/python benchmarks/parity.py --graph --parallel 10 --until 480 --resume    # what is missing
    .venv/bin/python benchmarks/parity.py --parts hard --settings exact,blocks --seeds 2 --graph
    .venv/bin/python benchmarks/parity.py --table benchmarks/results/parity.json        # as Markdown
    .venv/bin/python benchmarks/parity.py --smoke --device cpu
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import accuracy
import measure
from options import names
from training import SETTINGS

PROGRAM = Path(__file__).with_name("accuracy.py")
RESNET20 = ("--network", "resnet20")
FEW_IMAGES = ("--images-per-class", "100", "--augmentation", "strong", "--label-noise", "0.2")


@dataclass(frozen=True)
class Part:
    text: str
    settings: tuple[str, ...]
    arguments: tuple[str, ...]
    """Of accuracy.py."""


PARTS = {
    "resnet20": Part(
        "ResNet-20, float32, 4000 steps",
        ("exact", "blocks", "blocks3", "blocks2.5", "blocks2", "stored"),
        (*RESNET20, "--steps", "4000"),
    ),
    "resnet18": Part(
        "ResNet-18, bfloat16, 2000 steps, learning rate 0.05",
        ("exact", "blocks", "blocks3", "blocks2.5", "blocks2"),
        ("--network", "resnet18", "--dtype", "bfloat16", "--steps", "2000", "--lr", "0.05"),
    ),
    "hard": Part(
        "ResNet-20, float32, 2000 steps: 100 images per class, 20 % wrong labels, strong augmentation",
        ("exact", "blocks", "blocks3", "blocks2.5", "blocks2"),
        (*RESNET20, "--steps", "2000", *FEW_IMAGES),
    ),
}
SMOKE = ("--smoke", "--steps", "6", "--draws", "2")


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    part: str
    setting: str
    seed: int

    def __str__(self) -> str:
        return f"{self.part}  seed {self.seed}  {self.setting}"


def jobs_of(parts: Sequence[str], settings: Sequence[str] | None, seeds: range) -> Iterator[Job]:
    """All runs of a seed before the next seed: what there is can be compared at any time."""
    for seed in seeds:
        for part in parts:
            yield from (Job(part, setting, seed) for setting in settings or PARTS[part].settings)


def shared_arguments(arguments: argparse.Namespace) -> tuple[str, ...]:
    """What all runs get from this program's command line."""
    result = ["--device", arguments.device, "--threads", str(arguments.threads)]
    result += ["--data", str(arguments.data)] if arguments.data else []
    result += ["--graph"] if arguments.graph else []
    return (*result, *(SMOKE if arguments.smoke else ()))


@dataclass(frozen=True)
class Runner:
    arguments: tuple[str, ...]
    deadline: float
    """On the clock of `time.monotonic`; no run starts after it."""

    def __call__(self, job: Job) -> dict | None:
        """The results of a run, as accuracy.py writes them, or None if it is too late. Raises RuntimeError."""
        if time.monotonic() > self.deadline:
            return None
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "run.json"
            what = ("--settings", job.setting, "--first-seed", str(job.seed), "--seeds", "1", "--output", str(output))
            command = [sys.executable, str(PROGRAM), *PARTS[job.part].arguments, *self.arguments, *what]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip()[-2000:] or f"exit status {done.returncode}")
            return json.loads(output.read_text())


def add_run(record: dict, job: Job, result: Mapping) -> None:
    """Adds a run to its part. Raises RuntimeError if the runs there had other options."""
    part = record["parts"].setdefault(
        job.part, {"text": PARTS[job.part].text, "options": result["options"], "images": result["images"], "runs": []}
    )
    if part["options"] != result["options"]:
        raise RuntimeError(f"the results so far are of other options: {part['options']}, now {result['options']}")
    part["runs"] += result["runs"]
    order = list(SETTINGS)
    part["runs"].sort(key=lambda run: (run["seed"], order.index(run["setting"])))
    part["summary"] = accuracy.summary(part["runs"])


def run_all(jobs: Sequence[Job], runner: Runner, parallel: int, record: dict, path: Path | None) -> None:
    """Makes the runs and adds them to the record; what fails goes into its `failures`."""
    began = time.monotonic()
    with ThreadPoolExecutor(parallel) as pool:
        pending = {pool.submit(runner, job): job for job in jobs}
        for future in as_completed(pending):
            job, text = pending[future], "not started: too late"
            try:
                if (result := future.result()) is not None:
                    add_run(record, job, result)
                    text = f"accuracy {100 * result['runs'][0]['test_accuracy']:.2f} %"
            except RuntimeError as error:
                record["failures"].append({"run": str(job), "error": str(error)})
                text = f"FAILED: {error}"
            measure.save(path, record)
            print(f"{time.monotonic() - began:4.0f} s  {job}  {text}", flush=True)


# --- the tables -------------------------------------------------------------------------------------------------------

COLUMNS = ("setting", "seeds", "accuracy % (sd)", "to exact (se)", "train loss (sd)", "loss to exact (se)", "noise")
COLUMNS += ("MiB held", "less")


def main_table(runs: list[Mapping]) -> list[dict[str, str | None]]:
    return [{key: row[key] for key in COLUMNS} for row in accuracy.table_rows(accuracy.summary(runs))]


def differences_table(runs: list[Mapping]) -> list[dict[str, str | None]]:
    """Accuracy above exact in points, seed by seed."""
    seeds = sorted({run["seed"] for run in runs})
    rows = []
    for setting in dict.fromkeys(run["setting"] for run in runs):
        found = accuracy.differences(runs, setting, "test_accuracy")
        if setting != "exact" and found:
            by_seed = {f"seed {seed}": f"{100 * found[seed]:+.2f}" if seed in found else None for seed in seeds}
            rows.append({"difference": f"{setting} - exact", **by_seed})
    return rows


def print_tables(parts: Mapping[str, Mapping]) -> None:
    for part in parts.values():
        print(f"{part['text']}:\n")
        for rows in (main_table(part["runs"]), differences_table(part["runs"])):
            if rows:
                measure.print_markdown(rows)
                print()


# --- the command line -------------------------------------------------------------------------------------------------


def previous_parts(path: Path | None) -> dict[str, dict]:
    return json.loads(path.read_text())["parts"] if path is not None and path.exists() else {}


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--settings", help=f"of {', '.join(SETTINGS)} (default: those of the part)")
    parser.add_argument("--seeds", type=int, help="how many, from --first-seed on (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--until", type=float, default=float("inf"), metavar="SECONDS", help="then no run starts")
    parser.add_argument("--threads", type=int, default=1, help="of a run on the CPU (default: 1)")
    parser.add_argument("--data", type=Path, help="folder of the idx files (default: data/fashion-mnist)")
    parser.add_argument("--graph", action="store_true", help="replay steps as CUDA graphs where possible")
    parser.add_argument("--resume", action="store_true", help="add what is missing to the results in the output file")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print such results as Markdown, no run")
    arguments = parser.parse_args(command_line)
    if arguments.table:
        print_tables(previous_parts(arguments.table))
        return 0

    began = time.monotonic()
    parts = names(arguments.parts, PARTS, "parts")
    settings = names(arguments.settings, SETTINGS, "settings") if arguments.settings else None
    path = measure.output_path(arguments, "parity")
    record = {"benchmark": "parity", "machine": measure.machine(measure.chosen_device(arguments))}
    record |= {"parts": previous_parts(path) if arguments.resume else {}, "failures": []}
    measure.print_machine(record["machine"])
    seeds = range(arguments.first_seed, arguments.first_seed + (arguments.seeds or (1 if arguments.smoke else 5)))
    done = {(name, run["setting"], run["seed"]) for name, part in record["parts"].items() for run in part["runs"]}
    jobs = [job for job in jobs_of(parts, settings, seeds) if (job.part, job.setting, job.seed) not in done]
    runner = Runner(shared_arguments(arguments), began + arguments.until)
    run_all(jobs, runner, arguments.parallel, record, path)
    print()
    print_tables(record["parts"])
    print("sd: standard deviation over seeds; se: standard error of the mean difference, seed by seed")
    if path is not None:
        print(f"written to {path}")
    return 1 if record["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
