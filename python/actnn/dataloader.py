"""A DataLoader that also says which samples a batch has."""

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.data
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset


class _WithIndex(Dataset):
    """(index, sample) for every index of a map-style dataset; other attributes are those of the dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet: unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: list[Any]) -> list[tuple[Any, Any]]:
        """All samples of a batch at once, where the dataset can do that."""
        if callable(getattr(self.dataset, "__getitems__", None)):
            return list(zip(indices, self.dataset.__getitems__(indices), strict=True))
        return [self[index] for index in indices]


class _CollateWithIndex:
    """Collates the samples as `collate_fn` does and appends the indices. A class, so that workers can unpickle it."""

    def __init__(self, collate_fn: Callable[[Any], Any], batched: bool) -> None:
        self.collate_fn = collate_fn
        self.batched = batched

    def __call__(self, samples: Any) -> tuple:
        if self.batched:
            indices, samples = [index for index, _ in samples], [sample for _, sample in samples]
        else:
            indices, samples = samples
        batch = self.collate_fn(samples)
        fields = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        return *fields, _index_tensor(indices)


def _index_tensor(indices: Any) -> Tensor:
    try:
        return torch.as_tensor(indices, dtype=torch.int64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"DataLoader: the sampler must give integers as indices, got {indices!r}") from error


class DataLoader(torch.utils.data.DataLoader):
    """`torch.utils.data.DataLoader`, with all its arguments, whose batches have the samples' indices as a last field.

    A batch (x, y) becomes (x, y, index), with `index` an int64 tensor [batch size] of positions in `dataset`, for
    `QScheme.batch`. Works with workers, samplers, batch samplers and `pin_memory`. A batch that is one tensor or a
    dictionary becomes (batch, index). Without batching (`batch_size=None`), `index` is 0-D, or what the sampler gave,
    as a tensor. `collate_fn` gets the samples as always. `loader.dataset` is a wrapper with the attributes and the
    length of `dataset`; `loader.dataset.dataset` is `dataset` itself.

    Raises TypeError for an IterableDataset, whose samples have no indices.
    """

    def __init__(self, dataset: Dataset, *args: Any, **kwargs: Any) -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError(
                "DataLoader: dataset must be a map-style dataset, whose samples have indices, got the IterableDataset "
                f"{type(dataset).__name__}; use torch.utils.data.DataLoader and number the samples yourself"
            )
        super().__init__(_WithIndex(dataset), *args, **kwargs)
        self.collate_fn = _CollateWithIndex(self.collate_fn, batched=self.batch_sampler is not None)
