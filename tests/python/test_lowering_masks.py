"""Masks of attention that a graph computes from sizes: the causal one is left out, others stay."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configurations import one_thread  # noqa: F401
from lowering_checks import assert_computes_the_same, captured
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH, WIDTH, HEADS = 7, 8, 2


class Model(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.mask, self.qkv, self.out = mask, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(x, b, n))
        return x + self.out(y.transpose(1, 2).reshape(b, n, WIDTH))


def of_indices(x, b, n):
    """As transformers makes it."""
    batch, positions = torch.arange(b), torch.arange(n).unsqueeze(0).expand(b, -1)
    rows = positions[batch[:, None, None, None], torch.arange(n)[None, None, :, None]]
    columns = positions[batch[:, None, None, None], torch.arange(n)[None, None, None, :]]
    return (rows.new_ones((), dtype=torch.bool) & (columns <= rows)).expand(b, -1, n, n)


def lower_triangle(x, b, n):
    return torch.ones(n, n, dtype=torch.bool).tril()


def added(x, b, n):
    return torch.full((n, n), float("-inf")).triu(1)


def everything(x, b, n):
    return torch.ones(b, 1, n, n, dtype=torch.bool)


def attention_of(lowered):
    (graph,) = lowered
    (step,) = [step for p in graph.programs for step in p.body["program"]["steps"] if step["op"] == "attention"]
    return len(step["inputs"]) == 4, step["causal"]


@pytest.mark.parametrize(
    ("mask", "is_causal"), [(of_indices, True), (lower_triangle, True), (added, True), (everything, False)]
)
def test_what_kernels_know_is_left_out(mask, is_causal):
    lowered = assert_computes_the_same(Model(mask), torch.randn(2, LENGTH, WIDTH))
    assert attention_of(lowered) == (False, is_causal)
    assert not any("arange" in node.name or "ones" in node.name for node in lowered[0].module.graph.nodes)


def near(x, b, n):
    """A window of three."""
    rows, columns = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return (columns <= rows) & (columns > rows - 3)


def biased(x, b, n):
    """Scores of what is far are lower, but count."""
    return -(torch.arange(n)[:, None] - torch.arange(n)[None, :]).abs().float()


def of_values(x, b, n):
    return (x.detach().sum(-1) > -100)[:, None, None, :] & lower_triangle(x, b, n)


def written(x, b, n):
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask[-1, 0] = False
    return mask


def written_through_a_view(x, b, n):
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    mask.view(-1)[n * (n - 1)] = False
    return mask


def written_before(x, b, n):
    positions = torch.arange(n)
    positions.unsqueeze(0).add_(positions % 2)
    return positions[None, :] <= positions[:, None]


def drawn(x, b, n):
    return (torch.rand(n, n) < 2) & lower_triangle(x, b, n)


@pytest.mark.parametrize("mask", [near, biased, of_values, written, written_through_a_view, written_before, drawn])
def test_other_masks_stay(mask):
    lowered = assert_computes_the_same(Model(mask), torch.randn(2, LENGTH, WIDTH))
    assert attention_of(lowered) == (True, False)


def test_graphs_for_any_size_keep_theirs():
    model = Model(lower_triangle)
    exact = copy.deepcopy(model)
    call, lowered = captured(model)
    for shape in ((2, 7, WIDTH), (3, 9, WIDTH), (4, 5, WIDTH)):
        x = torch.randn(shape)
        torch.testing.assert_close(call(x), exact(x))
    assert attention_of(lowered[:1]) == (False, True) and attention_of(lowered[1:]) == (True, False)


class TwoLayers(nn.Module):
    """Both with the bias and the padding of their model, as in T5."""

    def __init__(self, learned=True, between=lambda hidden: None):
        super().__init__()
        self.between = between
        self.bias = nn.Parameter(torch.randn(1, HEADS, LENGTH, LENGTH), requires_grad=learned)
        self.layers = nn.ModuleList(Model(self.mask) for _ in range(2))
        self.hidden = None

    def mask(self, x, b, n):
        return torch.where(self.hidden[:, None, None, :], self.bias, torch.finfo(x.dtype).min).contiguous()

    def forward(self, x, hidden):
        self.hidden = hidden.clone()
        y = self.layers[0](x)
        self.between(self.hidden)
        return self.layers[1](y)


def test_layers_that_make_the_same_mask_share_it():
    hidden = torch.rand(3, LENGTH) < 0.7
    lowered = assert_computes_the_same(TwoLayers(), torch.randn(3, LENGTH, WIDTH), hidden)
    assert lowered[0].module.code.count("torch.where") == 1
    model = TwoLayers(learned=False, between=lambda hidden: hidden.logical_not_())
    written = assert_computes_the_same(model, torch.randn(3, LENGTH, WIDTH), hidden)
    assert written[0].module.code.count("torch.where") == 2


@pytest.mark.parametrize("is_view", [False, True])
def test_a_pass_without_gradients_takes_none_from_a_mask(is_view):
    """As of a model that is given its own result."""

    class Model(TwoLayers):
        def mask(self, x, b, n):
            return self.bias.expand(b, -1, -1, -1) if is_view else super().mask(x, b, n)

        def forward(self, x, hidden):
            self.hidden = hidden
            with torch.no_grad():
                first = self.layers[0](x)
            return self.layers[1](x + first)

    assert_computes_the_same(Model(), torch.randn(3, LENGTH, WIDTH), torch.rand(3, LENGTH) < 0.7)
