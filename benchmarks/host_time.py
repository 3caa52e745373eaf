"""What a call of a converted model costs the host, beside the exact model's, and how long capturing takes.

Host time is that of calls whose tensors are tiny: of one forward (with gradients), and of forward and backward, on one
thread; medians over calls that take turns. Capturing is the first call.

    .venv/bin/python benchmarks/host_time.py --device cpu
    .venv/bin/python benchmarks/host_time.py --device cpu --smoke
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import measure
import torch
from measure import actnn, print_rows
from models import BertLayer, BertSizes, ResNet
from networks import NETWORKS
from torch import Tensor, nn


class Layers(nn.Module):
    """The layers of a BERT, without embeddings and head."""

    def __init__(self, count: int, sizes: BertSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(BertLayer(sizes) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    input: Callable[[], Tensor]


def images(pixels: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, pixels, pixels)


def called(smoke: bool) -> list[Case]:
    count = 2 if smoke else 24
    tiny = BertSizes(hidden=16, heads=2, intermediate=32)
    depths = (1, 1, 1, 1) if smoke else (3, 8, 36, 3)
    return [
        Case(f"BERT, {count} tiny layers", lambda: Layers(count, tiny), lambda: torch.randn(2, 8, 16)),
        Case("ResNet-152, width 8, 32 x 32", lambda: ResNet(depths, 8, 10), images(32)),
        Case("EfficientNet-B0, 32 x 32", NETWORKS["efficientnet_b0"].make_tiny if smoke
             else NETWORKS["efficientnet_b0"].make, images(32)),
    ]  # fmt: skip


def captured(smoke: bool) -> list[Case]:
    if smoke:
        return [Case("ResNet, tiny", NETWORKS["resnet50"].make_tiny, images(32))]
    return [
        Case("ResNet-50", NETWORKS["resnet50"].make, images(64)),
        Case("DenseNet-201", NETWORKS["densenet201"].make, images(64)),
        Case("BERT-large's layers", lambda: Layers(24, BertSizes()), lambda: torch.randn(1, 16, 1024)),
    ]


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    measure.synchronize(device)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def host_times(case: Case, device: torch.device, calls: int) -> dict[str, str]:
    """Medians in milliseconds."""
    models = {"exact": case.make().to(device), "converted": case.make().to(device)}
    actnn.convert(models["converted"])
    x = case.input().to(device)
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(calls + 3):
        for name, model in models.items():
            outputs = []
            forward = seconds_of(lambda model=model, outputs=outputs: outputs.append(model(x)), device)
            loss = outputs.pop().float().sum()
            backward = seconds_of(loss.backward, device)
            if turn >= 3:
                times.setdefault((name, "forward"), []).append(1e3 * forward)
                times.setdefault((name, "both"), []).append(1e3 * (forward + backward))
    row = {"model": case.name}
    for what in ("forward", "both"):
        exact, converted = median(times["exact", what]), median(times["converted", what])
        row[f"{what}, exact [ms]"] = f"{exact:.2f}"
        row[f"{what}, converted [ms]"] = f"{converted:.2f}"
        row[f"ratio, {what}"] = f"{converted / exact:.2f}"
    return row


def capture_time(case: Case, device: torch.device) -> dict[str, str]:
    model, x = case.make().to(device), case.input().to(device)
    exact = seconds_of(lambda: model(x), device)
    report = actnn.convert(model)
    first = seconds_of(lambda: model(x), device)
    second = seconds_of(lambda: model(x), device)
    return {
        "model": case.name,
        "blocks": str(len(report.blocks)),
        "exact call [s]": f"{exact:.2f}",
        "first call [s]": f"{first:.2f}",
        "second [s]": f"{second:.2f}",
    }


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    device = measure.chosen_device(arguments)
    torch.set_num_threads(1)
    record = {"machine": measure.machine(device)}
    measure.print_machine(record["machine"])
    record["host"] = [host_times(case, device, 3 if arguments.smoke else 15) for case in called(arguments.smoke)]
    print_rows(record["host"])
    print()
    record["capture"] = [capture_time(case, device) for case in captured(arguments.smoke)]
    print_rows(record["capture"])
    measure.save(measure.output_path(arguments, "host_time"), record)


if __name__ == "__main__":
    main()
