"""Batch norm with ReLU on a GPU: the passes of the fused kernels beside torch's layers, and whole steps as CUDA graphs.

passes  microseconds of each pass over the activations of a ResNet-50 at batch 128, replayed from a CUDA graph
graph   milliseconds of forward + backward of ResNet-50, launched layer by layer and replayed from a CUDA graph

    .venv/bin/python benchmarks/norm_act.py
"""

import sys
import time
from collections.abc import Callable

import measure
import models
import torch
import torch.nn.functional as F  # noqa: N812
from measure import actnn
from torch import Tensor, nn

ops = torch.ops.actnn

BATCH = 128
BITS = 4
SHAPES = [(64, 112), (256, 56), (128, 28), (512, 28), (1024, 14), (2048, 7)]


# --- passes -----------------------------------------------------------------------------------------------------------


def microseconds(call: Callable[[], object], calls: int = 4, replays: int = 5) -> float:
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / (calls * replays) * 1e3


def passes_of(channels: int, side: int, dtype: torch.dtype) -> dict[str, float]:
    rows = BATCH * side * side
    x, grad = (torch.randn(rows, channels, device="cuda").to(dtype) for _ in range(2))
    weight, bias = torch.rand(channels, device="cuda") + 0.5, torch.randn(channels, device="cuda")
    coefficients, decode, _ = ops.norm_act_channels(*ops.channel_moments(x), weight, bias, 1e-5, True)
    relu = "leaky_relu", 0.0, BITS - 1  # the side is one of the bits
    _, packed = ops.norm_act(x, None, coefficients, *relu)
    gradients = torch.rand(channels, 6, device="cuda")
    gradients[:, 3] = decode[:, 4]
    target = torch.empty_like(x)
    image = x.view(BATCH, side, side, channels).permute(0, 3, 1, 2)
    return {
        "copy": microseconds(lambda: target.copy_(x)),
        "moments": microseconds(lambda: ops.channel_moments(x)),
        "forward": microseconds(lambda: ops.norm_act(x, None, coefficients, *relu)),
        "sums": microseconds(lambda: ops.norm_act_sums(packed, grad, None, decode, *relu)),
        "gradient": microseconds(lambda: ops.norm_act_input_gradient(packed, grad, None, gradients, *relu)),
        "output again": microseconds(lambda: ops.norm_act_output(packed, decode, rows, dtype, *relu)),
        "torch forward": microseconds(lambda: F.relu_(F.batch_norm(image, None, None, weight, bias, training=True))),
    }


def measure_passes() -> list[dict]:
    print(f"microseconds, batch {BATCH}, {BITS} bits")
    rows = []
    for channels, side in SHAPES:
        row = {"channels": channels, "side": side, "dtype": "bfloat16", **passes_of(channels, side, torch.bfloat16)}
        if not rows:
            table = measure.Table({key: max(8, len(key)) for key in row})
        table.row([f"{value:.0f}" if isinstance(value, float) else str(value) for value in row.values()])
        rows.append(row)
    print()
    return rows


# --- graph ------------------------------------------------------------------------------------------------------------


def converted(
    level: str, bits: int, blocks: bool | actnn.BlockOptions = False, **flags: int
) -> Callable[[models.ResNet], object]:
    flags["activation_compression_bits"] = [bits]
    return lambda model: actnn.convert(model, actnn.Config(level, **flags), blocks=blocks)


VARIANTS = {
    "exact": lambda model: None,
    "2 bits (L2)": converted("L2", 2),
    "2 bits on average (L3)": converted("L3", 2),
    "L3, measured every 10 steps": converted("L3", 2, adapt_interval=10),
    "blocks, 4 and 3 bits": converted("L2", 4, True),
    "blocks, 3 and 3 bits": converted("L2", 3, True),
    "blocks, nothing recomputed": converted("L2", 4, actnn.BlockOptions(recompute=False)),
}


def step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        # A cast weight that autocast kept from before a capture would not be cast again at a replay.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    return step


def milliseconds(call: Callable[[], object], count: int) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count * 1e3


def measure_graphs() -> list[dict]:
    images = torch.randn(BATCH, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (BATCH,), device="cuda")
    print(f"ResNet-50, {BATCH} images, bfloat16 autocast, channels_last: forward + backward, ms")
    table = measure.Table({"variant": 28, "layer by layer": 15, "CUDA graph": 11})
    rows = []
    for name, prepare in VARIANTS.items():
        torch.manual_seed(0)
        model = models.ResNet().cuda().to(memory_format=torch.channels_last)
        prepare(model)
        step = step_of(model, images, labels)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(4):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        eager = milliseconds(step, 10)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        graph.replay()
        rows.append({"variant": name, "eager": eager, "graph": milliseconds(graph.replay, 15)})
        table.row([name, f"{eager:.1f}", f"{rows[-1]['graph']:.1f}"])
        del graph, step, model
    return rows


def main() -> int:
    arguments = measure.parser(__doc__).parse_args()
    device = measure.chosen_device(arguments)
    if device.type != "cuda":
        print("norm_act.py measures a GPU; there is none, or --device says otherwise")
        return 1
    record = {"benchmark": "norm_act", "machine": measure.machine(device)}
    measure.print_machine(record["machine"])
    record["passes"] = measure_passes()
    record["graph"] = measure_graphs()
    measure.write_json(measure.output_path(arguments, "norm_act"), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
