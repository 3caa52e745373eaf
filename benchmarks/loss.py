"""The end of a language model's step: linear layer and cross entropy, forward and backward, in four ways.

*Peak* is the allocator's beside inputs, weights and their gradients, *saved* what is
held between forward and backward (`actnn.measure_kept_bytes`).

    .venv/bin/python benchmarks/loss.py
    .venv/bin/python benchmarks/loss.py --rows 8192 --features 4096 --classes 32000
    .venv/bin/python benchmarks/loss.py --device cpu --rows 2048 --features 768 --classes 50257 --dtype float32
    .venv/bin/python benchmarks/loss.py --smoke --device cpu
"""

import sys
from collections.abc import Callable
from functools import partial

import measure
import torch
import torch.nn.functional as F  # noqa: N812
from actnn.functional import linear_cross_entropy
from measure import MIB, actnn
from options import DTYPES
from steps import allocated
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def exact(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight).float(), target)


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear, cross_entropy": exact,
    "checkpoint": partial(checkpoint, exact, use_reentrant=False),
    "compile": torch.compile(exact),
    "linear_cross_entropy": linear_cross_entropy,
}


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=16384, help="of the input")
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=128256)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device = measure.chosen_device(arguments)
    if arguments.smoke:
        arguments.rows, arguments.features, arguments.classes, arguments.repeats = 300, 16, 50, 1
    keys = ("rows", "features", "classes", "dtype", "repeats")
    settings = {key: vars(arguments)[key] for key in keys}
    record = {"benchmark": "loss", "machine": measure.machine(device), "settings": settings, "rows": []}
    measure.print_machine(record["machine"])
    dtype = DTYPES[arguments.dtype]
    x = torch.randn(arguments.rows, arguments.features, device=device, dtype=dtype, requires_grad=True)
    head = nn.Linear(arguments.features, arguments.classes, bias=False, device=device, dtype=dtype)
    weight = head.weight
    target = torch.randint(arguments.classes, (arguments.rows,), device=device)
    print("| variant | loss | saved MiB | peak MiB | ms |\n|---|---|---|---|---|")
    for name, function in VARIANTS.items():
        if arguments.smoke and name == "compile":
            continue

        def step(function=function) -> None:
            x.grad = weight.grad = None
            function(x, weight, target).backward()

        step()
        saved = actnn.measure_kept_bytes(head, lambda function=function: function(x, weight, target)).total
        value = function(x, weight, target).item()
        x.grad = weight.grad = None
        measure.release_memory(device)
        before, peak = allocated(device), None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            step()
            peak = torch.cuda.max_memory_allocated(device) - before - x.nbytes - weight.nbytes
        seconds = measure.time_calls([step] * arguments.repeats, device)
        row = {"variant": name, "loss": value, "saved_bytes": saved, "peak_bytes": peak, "seconds": seconds}
        record["rows"].append(row)
        peak_mib = "" if peak is None else f"{peak / MIB:.0f}"
        print(f"| {name} | {value:.4f} | {saved / MIB:.0f} | {peak_mib} | {1000 * seconds:.1f} |", flush=True)
    measure.write_json(measure.output_path(arguments, "loss"), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
