"""Fashion-MNIST, or made-up images of its kind, as tensors on the device; batches that depend on nothing but a seed."""

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from measure import ROOT
from torch import Tensor

FOLDERS = (ROOT / "data/fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))
CLASSES, SIDE = 10, 28
MEAN, DEVIATION = 72.94, 90.02  # of the 60,000 training images, in units of a pixel's 0 to 255
MARGIN = 2  # pixels that an image is moved by at most


def read_idx(path: Path) -> Tensor:
    """The bytes of an idx file, gzipped or not: uint8, in the file's shape."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} must be an idx file of unsigned bytes, but begins with {data[:4].hex()}")
    dimensions = data[3]
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * dimensions).reshape(shape)


def find_folder(folder: Path | None) -> Path:
    candidates = (folder,) if folder else FOLDERS
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise SystemExit(
        f"there are no images to train on in {' or '.join(map(str, candidates))}; run tools/fetch-fashion-mnist, name "
        "a folder with --data, or try the program out with --synthetic"
    )


@dataclass(frozen=True)
class Batch:
    images: Tensor  # float32 [N, 1, 28, 28], channels_last, normalized
    labels: Tensor  # int64 [N]
    indices: Tensor  # int64 [N], in the data set


@dataclass(frozen=True)
class Images:
    """A data set in the device's memory: uint8 [N, 1, 28, 28], int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, shifts: Tensor | None = None, flips: Tensor | None = None) -> Batch:
        """The images of `indices`, each moved by its shift (pixels down and right, [N, 2]), flipped where `flips`."""
        images = self.images[indices]
        if shifts is not None:
            pixels = torch.arange(SIDE, device=images.device)
            rows = pixels + (MARGIN - shifts[:, :1])
            columns = torch.where(flips[:, None], SIDE - 1 - pixels, pixels) + (MARGIN - shifts[:, 1:])
            samples = torch.arange(len(images), device=images.device)[:, None, None]
            padded = F.pad(images, (MARGIN,) * 4)[:, 0]
            images = padded[samples, rows[:, :, None], columns[:, None, :]][:, None]
        normalized = images.to(torch.float32).sub_(MEAN).mul_(1 / DEVIATION)
        return Batch(normalized.contiguous(memory_format=torch.channels_last), self.labels[indices], indices)

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """Augmented batches without end. Their order, shifts and flips depend on nothing but the seed and the epoch."""
        if size > len(self):
            raise SystemExit(f"a batch of {size} images needs as many to choose from, but there are {len(self)}")
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(len(self), generator=generator)
            shifts = torch.randint(-MARGIN, MARGIN + 1, (len(self), 2), generator=generator)
            flips = torch.rand(len(self), generator=generator) < 0.5
            order, shifts, flips = (tensor.to(self.labels.device) for tensor in (order, shifts, flips))
            for begin in range(0, len(self) - size + 1, size):
                part = slice(begin, begin + size)
                yield self.batch(order[part], shifts[part], flips[part])
            epoch += 1

    def in_order(self, size: int) -> Iterator[Batch]:
        """All images, as they are."""
        for indices in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.batch(indices)


def load(folder: Path, split: str, limit: int | None, device: torch.device) -> Images:
    """The first `limit` images (None: all) of "train" or "t10k"."""
    tensors = []
    for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
        path = next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)
        if path is None:
            raise SystemExit(f"{folder} has no {name}.gz; run tools/fetch-fashion-mnist")
        tensors.append(read_idx(path)[:limit])
    images, labels = tensors
    return Images(images[:, None].to(device), labels.to(device, torch.int64))


def synthetic(count: int, seed: int, device: torch.device) -> Images:
    """A pattern for each class, the same for all seeds, under as much noise."""
    patterns = torch.rand(CLASSES, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    patterns = F.interpolate(patterns, SIDE, mode="bilinear") * 200
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 1, SIDE, SIDE, generator=generator) * 50
    return Images((patterns[labels] + noise).clamp(0, 255).to(torch.uint8).to(device), labels.to(device))
