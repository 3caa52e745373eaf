"""Bytes and noise of a large network's blocks, with the same bits for all values and with bits of their own.

A network of `networks.py` is trained with exact activations, in bfloat16, on Fashion-MNIST enlarged to its size. At
that state every variant's noise is measured (`actnn.measure_gradient_noise`, on one batch, drawn again and again), what
its blocks keep of the batch for backward, and the peak of a step, the optimizer's momenta included.

    .venv/bin/python benchmarks/fitted_bits.py
    .venv/bin/python benchmarks/fitted_bits.py --network mobilenet_v2 --noises 0.05 --sizes 400
    .venv/bin/python benchmarks/fitted_bits.py --smoke --device cpu
"""

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import images
import measure
import torch
import torch.nn.functional as F  # noqa: N812
from measure import MIB, actnn
from networks import NETWORKS
from steps import allocated, with_blocks
from torch import Tensor, nn
from training import learning_rate

HIGHEST_RATE = 0.05
FIXED = {"4 bits": (4, {}), "4 bits, stored": (4, {"recompute": False}), "3 bits": (3, {}), "2 bits": (2, {})}
COLUMNS = ("variant", "bits of an element", "noise", "activations MiB", "peak MiB")


class Trained:
    """The network and what its steps take."""

    def __init__(self, model: nn.Module, batches: Iterator[images.Batch], pixels: int, device: torch.device):
        self.model, self.device, self.pixels = model, device, pixels
        self.batches = batches

    def batch(self) -> tuple[Tensor, Tensor]:
        batch = next(self.batches)
        enlarged = F.interpolate(batch.images, (self.pixels, self.pixels), mode="bilinear").expand(-1, 3, -1, -1)
        return enlarged.contiguous(memory_format=torch.channels_last), batch.labels

    def loss(self, model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return F.cross_entropy(model(pictures), labels)

    def train(self, steps: int) -> tuple[float, float]:
        """(the first loss, the mean of the last twentieth)"""
        optimizer = torch.optim.SGD(self.model.parameters(), HIGHEST_RATE, momentum=0.9, weight_decay=1e-4)
        losses = []
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, HIGHEST_RATE)
            loss = self.loss(self.model, *self.batch())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses[0].item(), torch.stack(losses[-max(steps // 20, 1) :]).mean().item()


def peak_of(model: nn.Module, backward: Callable[[], object], device: torch.device) -> int | None:
    """Of a step with SGD: all that is allocated."""
    if device.type != "cuda":
        return None
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    model.zero_grad()
    for _ in range(2):  # the first one makes the momenta
        optimizer.zero_grad()
        backward()
        optimizer.step()
    optimizer.zero_grad()
    measure.release_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    backward()
    optimizer.step()
    optimizer.zero_grad()
    return torch.cuda.max_memory_allocated(device)


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pixels", type=int, default=224, help="of each side")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--draws", type=int, default=8, help="of the noise, for each measurement")
    parser.add_argument("--noises", default="0.05,0.1,0.2", help="under which the fewest bytes are asked for")
    parser.add_argument("--sizes", default="450", help="MiB in which the least noise is asked for")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST")
    arguments = parser.parse_args()
    device = measure.chosen_device(arguments)
    if arguments.smoke:
        arguments.batch, arguments.pixels, arguments.steps, arguments.draws = 8, 32, 3, 2
        arguments.noises, arguments.sizes = "0.5", "1"
    known = NETWORKS[arguments.network]
    settings = {key: vars(arguments)[key] for key in ("network", "batch", "pixels", "steps", "draws")}
    record = {"benchmark": "fitted_bits", "machine": measure.machine(device), "settings": settings, "rows": []}
    measure.print_machine(record["machine"])

    data = (
        images.synthetic(64, 0, device)
        if arguments.smoke
        else images.load(images.find_folder(arguments.data), "train", None, device)
    )
    torch.manual_seed(0)
    with device:
        model = (known.make_tiny if arguments.smoke else known.make)().to(memory_format=torch.channels_last)
    trained = Trained(model, data.batches(arguments.batch, 0), arguments.pixels, device)
    record["losses"] = trained.train(arguments.steps)
    print(f"{known.title}: loss {record['losses'][0]:.3f}, after {arguments.steps} steps {record['losses'][1]:.3f}\n")
    batch = trained.batch()

    def row(name: str, bits: int, options: dict, fit: Callable[..., actnn.BlockFit] | None = None) -> None:
        measure.release_memory(device)
        base = allocated(device)
        converted = with_blocks(bits, copy.deepcopy(model), **options)
        backward = lambda: trained.loss(converted, *batch).backward()  # noqa: E731
        backward()
        converted.zero_grad()
        fitted = fit(converted, backward) if fit else None
        found = {
            "variant": name,
            "mean_bits": fitted.mean_bits if fitted else None,
            "noise": actnn.measure_gradient_noise(converted, backward, arguments.draws),
            "bits": [value.bits for value in fitted.values] if fitted else None,
            "predicted_noise": fitted.predicted_noise if fitted else None,
            "kept_bytes": actnn.measure_kept_bytes(converted, lambda: trained.loss(converted, *batch)).total,
        }
        peak = peak_of(converted, backward, device)
        found["peak_bytes"] = peak = peak and peak - base
        record["rows"].append(found)
        mean_bits = f"{fitted.mean_bits:.2f}" if fitted else ""
        peak_mib = f"{peak / MIB:.0f}" if peak else ""
        print(
            f"| {name} | {mean_bits} | {found['noise']:.4f} | {found['kept_bytes'] / MIB:.0f} | {peak_mib} |",
            flush=True,
        )

    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, (bits, options) in FIXED.items():
        row(name, bits, options)
    wanted = [("noise", float(text), f"noise {text}") for text in arguments.noises.split(",")]
    wanted += [("memory", int(text) * MIB, f"{text} MiB") for text in arguments.sizes.split(",")]
    for (what, number, name), recompute in itertools.product(wanted, (True, False)):
        fit = partial(actnn.fit_blocks, draws=arguments.draws, **{what: number})
        row(f"{name}{'' if recompute else ', stored'}", 4, {"recompute": recompute}, fit)
    measure.write_json(measure.output_path(arguments, "fitted_bits"), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
