"""Training steps of networks with blocks, beside exact ones and the usual ways to save memory.

For each network and batch size all variants are built, warmed up, and the memory of one step measured; they are timed
in turn, for some rounds; then each is captured, its whole step in one CUDA graph, and the replays are timed.

With --largest GIB the program searches, instead, for the largest batch whose training step runs in so much memory.

A variant that fails is a row that says why, in a process of its own if need be. 1 MiB = 2^20 bytes.

    .venv/bin/python benchmarks/blocks.py                                     # of convolutional networks
    .venv/bin/python benchmarks/blocks.py --networks bert-large,llama-1b      # needs transformers
    .venv/bin/python benchmarks/blocks.py --networks resnet50 --batches 128 --variants exact,blocks --rounds 5
    .venv/bin/python benchmarks/blocks.py --largest 16
    .venv/bin/python benchmarks/blocks.py --table benchmarks/results/blocks.json     # as Markdown
    .venv/bin/python benchmarks/blocks.py --smoke --device cpu
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import largest_batch
import measure
import torch
import workers
from measure import MIB
from networks import NETWORKS
from steps import Runs, Variant, converted, with_blocks, with_checkpoints
from transformer_workloads import TRANSFORMERS
from workloads import WORKLOADS

VARIANTS = {
    "exact": Variant(amp=True),
    "blocks": Variant(amp=True, prepare=partial(with_blocks, 4)),
    "blocks 3 bits": Variant(amp=True, prepare=partial(with_blocks, 3)),
    "blocks stored": Variant(amp=True, prepare=partial(with_blocks, 4, recompute=False)),
    "blocks small": Variant(amp=True, prepare=partial(with_blocks, 4, recompute_attention=True, recompute_mlp=True)),
    "blocks fast": Variant(amp=True, prepare=partial(with_blocks, 4, attention_bits=0)),
    "layers": Variant(amp=True, prepare=partial(converted, 4)),
    "checkpoint": Variant(amp=True, prepare=with_checkpoints),
    "checkpoint packed": Variant(amp=True, prepare=partial(with_checkpoints, bits=8)),
    "compile": Variant(amp=True, prepare=torch.compile),
    "compile blocks": Variant(amp=True, prepare=lambda model: torch.compile(with_blocks(4, model))),
}
COMPILED = ("resnet50", 128)  # by default: compiling takes as long as everything else
OF_TRANSFORMERS = ("blocks small", "blocks fast", "checkpoint packed")
LARGEST_NETWORKS, LARGEST_VARIANTS = ("resnet50", "resnet152"), ("exact", "checkpoint", "blocks")
NOT_CAPTURED = {
    ("efficientnet_b0", "checkpoint"): "recomputing sets the state of the random numbers, which no capture allows",
}


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What is to be measured of a network at a batch size. A task of a worker."""

    network: str
    batch: int
    timed: tuple[str, ...]
    captured: tuple[str, ...]
    rounds: int
    smoke: bool

    @property
    def parts(self) -> list[tuple]:
        """One for each message that the worker sends: network, batch, variant, what."""
        return [
            *((self.network, self.batch, name, "eager") for name in self.timed),
            *((self.network, self.batch, name, "graph") for name in self.captured),
        ]

    def without(self, parts: set[tuple]) -> "Cell":
        timed = tuple(name for name in self.timed if (self.network, self.batch, name, "eager") not in parts)
        captured = tuple(name for name in self.captured if (self.network, self.batch, name, "graph") not in parts)
        return replace(self, timed=timed, captured=captured)

    def run(self, device: torch.device, send: workers.Send) -> bool:
        names = dict.fromkeys((*self.timed, *self.captured))
        print(f"\n{self.network}, batch {self.batch}", flush=True)
        few = self.batch >= 512  # steps, because each takes its time
        workload = WORKLOADS[self.network].make(self.smoke, self.batch)
        runs = Runs({name: VARIANTS[name] for name in names}, workload, device, "exact")
        runs.build(warm_up=2, memory_steps=1 if few else 2)
        if self.timed:
            runs.time(self.rounds, 1 if few else 4, warm_up=1 if few else 2)
        for name in self.timed:
            send((self.network, self.batch, name, "eager"), runs.record(name))
        if not workers.is_usable(device):
            return False
        return all(self._capture(runs, name, 3 if few else 8, send) for name in self.captured)

    def _capture(self, runs: Runs, name: str, replays: int, send: workers.Send) -> bool:
        """Whether the process is fit for another capture."""
        part, reason = (self.network, self.batch, name, "graph"), NOT_CAPTURED.get((self.network, name))
        if reason or name in runs.errors:
            send(part, {"graph_error": reason or runs.errors[name]})
            return True
        run = runs.alive[name]
        runs.attempt(name, partial(run.measure_graph, replays))
        if name in runs.errors:
            send(part, {"graph_error": runs.errors[name]})
            return False
        send(part, measure.Spread.of(run.graph_milliseconds).record("graph_milliseconds"))
        return True


