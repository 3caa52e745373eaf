"""actnn.DataLoader: torch's, with the samples' indices as a last field."""

import collections

import actnn
import pytest
import torch
import torch.utils.data as data

X = torch.arange(40.0).view(20, 2)


class Dictionaries(data.Dataset):
    classes = ("a", "b")

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": torch.tensor(index * 2)}


def pairs():
    return data.TensorDataset(X, torch.arange(20) % 3)


def reversed_labels(samples):
    """A collate_fn on the top level, so that a spawned worker finds it."""
    x, y = data.default_collate(samples)
    return x, -y


def check(batches, count=20):
    seen = []
    for x, y, index in batches:
        assert index.dtype == torch.int64 and index.shape == (len(x),)
        assert torch.equal(x, X[index]) and torch.equal(y, index % 3)
        seen += index.tolist()
    assert len(seen) == count
    return seen


def test_in_order():
    assert check(actnn.DataLoader(pairs(), batch_size=6)) == list(range(20))
    assert check(actnn.DataLoader(pairs(), 6, drop_last=True), 18) == list(range(18))


def test_shuffled_every_epoch_anew():
    loader = actnn.DataLoader(pairs(), batch_size=7, shuffle=True)
    first, second = check(loader), check(loader)
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
    assert len(loader) == 3


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}, {"multiprocessing_context": "spawn"}])
def test_workers(options):
    loader = actnn.DataLoader(pairs(), batch_size=6, shuffle=True, num_workers=2, **options)
    assert sorted(check(loader)) == sorted(check(loader)) == list(range(20))


def test_samplers():
    sampler = data.SubsetRandomSampler([3, 5, 7])
    assert sorted(check(actnn.DataLoader(pairs(), batch_size=2, sampler=sampler), 3)) == [3, 5, 7]
    batches = actnn.DataLoader(pairs(), batch_sampler=[[4, 2], [9]])
    assert [index.tolist() for *_, index in batches] == [[4, 2], [9]]


def test_a_collate_fn_gets_the_samples_as_always():
    for loader in (actnn.DataLoader(pairs(), 5, False, None, None, 0, reversed_labels),
                   actnn.DataLoader(pairs(), batch_size=5, num_workers=1, collate_fn=reversed_labels,
                                    multiprocessing_context="spawn")):  # fmt: skip
        for x, y, index in loader:
            assert torch.equal(x, X[index]) and torch.equal(y, -(index % 3))


def test_batches_of_other_kinds():
    batch, index = next(iter(actnn.DataLoader(Dictionaries(), batch_size=4)))
    assert torch.equal(batch["x"], index * 2)
    only, index = next(iter(actnn.DataLoader(X, batch_size=3)))
    assert torch.equal(only, X[index])


def test_without_batching_the_index_is_that_of_the_sample():
    for i, (x, y, index) in enumerate(actnn.DataLoader(pairs(), batch_size=None)):
        assert index.shape == () and index == i and y == i % 3 and torch.equal(x, X[i])


def test_a_dataset_that_fetches_batches_is_asked_for_batches():
    asked = collections.Counter()

    class Batches(data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            raise AssertionError("one sample was asked for")

        def __getitems__(self, indices):
            asked[len(indices)] += 1
            return [torch.tensor(i) for i in indices]

    batches = [torch.stack(batch).tolist() for batch in actnn.DataLoader(Batches(), batch_size=3)]
    assert batches == [[[0, 1, 2]] * 2, [[3, 4, 5]] * 2] and asked == {3: 2}


def test_the_dataset_is_still_there():
    dataset = Dictionaries()
    loader = actnn.DataLoader(dataset)
    assert isinstance(loader, data.DataLoader)
    assert len(loader.dataset) == 10 and loader.dataset.classes == ("a", "b") and loader.dataset.dataset is dataset
    with pytest.raises(AttributeError):
        loader.dataset.no_such_thing  # noqa: B018


def test_what_has_no_indices_is_refused():
    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(range(3))

    with pytest.raises(
        TypeError, match=r"DataLoader: dataset must be a map-style dataset.*got the IterableDataset Stream"
    ):
        actnn.DataLoader(Stream())
    with pytest.raises(TypeError, match="the sampler must give integers as indices, got"):
        next(iter(actnn.DataLoader({"a": 1.0, "b": 2.0}, batch_sampler=[["a", "b"]])))
