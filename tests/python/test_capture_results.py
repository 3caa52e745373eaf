"""What a converted model returns besides is what exact ones do: views, caches, sums; also where it is written."""

import copy
import warnings

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from configurations import one_thread  # noqa: F401
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = BATCH, LENGTH, WIDTH = 2, 8, 32


def heads(x):
    return x.view(BATCH, LENGTH, 2, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).reshape(SHAPE)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.register_buffer("positions", torch.randn(1, LENGTH, WIDTH))

    def attend(self, x, kept=lambda x: x):
        y = self.norm(x)
        q, k, v = heads(self.a(y)), kept(heads(self.b(y))), kept(heads(self.c(y)))
        return joined(F.scaled_dot_product_attention(q, k, v)), k, v


class ReturnsKeys(Model):
    def forward(self, x):
        y, k, v = self.attend(x)
        return self.norm2(x + y), k, v


class ReturnsACache(Model):
    def forward(self, x):
        y, k, v = self.attend(x, lambda part: torch.cat([torch.tensor([]), part], dim=-2))
        return self.norm2(x + y), k, v


class ReadsKeysBehindABreak(Model):
    def forward(self, x):
        y, k, _ = self.attend(x)
        y = self.norm2(x + y)
        torch._dynamo.graph_break()
        return y + k.transpose(1, 2).view(SHAPE)


class WritesToWhatIsShown(Model):
    def forward(self, x):
        x = x * 1.0
        y = x.transpose(1, 2)
        z = self.norm(self.b(F.relu(self.a(y.transpose(1, 2)))))
        x.mul_(2)
        return z, y


class WritesToABuffer(Model):
    def forward(self, x):
        shown = self.positions.squeeze(0)
        z = self.norm(self.b(F.relu(self.a(x) + shown)))
        self.positions.mul_(2)
        return z, shown


class ReturnsAViewOfTheInput(Model):
    def forward(self, x):
        y = x.flatten(0, 1)
        return self.norm(self.b(F.relu(self.a(y))) + y).view(SHAPE), y


class ReadsASumElsewhere(Model):
    """Which its own module normalizes, too."""

    def forward(self, x):
        y = x + self.b(F.gelu(self.a(self.norm(x))))
        return self.c(self.norm2(y)), y.cumsum(1)


class HasTwoNormsOfASum(Model):
    def forward(self, x):
        y = x + self.b(F.gelu(self.a(self.norm(x))))
        return self.c(self.norm2(y)), self.norm3(y)


def outcome(model, x):
    x = x.clone().requires_grad_()
    model.zero_grad()
    result = model(x)
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    if not isinstance(model, WritesToWhatIsShown):  # autograd refuses
        sum((t * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in results if t.requires_grad).backward()
    gradients = [torch.zeros(1) if x.grad is None else x.grad, *(parameter.grad for parameter in model.parameters())]
    return x, results, torch.cat([g.flatten() for g in gradients if g is not None]).double()


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize(
    "kind", [ReturnsKeys, ReturnsACache, ReadsKeysBehindABreak, WritesToWhatIsShown, WritesToABuffer,
             ReturnsAViewOfTheInput, ReadsASumElsewhere, HasTwoNormsOfASum],
)  # fmt: skip
def test_results_are_the_models(kind, is_frozen):
    torch.manual_seed(0)
    model = kind()
    model.b.requires_grad_(not is_frozen)
    exact = copy.deepcopy(model)
    report = actnn.convert(model, blocks=actnn.BlockOptions(bits=8))
    x = torch.randn(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, found, gradients = outcome(model, x)
    theirs, expected, expected_gradients = outcome(exact, x)
    assert report.blocks
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert (one.stride(), one.requires_grad, one.is_leaf) == (other.stride(), other.requires_grad, other.is_leaf)
        assert (one._base is ours) == (other._base is theirs)
    # Layers that are in no block have 4 bits.
    assert (gradients - expected_gradients).norm() <= 0.2 * expected_gradients.norm()
    if kind is ReturnsACache and not is_frozen:
        assert len(report.blocks) == 1 and not report.without_blocks