def cells(arguments: argparse.Namespace) -> list[Cell]:
    made = []
    for network in arguments.networks or NETWORKS:
        for batch in arguments.batches or ((4,) if arguments.smoke else WORKLOADS[network].batches):
            names = arguments.variants
            if not names:
                compiled = (network, batch) == COMPILED and not arguments.smoke
                names = [name for name in VARIANTS if compiled or not name.startswith("compile")]
                names = [name for name in names if network in TRANSFORMERS or name not in OF_TRANSFORMERS]
            captured = () if arguments.no_graph or arguments.device == "cpu" else tuple(names)
            made.append(Cell(network, batch, tuple(names), captured, arguments.rounds, arguments.smoke))
    return made


# --- the largest batch ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What the largest batch of a variant is to be found of. A task of a worker."""

    network: str
    variant: str
    limit: float
    """GiB."""
    smoke: bool

    @property
    def parts(self) -> list[tuple]:
        return [(self.network, None, self.variant, "largest")]

    def without(self, parts: set[tuple]) -> "Search":
        return self  # it has one part

    def run(self, device: torch.device, send: workers.Send) -> bool:
        print(f"\n{self.network}, {self.variant}, {self.limit:g} GiB", flush=True)
        known = WORKLOADS[self.network]
        ceiling = max(32, known.multiple) if self.smoke else 2**14 * known.multiple
        make = partial(known.make, self.smoke)
        found = largest_batch.find(make, VARIANTS[self.variant], device, self.limit, ceiling, known.multiple)
        send(self.parts[0], {"limit_bytes": int(self.limit * 2**30)} | found)
        return workers.is_usable(device)


def searches(arguments: argparse.Namespace) -> list[Search]:
    networks, variants = arguments.networks or LARGEST_NETWORKS, arguments.variants or LARGEST_VARIANTS
    return [Search(n, v, arguments.largest, arguments.smoke) for n in networks for v in variants]


# --- tables -----------------------------------------------------------------------------------------------------------


def mebibytes(row: Mapping, key: str) -> str:
    return f"{row[key] / MIB:.0f}" if row.get(key) else "-"


def times(row: Mapping, key: str) -> str:
    if key not in row:
        return "-"
    return measure.Spread(*(row[f"{key}{part}"] for part in ("", "_lower_quartile", "_upper_quartile"))).text(1)


def ratio(value: float | None) -> str:
    return f"{value:.2f} x" if value else "-"


FAILURES = {"step": "error", "graph": "graph_error"}


