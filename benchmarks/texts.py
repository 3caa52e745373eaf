"""English text to train on: the Jargon File, or the help texts that Python ships."""

import argparse
import gzip
import pydoc_data.topics
import re
from itertools import pairwise
from pathlib import Path

INSTALLED = Path("/usr/share/doc/jargon-text/jargon.txt.gz")
PIECES, HELD_OUT = 100, 10
SHORTEST = 5  # words of a sentence


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text, may be compressed by gzip (default: the Jargon File of the Debian package jargon-text)",
    )


def read(path: Path | None) -> str:
    """The text in a file; without one the Jargon File; if that is not installed, Python's help texts."""
    if path is None and not INSTALLED.exists():
        print(f"{INSTALLED} is not there (Debian's package jargon-text): Python's help texts instead\n", flush=True)
        return "\n\n".join(pydoc_data.topics.topics.values())
    path = path or INSTALLED
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def divided(text: str) -> tuple[str, str]:
    """(for training, for validation): of a hundred pieces every tenth is held out, since both ends are appendices."""
    bounds = [len(text) * i // PIECES for i in range(PIECES + 1)]
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    held_out = pieces[HELD_OUT - 1 :: HELD_OUT]
    return "".join(piece for i, piece in enumerate(pieces) if i % HELD_OUT != HELD_OUT - 1), "".join(held_out)


def neighbours(text: str) -> list[tuple[str, str]]:
    """Every sentence, with the one behind it in the same paragraph."""
    pairs = []
    for paragraph in re.split(r"\n\s*\n", text):
        sentences = re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))
        sentences = [sentence for sentence in sentences if len(sentence.split()) >= SHORTEST]
        pairs += pairwise(sentences)
    return pairs
