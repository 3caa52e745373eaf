"""What copies of values that are used in other ways than linearly do to a gradient, each by itself, at a trained state.

Such uses are biased of the order of the copy's variance. The input of GELU or SwiGLU, and query, key and value, have
few bits one at a time, beside norms and linear layers of 4 bits (an input that is kept for GELU has no fewer bits than
those) and 8 for all else; what a use adds is its difference to the row without it.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import language
import loss_curves
import measure
import minilm
import texts
import torch
from gradient_quality import Quality, replayed
from measure import actnn
from torch import Tensor, nn

STEPS = 400  # of a language model
FINE = {"output_bits": 8, "norm_bits": 8, "smooth_bits": 8, "attention_bits": 0}
"""Query, key and value exactly."""


@dataclass(frozen=True)
class Use:
    options: dict
    """Of blocks."""
    base: str = ""
    """The row that this one has a use more than."""


def linears(bits: int) -> str:
    return f"norms and linears {bits}"


USES = {linears(bits): Use(FINE | {"bits": bits}) for bits in (8, 6, 4)}
USES |= {
    f"+ input of GELU, SwiGLU {bits}": Use(FINE | {"bits": 4, "smooth_bits": bits}, linears(4)) for bits in (6, 5, 4)
}
USES |= {
    f"+ query, key, value {bits}": Use(FINE | {"bits": 4, "attention_bits": bits}, linears(4)) for bits in (8, 6, 5)
}
USES |= {
    f"+ query, key, value computed again from {bits}": Use(
        FINE | {"bits": bits, "attention_bits": bits, "recompute_attention": True}, linears(bits)
    )
    for bits in (8, 6)
}
USES |= {"defaults": Use({}), "defaults, query, key, value 5": Use({"attention_bits": 5}, "defaults")}


# --- trained states ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """A trained model in evaluation mode, and the loss of one batch."""

    text: str
    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    can_replay: bool
    """Whether a gradient can be a CUDA graph: nothing in it waits for the host."""


def language_state(kind: str, arguments: argparse.Namespace, device: torch.device) -> State:
    """A small language model that has learned for some hundred steps."""
    task = language.task_of(arguments, kind, device, STEPS)
    run = loss_curves.Run(task, "exact", seed=0, device=device)
    run.fit()
    samples = task.order(seed=2**20)[0, : arguments.windows].to(device)
    text = f"{task.text()}; loss {run.losses[0]:.3f} at first, {run.losses[-1]:.3f} at last"
    return State(text, run.model.eval(), lambda model: task.loss(model, samples), can_replay=True)


def encoder_state(arguments: argparse.Namespace, device: torch.device) -> State:
    """all-MiniLM-L6-v2 as it is, and pairs of sentences that follow each other."""
    folder = minilm.folder(arguments.model_folder)
    pairs = texts.neighbours(texts.read(arguments.text))[:: 8 if arguments.smoke else 64][: arguments.windows]
    first, second = zip(*pairs, strict=True)
    batch = {name: tensor.to(device) for name, tensor in minilm.tokens(folder, [*first, *second], 64).items()}

    def loss(model: nn.Module) -> Tensor:
        return minilm.contrastive_loss(*minilm.embeddings(model, batch).chunk(2))

    text = f"all-MiniLM-L6-v2, contrastive loss of {len(pairs)} pairs of sentences"
    return State(text, minilm.load(folder).to(device).eval(), loss, can_replay=False)


STATES: dict[str, Callable[[argparse.Namespace, torch.device], State]] = {
    "minilm": encoder_state,
    "gpt": lambda arguments, device: language_state("gpt", arguments, device),
    "llama": lambda arguments, device: language_state("llama", arguments, device),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def gradient_of(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """Flat, without parameters that the loss does not depend on."""
    model.zero_grad()
    loss(model).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def row_of(use: str, state: State, exact: Tensor, draws: int) -> dict:
    options = actnn.BlockOptions(**USES[use].options)
    model = copy.deepcopy(state.model)
    # Functions outside of blocks, as the last norm may be, have the configuration's bits.
    config = actnn.Config("L2", activation_compression_bits=[4 if options.bits is None else 8])
    actnn.convert(model, config, blocks=options)
    draw = partial(gradient_of, model, state.loss)
    kept = actnn.measure_kept_bytes(model, draw)
    if exact.is_cuda and state.can_replay:
        draw = replayed(draw)
    quality = Quality.of(torch.stack([draw().clone() for _ in range(draws)]), exact)
    return {"use": use, "draws": draws, "kept_bytes": sum(kept.blocks.values()), **vars(quality)}


def table(
    names: Iterable[str], arguments: argparse.Namespace, draws: int, device: torch.device, save: Callable[[list], None]
) -> list[dict]:
    """A part for each state; they are saved row by row."""
    parts: list[dict] = []
    for name in names:
        state = STATES[name](arguments, device)
        print(state.text, flush=True)
        exact = gradient_of(state.model, state.loss).clone()
        part = {"state": name, "text": state.text, "rows": []}
        parts.append(part)
        for use in USES:
            part["rows"].append(row_of(use, state, exact, draws))
            save(parts)
            print(use, flush=True)
        print()
        measure.print_markdown([cells(row, part["rows"]) for row in part["rows"]])
        print(flush=True)
    return parts


def cells(row: Mapping, rows: Sequence[Mapping]) -> dict[str, str]:
    base = next((other for other in rows if other["use"] == USES[row["use"]].base), None)
    error = math.hypot(row["bias_error"], base["bias_error"]) if base else 0.0
    return {
        "copies, bits": row["use"],
        "noise": f"{row['noise']:.3g}",
        "it adds": f"{row['noise'] - base['noise']:.2g}" if base else "",
        "bias (se)": f"{row['bias']:.2g} ({row['bias_error']:.1g})",
        "it adds (se)": f"{row['bias'] - base['bias']:.2g} ({error:.1g})" if base else "",
        "projection (se)": f"{row['projection']:.4f} ({row['projection_error']:.4f})",
        "cosine": f"{row['cosine']:.4f}",
        "draws": str(row["draws"]),
        "kept MiB": f"{row['kept_bytes'] / measure.MIB:.2f}",
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(STATES)
    parser.add_argument("--states", default=",".join(STATES), help=f"for `uses`, of {known} (default: all)")
    parser.add_argument("--windows", type=int, default=32, help="in the batch of `uses` (default: %(default)s)")
    parser.add_argument(
        "--uses-draws", type=int, default=128, help="gradients of each of `uses` (default: %(default)s)"
    )
    language.add_options(parser, STEPS)
    minilm.add_option(parser)
