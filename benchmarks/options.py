"""What the results of a training depend on, and its part of the command line."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import models
import torch
from images import AUGMENTATIONS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """Those that `--resume` adds to must have the same."""

    network: str = "resnet20"
    steps: int = 4000
    batch: int = 128
    width: int = 16
    lr: float = 0.1
    device: str = "cuda"
    dtype: str = "float32"
    images: int | None = None
    images_per_class: int | None = None
    test_images: int | None = None
    synthetic: bool = False
    augmentation: str = "standard"
    label_noise: float = 0.0
    draws: int = 8
    noise_batches: int = 4
    corrections: int = 10
    graph: bool = False


# Not narrower: with AVX2 alone, oneDNN's gradient of a strided 1 x 1 convolution's 4 channels writes beyond its memory.
SMOKE = Options(steps=12, batch=32, width=8, images=512, test_images=256, synthetic=True, draws=8, noise_batches=1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of `Options`, whose defaults `--smoke` changes."""
    full = Options()
    widths = ", ".join(f"{width} for {name}" for name, (_, width) in models.NETWORKS.items())
    parser.add_argument("--network", choices=models.NETWORKS, help=f"(default: {full.network})")
    parser.add_argument("--steps", type=int, help=f"of training (default: {full.steps})")
    parser.add_argument("--batch", type=int, help=f"images of a step (default: {full.batch})")
    parser.add_argument("--width", type=int, help=f"channels of the first stage (default: {widths})")
    parser.add_argument("--lr", type=float, help=f"highest learning rate (default: {full.lr})")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 is autocast (default: float32)")
    parser.add_argument("--images", type=int, help="the first ones of the training images (default: all)")
    parser.add_argument("--images-per-class", type=int, help="of these, the first ones of each class (default: all)")
    parser.add_argument("--test-images", type=int, help="the first ones of the test images (default: all)")
    parser.add_argument("--data", type=Path, help="folder of the idx files (default: data/fashion-mnist)")
    parser.add_argument("--synthetic", action="store_true", default=None, help="made-up images instead")
    parser.add_argument("--augmentation", choices=AUGMENTATIONS, help="strong: a rectangle erased, too")
    parser.add_argument("--label-noise", type=float, metavar="P", help="share of wrong training labels (default: 0)")
    parser.add_argument("--draws", type=int, help=f"backwards on a batch, for its noise (default: {full.draws})")
    parser.add_argument("--noise-batches", type=int, help=f"for the noise (default: {full.noise_batches})")
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's)")
    parser.add_argument("--graph", action="store_true", default=None, help="replay steps as CUDA graphs where possible")


def chosen_options(arguments: argparse.Namespace, **defaults: object) -> Options:
    """What the command line says; for the rest the `defaults`, then those of `Options`."""
    if not arguments.smoke:
        network = arguments.network or Options.network
        defaults = {"width": models.NETWORKS[network][1]} | defaults
    chosen = vars(SMOKE if arguments.smoke else Options()) | defaults
    given = {key: getattr(arguments, key, None) for key in chosen}
    options = Options(**{key: chosen[key] if value is None else value for key, value in given.items()})
    check(options)
    return options


def check(options: Options) -> None:
    if min(options.steps, options.batch, options.width, options.noise_batches) < 1 or options.draws < 2:
        raise SystemExit("--steps, --batch, --width and --noise-batches must be positive, --draws two or more")
    if not 0 <= options.label_noise < 1:
        raise SystemExit(f"--label-noise must be a share from 0 to 1, got {options.label_noise}")
    if options.graph and torch.device(options.device).type != "cuda":
        raise SystemExit("--graph needs a CUDA device")


def names(text: str, known: Mapping[str, object], what: str) -> list[str]:
    result = text.split(",")
    if unknown := [name for name in result if name not in known]:
        raise SystemExit(f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}")
    return result
