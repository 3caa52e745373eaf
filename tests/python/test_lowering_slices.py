"""Parts of values that are taken by slices: in programs they are splits."""

import pytest
import torch
from configurations import one_thread  # noqa: F401
from lowering_checks import assert_computes_the_same, captured, programs
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 12


class Between(nn.Module):
    """Two layers, and between them what takes parts."""

    def __init__(self, function, width=WIDTH):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(8, WIDTH), nn.Linear(width, 8), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def splits(lowered):
    (graph,) = lowered
    (program,) = graph.programs
    return [(step["sizes"], step["dimension"]) for step in program.body["program"]["steps"] if step["op"] == "split"]


SLICES = {
    "parts of one product": (lambda h: h[..., :4] * h[..., 4:8] + h[..., 8:], 4, [([4, 4, 4], 2)]),
    "from the end": (lambda h: h[:, :, -4:] + h[:, :, :-8], 4, [([4, 4, 4], 2)]),
    "narrow": (lambda h: h.narrow(-1, 4, 6) + torch.narrow(h, 2, -6, 6), 6, [([4, 6, 2], 2), ([6, 6], 2)]),
    "one part": (lambda h: h[..., 2:5], 3, [([2, 3, 7], 2)]),
    "of the length": (lambda h: h[:, 1:] + h[:, :1], WIDTH, [([1, 4], 1)]),
    "of the samples": (lambda h: torch.cat([h[1:], h[:1]]), WIDTH, [([1, 1], 0)]),
    "the same twice": (lambda h: h[..., :4] * h[..., 0:4] + h[..., 4:8], 4, [([4, 4, 4], 2)]),
    "overlapping": (lambda h: h[..., :6] + h[..., 4:10], 6, [([6, 6], 2), ([4, 6, 2], 2)]),
    "a part of a part": (lambda h: h[..., 2:10][..., 1:5], 4, [([2, 8, 2], 2), ([1, 4, 3], 2)]),
    "along two dimensions": (lambda h: h[:, 1:3][..., 6:] + h[..., :6][:, 1:3], 6, 4),
    "nothing beside everything": (lambda h: torch.cat([h[..., :20], h[..., 12:]], -1), WIDTH, [([12, 0], 2)]),
    "an empty one": (lambda h: torch.cat([h[..., 5:3], h[..., :6]], -1), 6, 1),
    "one place": (lambda h: h[..., 3].unsqueeze(-1) + h[..., :4], 4, [([4, 8], 2)]),
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_are_splits(name):
    function, width, wanted = SLICES[name]
    lowered = assert_computes_the_same(Between(function, width), torch.randn(2, 5, 8))
    assert splits(lowered) == wanted if isinstance(wanted, list) else len(splits(lowered)) == wanted


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h[..., ::3],  # with a step
        lambda h: h[:, 1:3, 2:4],  # of two dimensions at once
        lambda h: h[:, None, :, 1:5][:, 0],
        lambda h: h[..., torch.tensor([1, 2, 3, 4])],
    ],
)
def test_other_indices_stay(function):
    width = function(torch.empty(2, 5, WIDTH)).shape[-1]
    lowered = assert_computes_the_same(Between(function, width), torch.randn(2, 5, 8))
    assert not programs(lowered)


def test_bounds_that_are_computed_stay():
    lowered = assert_computes_the_same(Between(lambda h: h[:, : int(h.shape[1] // 2)]), torch.randn(2, 6, 8))
    assert splits(lowered) == [([3, 3], 1)]  # numbers where sizes do not change
    model = Between(lambda h: h[:, : h.shape[1] // 2])
    x = torch.randn(2, 6, 8)
    torch._dynamo.mark_dynamic(x, 1)
    call, lowered = captured(model)
    torch.testing.assert_close(call(x), model(x))
    assert not programs(lowered)


def test_a_slice_that_is_overwritten():
    def overwritten(h):
        h = h * h
        h[..., :4].add_(h[..., 4:8])
        return h

    assert_computes_the_same(Between(overwritten), torch.randn(2, 5, 8))


def test_a_slice_that_the_caller_has_is_a_view_of_the_result():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, WIDTH))

        def forward(self, x):
            y = self.layers(x)
            return y, y[:, 1:3]

    lowered = assert_computes_the_same(Model(), torch.randn(2, 5, 8))
    assert len(programs(lowered)) == 1
