"""Where the GPU's time of a training step goes: kernels by what they do. On a CPU, operations.

The kernels that take longest are printed; the JSON has the kinds.

.venv/bin/python benchmarks/step_profile.py
.venv/bin/python benchmarks/step_profile.py --network resnet152 --batch 64 --variants exact,blocks
"""

import re
import sys
from collections import Counter
from collections.abc import Mapping

import measure
import torch
from steps import Run
from torch.profiler import ProfilerActivity, profile
from workloads import WORKLOADS

from blocks import VARIANTS, chosen

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
    "attention": r"sdpa|flash|fmha|attention|mem_eff",
    "copies": r"(de)?quantize_columns_kernel|(de)?quantize",
    "norms": r"layer_norm|rms_norm|GammaBeta|row_norm",
    "batch norm": r"batch_norm|bn_(fw|bw)",
    "products": r"conv|xmma|cutlass|gemm|gemv|sm90|sm80|nvjet|cudnn|dgrad|wgrad|fprop|nhwc",
    "sets and copies": r"Memset|Memcpy|fill|FillFunctor",
    "elementwise": r"elementwise",
    "reductions": r"reduce_kernel|column_sums",
}


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel)), "others")


def kernels_of(run: Run, steps: int) -> dict[str, tuple[float, int]]:
    """Milliseconds and launches of each kernel in a step. A kernel may start before the one in front of it has ended
    (programmatic dependent launch), and then waits for it: that time is the other's alone."""
    on_gpu = run.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(steps):
            run.step()
        measure.synchronize(run.device)
    own = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    times, launches, ended = Counter(), Counter(), 0.0
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.device_type != own:
            continue
        begin, end = event.time_range.start, event.time_range.end
        microseconds = max(end - max(begin, ended), 0.0) if on_gpu else event.self_cpu_time_total
        ended = max(ended, end)
        times[event.name] += microseconds / 1000 / steps
        launches[event.name] += 1
    return {name: (times[name], -(-launches[name] // steps)) for name in times}


def kinds_of(kernels: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """Those of all kernels of each kind, in the order of `KINDS`."""
    sums = dict.fromkeys((*KINDS, "others"), (0.0, 0))
    for kernel, (milliseconds, launches) in kernels.items():
        of_kind = sums[kind_of(kernel)]
        sums[kind_of(kernel)] = (of_kind[0] + milliseconds, of_kind[1] + launches)
    return sums


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--network", choices=WORKLOADS, default="resnet50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--variants", type=lambda text: chosen(text, VARIANTS), default=["exact", "blocks"])
    parser.add_argument("--steps", type=int, default=5, help="that are profiled")
    parser.add_argument("--kernels", type=int, default=12, help="of each variant that are listed")
    arguments = parser.parse_args()
    device = measure.chosen_device(arguments)
    if arguments.smoke:
        arguments.batch, arguments.steps = 2, 1
    settings = {"network": arguments.network, "batch": arguments.batch, "steps": arguments.steps}
    record = {"benchmark": "step_profile", "machine": measure.machine(device), "settings": settings, "rows": []}
    measure.print_machine(record["machine"])
    profiles = {}
    for name in arguments.variants:
        run = Run(VARIANTS[name], WORKLOADS[arguments.network].make(arguments.smoke, arguments.batch), device)
        run.warm_up(3)
        kernels = kernels_of(run, arguments.steps)
        del run
        longest = sorted(kernels.items(), key=lambda item: -item[1][0])[: arguments.kernels]
        print(f"\n{name}: {sum(milliseconds for milliseconds, _ in kernels.values()):.2f} ms a step")
        for kernel, (milliseconds, launches) in longest:
            print(f"{milliseconds:7.3f} {launches:4d} x  {kind_of(kernel):16s} {kernel[:100]}")
        profiles[name] = kinds_of(kernels)
        for kind, (milliseconds, launches) in profiles[name].items():
            record["rows"].append({"variant": name, "kind": kind, "milliseconds": milliseconds, "launches": launches})
    print(f"\n| ms | {' | '.join(profiles)} |\n|---|{'---|' * len(profiles)}")
    for kind in (*KINDS, "others"):
        print(f"| {kind} | {' | '.join(f'{kinds[kind][0]:.2f}' for kinds in profiles.values())} |")
    measure.write_json(measure.output_path(arguments, "step_profile"), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
