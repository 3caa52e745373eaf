"""Where the GPU's time of a training step goes: kernels by what they do. On a CPU, operations.

.venv/bin/python benchmarks/step_profile.py
.venv/bin/python benchmarks/step_profile.py --network resnet152 --batch 64 --variants exact,blocks
"""

import re
import sys
from collections import Counter, defaultdict

import measure
import torch
from networks import NETWORKS
from steps import Run
from torch.profiler import ProfilerActivity, profile

from blocks import VARIANTS, chosen, workload

# The first whose pattern is found in a kernel's name.
KINDS = {
    "forward passes": r"norm_act_kernel",
    "statistics": r"moments_kernel|batch_norm_(collect|stats)",
    "sums": r"\bsums_kernel|join_sums|batch_norm_backward_reduce",
    "gradients": r"input_gradient_kernel|batch_norm_backward_elemt",
    "outputs again": r"output_kernel",
    "pooling": r"pool",
    "optimizer": r"multi_tensor_apply",
    "casts": r"cast_kernel|bfloat16_copy|float16_copy|direct_copy",
    "batch norm": r"batch_norm|bn_(fw|bw)",
    "convolutions": r"conv|xmma|cutlass|gemm|gemv|sm90|sm80|nvjet|cudnn|dgrad|wgrad|fprop|nhwc",
    "sets and copies": r"Memset|Memcpy|fill|FillFunctor",
    "elementwise": r"elementwise",
}


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel)), "others")


def kernels_of(run: Run, steps: int) -> dict[str, tuple[float, int]]:
    """Milliseconds and launches of each kernel in a step."""
    on_gpu = run.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(steps):
            run.step()
        measure.synchronize(run.device)
    own = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    times, launches = Counter(), Counter()
    for event in profiler.events():
        if event.device_type == own:
            times[event.name] += (event.device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / steps
            launches[event.name] += 1
    return {name: (times[name], launches[name] // steps) for name in times}


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--variants", type=lambda text: chosen(text, VARIANTS), default=["exact", "blocks"])
    parser.add_argument("--steps", type=int, default=5, help="that are profiled")
    parser.add_argument("--kernels", type=int, default=12, help="of each variant that are listed")
    arguments = parser.parse_args()
    device = measure.chosen_device(arguments)
    if arguments.smoke:
        arguments.batch, arguments.steps = 2, 1
    record = {"benchmark": "step_profile", "machine": measure.machine(device), "rows": []}
    measure.print_machine(record["machine"])
    by_kind: dict[str, dict[str, float]] = defaultdict(dict)
    for name in arguments.variants:
        run = Run(VARIANTS[name], workload(arguments.network, arguments.batch, arguments.smoke), device)
        run.warm_up(3)
        kernels = kernels_of(run, arguments.steps)
        del run
        for kernel, (milliseconds, launches) in sorted(kernels.items(), key=lambda item: -item[1][0]):
            kind = kind_of(kernel)
            by_kind[kind][name] = by_kind[kind].get(name, 0.0) + milliseconds
            record["rows"].append(
                {"variant": name, "kind": kind, "kernel": kernel, "milliseconds": milliseconds, "launches": launches}
            )
        print(f"\n{name}: {sum(milliseconds for milliseconds, _ in kernels.values()):.2f} ms a step")
        for row in [row for row in record["rows"] if row["variant"] == name][: arguments.kernels]:
            print(f"{row['milliseconds']:7.3f} {row['launches']:4d} x  {row['kind']:16s} {row['kernel'][:100]}")
    print(f"\n| ms | {' | '.join(arguments.variants)} |\n|---|{'---|' * len(arguments.variants)}")
    for kind in (*KINDS, "others"):
        if kind in by_kind:
            cells = (f"{by_kind[kind].get(name, 0.0):.2f}" for name in arguments.variants)
            print(f"| {kind} | {' | '.join(cells)} |")
    measure.write_json(measure.output_path(arguments, "step_profile"), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
