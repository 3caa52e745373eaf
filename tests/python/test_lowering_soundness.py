"""Lowered graphs and code that overwrites tensors, changes modes, and computes weights."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from block_checks import forward_of
from block_models import FEATURES
from configurations import one_thread  # noqa: F401
from lowering_checks import assert_computes_the_same, captured, programs

pytestmark = pytest.mark.usefixtures("one_thread")


def used_outside(self, x):
    y = self.norm(self.conv(x))
    return F.relu(self.norm2(self.conv2(F.relu(y)))) * y.mean()


def returned_with(self, x):
    y = F.relu(self.norm(self.conv(x)))
    return torch.stack([y, F.relu(self.norm2(self.conv2(y)))])


def overwrites_its_input(self, x):
    x = x * 1.0
    x += 1
    return self.block(x)


def overwrites_a_view_of_its_input(self, x):
    x = x * 1.0
    y = F.relu_(x[:, :])
    return self.block(x) + y


def overwrites_a_result(self, x):
    y = self.block(x)
    z = y.mul_(2)
    return self.norm2(self.conv2(z)) + y


def overwrites_through_a_view(self, x):
    y = self.norm(self.conv(x))
    y.flatten(1).relu_()
    return F.relu(self.norm2(self.conv2(y)))


def overwrites_a_view_of_nothing_else(self, x):
    return self.norm(self.conv(x)).flatten(1).relu_() + 1.0


def overwrites_in_place_by_a_position(self, x):
    y = F.elu(self.norm(self.conv(x)), 1.0, True)
    return F.relu(self.norm2(self.conv2(y))) + y


def adds_itself(self, x):
    y = self.norm(self.conv(x))
    y += y
    return y.relu()


def uses_a_sum_twice(self, x):
    y = self.norm(self.conv(x)) + x
    return self.norm2(self.conv2(F.relu(y))) + y


def adds_twice_of_it(self, x):
    return torch.add(self.norm(self.conv(x)), x, alpha=2)


def drops_a_path(self, x):
    y = self.norm2(self.conv2(self.block(x)))
    noise = y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(0.5)
    noise.div_(0.5)
    return F.relu(y * noise + x)


def turns_gradients_off(self, x):
    y = self.norm(self.conv(x))
    with torch.no_grad():
        mask = self.norm2(self.conv2(y)).relu()
    return F.relu(y + mask)


def computes_a_weight(self, x):
    weight = self.conv.weight / self.conv.weight.norm()
    y = F.relu(self.norm(F.conv2d(x, weight, padding=1)))
    return F.relu(self.norm2(F.conv2d(y, y.mean() * self.conv2.weight, padding=1)))


def goes_through_double(self, x):
    y = self.norm(self.conv(x)).double()
    return self.norm2(self.conv2((F.relu(y) + y).float()))


def splits_and_reads_one_part_outside(self, x):
    a, b = self.norm2(self.conv2(self.block(x))).split([3, 5], 1)
    return torch.sigmoid(b)[:, :3] * a, b.tan()


@pytest.mark.parametrize(
    ("forward", "wanted"),
    [
        (used_outside, ["conv norm", "relu conv2 norm2 relu multiply"]),
        (returned_with, ["conv norm relu", "conv2 norm2 relu"]),
        (overwrites_its_input, ["conv norm relu"]),
        (overwrites_a_view_of_its_input, ["conv norm relu add"]),
        (overwrites_a_result, ["conv norm relu", "conv2 norm2 add"]),
        (overwrites_through_a_view, ["conv norm", "conv2 norm2 relu"]),
        (overwrites_a_view_of_nothing_else, ["conv norm relu"]),
        (overwrites_in_place_by_a_position, ["conv norm", "conv2 norm2 relu add"]),
        (adds_itself, ["conv norm add relu"]),
        (uses_a_sum_twice, ["conv norm add", "relu conv2 norm2 add"]),
        (adds_twice_of_it, ["conv norm"]),
        (drops_a_path, ["conv norm relu conv2 norm2 multiply add relu"]),
        (turns_gradients_off, ["conv norm"]),
        (computes_a_weight, ["convolution norm relu", "convolution norm2 relu"]),
        (goes_through_double, ["conv norm", "conv2 norm2"]),
        (splits_and_reads_one_part_outside, ["conv norm relu", "conv2 norm2"]),
    ],
)
def test_values_used_elsewhere_and_overwritten(forward, wanted):
    # What exact autograd refuses, since a value that it needs was overwritten, is compared without a backward below.
    assert programs(_lowered(forward_of(forward)())) == wanted


def _lowered(model):
    call, lowered = captured(model)
    x = torch.randn(FEATURES, requires_grad=True)
    try:
        model(x).sum().backward()
    except (RuntimeError, AttributeError):
        torch.manual_seed(0)
        found = call(x)
        torch.manual_seed(0)
        torch.testing.assert_close(found, model(x))
        return lowered
    return assert_computes_the_same(model, x)


def reads_before_and_after(self, x):
    y = self.norm(self.conv(x))
    z = self.conv2(y)
    y.relu_()
    return self.norm2(z) + y


def overwrites_between(self, x):
    y = self.conv(x)
    with_more = x * 2
    with_more.add_(1)
    return F.relu(self.norm(y)) + with_more


def overwrites_the_input_between(self, x):
    x = x * 1
    y = self.conv(x)
    x.add_(1)
    return F.relu(self.norm(y)) + x


def reads_a_view_after(self, x):
    y = self.norm(self.conv(x))
    view = y[:, :4]
    F.relu(y, inplace=True)
    return F.relu(self.norm2(self.conv2(y))) + view.mean()


def changes_statistics_between(self, x):
    y = self.block(x)
    self.norm.running_mean.mul_(0.5)
    return F.relu(self.norm(self.conv2(y))) + y


@pytest.mark.parametrize(
    "forward",
    [reads_before_and_after, overwrites_between, overwrites_the_input_between, reads_a_view_after,
     changes_statistics_between],
)  # fmt: skip
def test_forwards_of_which_autograd_wants_no_backward(forward):
    model, exact = forward_of(forward)(), forward_of(forward)()
    exact.load_state_dict(model.state_dict())
    call, lowered = captured(model)
    x = torch.randn(FEATURES, requires_grad=True)
    torch.testing.assert_close(call(x), exact(x))
    for a, b in zip(model.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert lowered[0].programs
