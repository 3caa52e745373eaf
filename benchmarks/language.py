"""Does a language model learn as well from compressed activations? A character model of 10 million parameters, trained
from nothing on the Jargon File, seed by seed: the loss on the way, at the end and of held-out text.

    .venv/bin/python benchmarks/language.py                                     # GPT, 4 settings x 5 seeds x 1500 steps
    .venv/bin/python benchmarks/language.py --text jargon.txt.gz --until 300
    .venv/bin/python benchmarks/language.py --model llama --settings exact,blocks --seeds 3 --output llama.json
    .venv/bin/python benchmarks/language.py --first-seed 5 --output more.json   # other seeds, perhaps at once
    .venv/bin/python benchmarks/language.py --table benchmarks/results/language.json more.json
    .venv/bin/python benchmarks/language.py --smoke --device cpu
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import loss_curves
import measure
import texts
import torch
import torch.nn.functional as F  # noqa: N812
from language_models import MODELS, Sizes
from torch import Tensor, nn

STEPS = 1500
SMOKE_SIZES = {"context": 32, "layers": 2, "hidden": 32, "heads": 2}


class Characters:
    """A text as numbers, every character one: `training` and `validation` are int64 [N]."""

    def __init__(self, text: str, device: torch.device):
        known = {character: number for number, character in enumerate(sorted(set(text)))}
        self.vocabulary = len(known)
        self.training, self.validation = (
            torch.tensor([known[character] for character in part], device=device) for part in texts.divided(text)
        )


@dataclass
class LanguageModel:
    """The loss of every next character in windows of the text, wherever they begin."""

    kind: str
    sizes: Sizes
    characters: Characters
    steps: int
    batch: int
    rate: float

    def text(self) -> str:
        count = sum(parameter.numel() for parameter in self.model().parameters())
        windows = f"{self.batch} windows of {self.sizes.context} characters"
        text = f"{len(self.characters.training):,} characters of {self.characters.vocabulary} kinds"
        return (
            f"{self.kind}, {count:,} parameters, dropout {self.sizes.dropout}; {self.steps} steps of {windows}; {text}"
        )

    def model(self) -> nn.Module:
        return MODELS[self.kind](self.sizes)

    def order(self, seed: int) -> Tensor:
        last = len(self.characters.training) - self.sizes.context
        return torch.randint(last, (self.steps, self.batch), generator=torch.Generator().manual_seed(seed))

    def loss(self, model: nn.Module, samples: Tensor) -> Tensor:
        return self.loss_of(model, self.characters.training, samples)

    def loss_of(self, model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
        windows = text[starts.unsqueeze(1) + torch.arange(self.sizes.context + 1, device=text.device)]
        logits = model(windows[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    def validation_loss(self, model: nn.Module) -> Tensor:
        text = self.characters.validation
        starts = torch.arange(0, len(text) - self.sizes.context, self.sizes.context, device=text.device)
        whole = len(starts) // self.batch * self.batch  # batches of one size need one graph
        return torch.stack([self.loss_of(model, text, part) for part in starts[:whole].split(self.batch)]).mean()


def add_options(parser: argparse.ArgumentParser, steps: int = STEPS) -> None:
    parser.add_argument("--steps", type=int, help=f"of a run (default: {steps})")
    parser.add_argument("--batch", type=int, help="windows of a step (default: 64)")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest (default: %(default)s)")
    texts.add_option(parser)


def task_of(arguments: argparse.Namespace, kind: str, device: torch.device, steps: int = STEPS) -> LanguageModel:
    """`steps` is how many without --steps and --smoke."""
    text = texts.read(arguments.text)
    characters = Characters(text[:20000] if arguments.smoke else text, device)
    sizes = Sizes(characters.vocabulary, dropout=arguments.dropout, **(SMOKE_SIZES if arguments.smoke else {}))
    count, batch = (loss_curves.whole(arguments, *values) for values in (("steps", 6, steps), ("batch", 4, 64)))
    return LanguageModel(kind, sizes, characters, count, batch, arguments.lr)


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", choices=MODELS, default="gpt", help="(default: gpt)")
    parser.add_argument("--eager", action="store_true", help="on CUDA, too: no CUDA graphs")
    add_options(parser)
    loss_curves.add_options(parser)
    arguments = parser.parse_args(command_line)
    if arguments.table:
        loss_curves.print_table(arguments)
        return 0
    device = measure.chosen_device(arguments)
    record = {"benchmark": "language" if arguments.model == "gpt" else f"language_{arguments.model}"}
    record["machine"] = measure.machine(device)
    measure.print_machine(record["machine"])
    replays = device.type == "cuda" and not arguments.eager
    # What is computed again with the same dropout needs a state that the host reads: no graph can have that.
    loss_curves.run_all(
        arguments,
        task_of(arguments, arguments.model, device),
        record,
        device,
        lambda setting: replays and not (setting == "checkpoint" and arguments.dropout),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
