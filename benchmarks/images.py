"""Fashion-MNIST, or made-up images of its kind, as tensors on the device; batches that depend on nothing but a seed."""

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from measure import ROOT
from torch import Tensor

FOLDERS = (ROOT / "data/fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))
CLASSES, SIDE = 10, 28
MEAN, DEVIATION = 72.94, 90.02  # of the 60,000 training images, in units of a pixel's 0 to 255
MARGIN = 2  # pixels that an image is moved by at most
SEEDS_APART = 1_000_003  # so many epochs have generators of their own
AUGMENTATIONS = ("standard", "strong")
ERASED, AREAS, RATIOS = 0.5, (0.02, 0.33), (0.3, 3.3)  # Zhong et al., "Random Erasing Data Augmentation" (2017)


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


class Batch(NamedTuple):
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

    def per_class(self, count: int) -> "Images":
        """The first `count` images of each class, in their order."""
        ranks = F.one_hot(self.labels, CLASSES).cumsum(0).gather(1, self.labels[:, None])[:, 0]
        return Images(self.images[ranks <= count], self.labels[ranks <= count])

    def with_wrong_labels(self, share: float, seed: int) -> "Images":
        """The same images; a share of them, and their wrong labels, are drawn by the seed."""
        generator = torch.Generator().manual_seed(seed * SEEDS_APART - 1)
        wrong = torch.randperm(len(self), generator=generator)[: round(share * len(self))]
        offsets = torch.zeros(len(self), dtype=torch.int64)
        offsets[wrong] = torch.randint(1, CLASSES, (len(wrong),), generator=generator)
        return Images(self.images, (self.labels + offsets.to(self.labels.device)) % CLASSES)

    def batch(
        self,
        indices: Tensor,
        shifts: Tensor | None = None,
        flips: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Batch:
        """The images of `indices`, each moved by its shift (pixels down and right, [N, 2]), flipped where `flips`, and
        with the mean where its box is (top, left, bottom and right, [N, 4]).
        """
        images = self.images[indices]
        if shifts is not None:
            pixels = torch.arange(SIDE, device=images.device)
            rows = pixels + (MARGIN - shifts[:, :1])
            columns = torch.where(flips[:, None], SIDE - 1 - pixels, pixels) + (MARGIN - shifts[:, 1:])
            samples = torch.arange(len(images), device=images.device)[:, None, None]
            padded = F.pad(images, (MARGIN,) * 4)[:, 0]
            images = padded[samples, rows[:, :, None], columns[:, None, :]][:, None]
        normalized = images.to(torch.float32).sub_(MEAN).mul_(1 / DEVIATION)
        if boxes is not None:
            normalized = normalized.masked_fill(inside(boxes)[:, None], 0)
        return Batch(normalized.contiguous(memory_format=torch.channels_last), self.labels[indices], indices)

    def batches(self, size: int, seed: int, augmentation: str = "standard") -> Iterator[Batch]:
        """Augmented batches without end, which depend on nothing but the seed. "strong" erases boxes, too."""
        if size > len(self):
            raise SystemExit(f"a batch of {size} images needs as many to choose from, but there are {len(self)}")
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(seed * SEEDS_APART + epoch)
            order = torch.randperm(len(self), generator=generator)
            shifts = torch.randint(-MARGIN, MARGIN + 1, (len(self), 2), generator=generator)
            flips = torch.rand(len(self), generator=generator) < 0.5
            drawn = [order, shifts, flips]
            if augmentation == "strong":
                drawn.append(draw_boxes(len(self), generator))
            drawn = [tensor.to(self.labels.device) for tensor in drawn]
            for begin in range(0, len(self) - size + 1, size):
                yield self.batch(*(tensor[begin : begin + size] for tensor in drawn))
            epoch += 1

    def in_order(self, size: int) -> Iterator[Batch]:
        """All images, as they are."""
        for indices in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.batch(indices)


def draw_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Rectangles to erase, int64 [N, 4]: top, left, bottom, right. Some are empty."""
    erased, area, ratio, top, left = torch.rand(5, count, generator=generator)
    area = SIDE**2 * (AREAS[0] + (AREAS[1] - AREAS[0]) * area)
    ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** ratio
    height, width = ((area * r).sqrt().round().clamp(1, SIDE) for r in (ratio, 1 / ratio))
    height = torch.where(erased < ERASED, height, 0)
    top, left = ((place * (SIDE + 1 - length)).floor() for place, length in ((top, height), (left, width)))
    return torch.stack([top, left, top + height, left + width], 1).to(torch.int64)


def inside(boxes: Tensor) -> Tensor:
    """The pixels in each box, bool [N, 28, 28]."""
    pixels = torch.arange(SIDE, device=boxes.device)
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    rows, columns = (pixels >= top) & (pixels < bottom), (pixels >= left) & (pixels < right)
    return rows[:, :, None] & columns[:, None, :]


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