def cells_of(row: Mapping, exact: Mapping) -> dict[str, str]:
    """A row of the comparison as text, beside the exact variant's of the same network and batch."""
    graph = row.get("graph_milliseconds")
    return {
        "network, batch": f"{WORKLOADS[row['network']].title}, {row['batch']}",
        "variant": row["variant"],
        "activations MiB": mebibytes(row, "activation_bytes"),
        "less": ratio(row.get("activations_against_exact")),
        "peak MiB": mebibytes(row, "peak_bytes"),
        "eager ms": times(row, "milliseconds"),
        "samples/s": f"{row['samples_per_second']:.0f}" if "samples_per_second" in row else "-",
        "speed": ratio(row.get("speed_against_exact")),
        "CUDA graph ms": times(row, "graph_milliseconds"),
        "graph speed": ratio(graph and exact.get("graph_milliseconds", 0) / graph),
        "failed": "; ".join(f"{what}: {row[key]}" for what, key in FAILURES.items() if key in row),
    }


def largest_cells_of(row: Mapping) -> dict[str, str]:
    return {
        "network": WORKLOADS[row["network"]].title,
        "variant": row["variant"],
        "memory GiB": f"{row['limit_bytes'] / 2**30:g}" if "limit_bytes" in row else "-",
        "largest batch": str(row.get("batch") or "-"),
        "peak MiB": mebibytes(row, "peak_bytes"),
        "ms": times(row, "milliseconds"),
        "samples/s": f"{row['samples_per_second']:.0f}" if "samples_per_second" in row else "-",
        "next batch": row.get("error") or row.get("stopped_by", ""),
    }


def table_rows(record: Mapping) -> list[dict[str, str]]:
    rows = record["rows"]
    if record["benchmark"] == "largest_batch":
        return [largest_cells_of(row) for row in rows]
    exact = {(row["network"], row["batch"]): row for row in rows if row["variant"] == "exact"}
    texts = [cells_of(row, exact.get((row["network"], row["batch"]), {})) for row in rows]
    if not any(text["failed"] for text in texts):
        for text in texts:
            del text["failed"]
    return texts


def print_markdown(rows: Sequence[Mapping[str, str]]) -> None:
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(text.replace('|', '/') for text in row.values())} |")


# --- the program ------------------------------------------------------------------------------------------------------


def chosen(text: str, known: Mapping[str, object]) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def measured(tasks: Sequence[Cell | Search], record: dict, device: torch.device, path: Path | None) -> None:
    """Runs the tasks; the record's rows are written whenever there are more."""
    rows: dict[tuple, dict] = {}
    for (network, batch, variant, what), values in workers.run(tasks, device):
        if "ended" in values:
            values = {"graph_error" if what == "graph" else "error": values["ended"]}
        row = rows.setdefault((network, batch, variant), {"network": network, "batch": batch, "variant": variant})
        row |= values
        record["rows"] = list(rows.values())
        measure.save(path, record)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--networks", type=partial(chosen, known=WORKLOADS), help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--batches", type=numbers, help="of all networks (default: as in the table)")
    parser.add_argument("--variants", type=partial(chosen, known=VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often the variants take their turn (default: 3)")
    parser.add_argument("--no-graph", action="store_true", help="capture no CUDA graphs")
    parser.add_argument(
        "--largest", type=float, metavar="GIB", help="find the largest batch that runs in so much memory"
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="print such results as Markdown, no run")
    return parser.parse_args()


def main() -> int:
    arguments = options()
    if arguments.table:
        print_markdown(table_rows(json.loads(arguments.table.read_text())))
        return 0
    name, tasks = ("largest_batch", searches(arguments)) if arguments.largest else ("blocks", cells(arguments))
    if arguments.largest:  # for the workers: what is found is the limit of memory, not of how it lies in pieces
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = measure.chosen_device(arguments)
    path = measure.output_path(arguments, name)
    record = {"benchmark": name, "machine": measure.machine(device), "settings": {"rounds": arguments.rounds}}
    measure.print_machine(record["machine"])
    measured(tasks, record, device, path)
    print()
    print_markdown(table_rows(record))
    measure.write_json(path, record)
    return 0 if any("error" not in row for row in record["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
