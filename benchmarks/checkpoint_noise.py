"""What packed checkpoints do to the gradient of a small language model that has been trained for some hundred steps.

Each layer is a checkpoint of its own, whose input has so many bits; beside it exact checkpoints, and blocks of 4 bits
with and without a packed checkpoint around each layer. Noise and bias are those of gradient_quality.py, of one batch in
float32.

    .venv/bin/python benchmarks/checkpoint_noise.py --device cpu
    .venv/bin/python benchmarks/checkpoint_noise.py --smoke --device cpu
"""

import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial

import language
import loss_curves
import measure
import texts
import torch
from gradient_quality import Quality
from language_models import Sizes
from measure import actnn
from nonlinear_uses import gradient_of
from steps import with_blocks, with_checkpoints
from torch import Tensor, nn

STEPS = 300
SIZES = {"context": 128, "layers": 4, "hidden": 128, "heads": 4}


class Checkpoint(nn.Module):
    """Around a call of a layer, which is what leads to its blocks."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return actnn.checkpoint(self.layer, x)


def packed_around_blocks(model: nn.Module) -> nn.Module:
    model.layers = nn.ModuleList(Checkpoint(with_blocks(4, layer)) for layer in model.layers)
    return model


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "exact": lambda model: model,
    "checkpoint": with_checkpoints,
    **{f"checkpoint packed, {bits} bits": partial(with_checkpoints, bits=bits) for bits in (8, 6, 5, 4)},
    "blocks": partial(with_blocks, 4),
    "checkpoint packed, 8 bits, around blocks": packed_around_blocks,
}


def cells(row: dict) -> dict[str, str]:
    return {
        "variant": row["variant"],
        "kept KiB": f"{row['kept_bytes'] / 1024:.0f}",
        "error": f"{row['noise'] ** 0.5:.2g}",
        "noise": f"{row['noise']:.2g}",
        "bias (se)": f"{row['bias']:.1g} ({row['bias_error']:.1g})",
        "projection (se)": f"{row['projection']:.5f} ({row['projection_error']:.5f})",
    }


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    texts.add_option(parser)
    parser.add_argument("--draws", type=int, default=64, help="gradients of each variant (default: %(default)s)")
    arguments = parser.parse_args(command_line)
    device, path = measure.chosen_device(arguments), measure.output_path(arguments, "checkpoint_noise")
    steps, draws = (2, 3) if arguments.smoke else (STEPS, arguments.draws)
    characters = language.Characters(texts.read(arguments.text), device)
    sizes = Sizes(characters.vocabulary, **(language.SMOKE_SIZES if arguments.smoke else SIZES))
    task = language.LanguageModel("gpt", sizes, characters, steps, batch=16, rate=1e-3)
    record = {"benchmark": "checkpoint_noise", "machine": measure.machine(device), "draws": draws}
    measure.print_machine(record["machine"])
    trained = loss_curves.Run(task, "exact", seed=0, device=device)
    trained.fit()
    record["text"] = f"{task.text()}; loss {trained.losses[0]:.3f} at first, {trained.losses[-1]:.3f} at last"
    print(record["text"], flush=True)
    samples = task.order(seed=2**20)[0].to(device)
    loss = partial(task.loss, samples=samples)
    exact = gradient_of(trained.model, loss).clone()
    record["rows"] = []
    for name, prepare in VARIANTS.items():
        model = prepare(copy.deepcopy(trained.model))
        kept = actnn.measure_kept_bytes(model, partial(loss, model)).total
        quality = Quality.of(torch.stack([gradient_of(model, loss) for _ in range(draws)]), exact)
        record["rows"].append({"variant": name, "kept_bytes": kept, **vars(quality)})
    measure.print_markdown([cells(row) for row in record["rows"]])
    measure.write_json(path, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
