"""What memory the graph's values share: conversions, masks and sums whose operands are written to, or broadcast."""

import copy

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configurations import one_thread  # noqa: F401
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

FINE = {"bits": 8, "output_bits": 8, "smooth_bits": 8, "attention_bits": 8, "norm_bits": 8, "group_rows": 64}
WIDTH, LENGTH, HEADS = 32, 64, 2


class Model(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.drop = nn.Dropout(0.5)
        self.pos = nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.run = forward

    def forward(self, *inputs):
        return self.run(self, *inputs)


def pair(forward):
    torch.manual_seed(0)
    exact = Model(forward)
    converted = copy.deepcopy(exact)
    config = actnn.Config("L2", activation_compression_bits=[8])
    return converted, exact, actnn.convert(converted, config, blocks=actnn.BlockOptions(**FINE))


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attend(x, mask):
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=mask).transpose(1, 2).flatten(2)


def assert_alike(forward, *inputs, tolerance=0.05, autocast=False):
    converted, exact, _ = pair(forward)
    found = []
    for model in (converted, exact):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(*(x.clone() for x in inputs))
        (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        found.append([y.float(), *(p.grad.float() for p in model.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm() + 1e-5


def multiplied_later(m, x):
    h = m.a(x)
    wide = h.float()
    h.mul_(2)
    return m.b(wide) + m.c(h)


def written_through_a_view(m, x):
    h = m.a(x)
    wide = h.float()
    h[:, :20].zero_()
    return m.b(wide) + m.c(h)


def dropped_in_place(m, x):
    h = m.a(x)
    return m.b(F.dropout(h.float(), 0.0, True, inplace=True)) + h.float()


@pytest.mark.parametrize("forward", [multiplied_later, written_through_a_view, dropped_in_place])
def test_a_conversion_is_a_copy_of_what_is_written_to(forward):
    assert_alike(forward, torch.randn(2, LENGTH, WIDTH), autocast=True)


def test_an_input_is_not_overwritten_by_the_dropout_of_its_conversion():
    def forward(m, x):
        return m.b(F.dropout(x.float(), 0.5, True, inplace=True))

    converted, _, _ = pair(forward)
    x = torch.randn(2, LENGTH, WIDTH).bfloat16()
    before = x.clone()
    with torch.autocast("cpu", torch.bfloat16):
        converted(x).sum().backward()
    torch.testing.assert_close(x, before)


def narrowed_by_and(m, x):
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    view = mask[None]
    mask &= (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)) < 5
    return m.b(attend(m.a(x), view))


def narrowed_by_foreach(m, x):
    mask = torch.zeros(LENGTH, LENGTH).masked_fill(~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), -1e9)
    torch._foreach_clamp_min_([mask], -1.0)
    return m.b(attend(m.a(x), mask))


@pytest.mark.parametrize("forward", [narrowed_by_and, narrowed_by_foreach])
def test_a_mask_that_is_written_to_stays(forward):
    assert_alike(forward, torch.randn(2, LENGTH, WIDTH))


def test_a_mask_of_the_callers_that_is_written_to_is_noticed():
    converted, _, _ = pair(lambda m, x, mask: m.b(attend(m.a(x), mask)))
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    y = converted(torch.randn(2, LENGTH, WIDTH), mask)
    mask.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_residual_and_a_dropped_branch_of_other_sizes():
    def smaller_branch(m, x):
        return m.b(x + m.drop(m.a(m.pos)))

    def smaller_residual(m, x):
        return m.b(m.pos + m.drop(m.a(x)))

    for forward in (smaller_branch, smaller_residual):
        converted, exact, _ = pair(forward)
        x = torch.randn(4, LENGTH, WIDTH)
        assert converted(x).shape == exact(x).shape
        converted(x).sum().backward()
        assert converted.pos.grad.shape == exact.pos.shape
        assert_alike(lambda m, x, forward=forward: forward(m.eval(), x), x)


def test_a_copy_of_heads_is_not_one_of_rows():
    """Two programs read a value, of which one sees heads in it."""

    def forward(m, x, h):
        first = (m.b(F.gelu(m.a(x))) + 1).cumsum(0)
        y = x * h
        return first + F.scaled_dot_product_attention(y, y, y) + x

    converted, exact, _ = pair(forward)
    x, h = torch.randn(4, 8, LENGTH, WIDTH), torch.rand(4, 8, LENGTH, WIDTH)
    gradients = []
    for model in (converted, exact):
        one = h.clone().requires_grad_()
        model(x, one).square().sum().backward()
        gradients.append(one.grad)
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[1].norm()


def test_an_input_of_one_dimension():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.b(F.gelu(self.a(self.norm(x))))

    model = Small()
    actnn.convert(model)
    model(torch.randn(16)).sum().backward()
    assert model.a.bias.grad is not None


def test_the_function_of_attention_keeps_its_strides():
    attention = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(m, x):
        t = x.transpose(0, 1)
        y = F.multi_head_attention_forward(
            t, t, t, WIDTH, HEADS, attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0,
            attention.out_proj.weight, attention.out_proj.bias, need_weights=False,
        )[0]  # fmt: skip
        return m.b(y.view(-1, WIDTH))

    assert_alike(forward, torch.randn(2, LENGTH, WIDTH))
