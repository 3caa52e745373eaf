"""convert and blocks: batch norms with a forward of their own that is torch's, and an activation behind it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn import convert, restore
from block_checks import assert_same, converted, reference_blocks, steps  # noqa: F401
from block_models import FEATURES, BatchNormAct2d, ConvNormAct, conv
from configurations import eight_bits, one_thread  # noqa: F401
from reference_block import ReferenceBlock
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "reference_blocks")


def sequence(norm):
    return nn.Sequential(conv(8, 8), norm, conv(8, 8), nn.BatchNorm2d(8))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"activation": None}, {"activation": nn.Hardswish}, {"affine": False}, {"track_running_stats": False}],
)
def test_such_a_norm_is_part_of_a_block(arguments):
    model, exact, report = converted(lambda: sequence(BatchNormAct2d(8, **arguments)))
    act = [] if arguments.get("activation", nn.ReLU) is None else ["1.act"]
    assert " ".join(steps(report)) == " ".join(["0 1", *act, "2 3"])
    for training in (True, True, False):
        model.train(training), exact.train(training)
        assert_same(model, exact, torch.randn(FEATURES), blocks=len(report.blocks))
    entry = report["1"]
    assert (entry.outcome, entry.block, entry.reason) == ("traversed", "(root)#0", "its block computes it")


def test_one_by_itself_is_a_block():
    model, exact, report = converted(lambda: nn.Sequential(nn.Tanh(), BatchNormAct2d(8)))
    assert steps(report) == ["1 1.act"]
    assert_same(model, exact, torch.randn(FEATURES), blocks=1)


def doubles_the_momentum(self, x):
    if self.training:
        self.num_batches_tracked.add_(1)
    return F.batch_norm(
        x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 2 * self.momentum, self.eps
    )


def does_not_count(self, x):
    return F.batch_norm(
        x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
    )


def counts_in_evaluation(self, x):
    self.num_batches_tracked.add_(1)
    return does_not_count(self, x)


def exchanges_statistics(self, x):
    if self.training:
        self.num_batches_tracked.add_(1)
    return F.batch_norm(
        x, self.running_var, self.running_mean, self.weight, self.bias, self.training, self.momentum, self.eps
    )


def uses_batches_in_evaluation(self, x):
    if self.training:
        self.num_batches_tracked.add_(1)
    return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps)


def changes_statistics(self, x):
    self.running_mean.mul_(0.5)
    return BatchNormAct2d.forward(self, x)


def adds_its_input(self, x):
    return BatchNormAct2d.forward(self, x) + x


def normalizes_something_else(self, x):
    return BatchNormAct2d.forward(self, x.abs())


def activates_in_training(self, x):
    if self.training:
        return BatchNormAct2d.forward(self, x)
    return does_not_count(self, x)


def checks_something_else(self, x):
    torch._assert(x.shape[1] == 8, "channels")
    return BatchNormAct2d.forward(self, x)


@pytest.mark.parametrize(
    "forward",
    [
        doubles_the_momentum, does_not_count, counts_in_evaluation, exchanges_statistics,
        uses_batches_in_evaluation, changes_statistics, adds_its_input, normalizes_something_else,
        activates_in_training, checks_something_else,
    ],
)  # fmt: skip
def test_other_forwards_are_left_alone(forward):
    norm = type("Own", (BatchNormAct2d,), {"forward": forward})(8)
    model = sequence(norm)
    exact = copy.deepcopy(model)
    report = convert(model, eight_bits(), skip=["2", "3"])
    assert not report.blocks and report["1"].outcome == "left alone"
    assert report["1"].reason == "a subclass of BatchNorm2d with a forward of its own"
    assert "_block_config" not in vars(norm)
    assert torch.equal(model(x := torch.randn(FEATURES)), exact(x))


def test_norms_that_are_left_alone():
    for arguments, flags in (({"momentum": None}, {}), ({}, {"enable_quantized_bn": False})):
        model = sequence(BatchNormAct2d(8, **arguments))
        report = convert(model, eight_bits(**flags))
        assert report["1"].outcome == "left alone" and not report["1"].block
    model = sequence(BatchNormAct2d(8))
    report = convert(model, eight_bits(), skip=["1"])
    assert report["1"].reason == "skipped" and steps(report) == ["2 3"]
    model = sequence(BatchNormAct2d(8).double())
    assert not convert(model, eight_bits())["1"].block
    model = sequence(BatchNormAct2d(8, nn.CELU))
    report = convert(model, eight_bits())
    assert report.without_blocks["1"] == "blocks have no 'act', which is part of it" and not report["1"].block
    report = convert(model := sequence(BatchNormAct2d(8)), eight_bits(), blocks=False)
    assert "_block_config" not in vars(model[1]) and report["1"].outcome == "left alone"


def replaces_the_activation(norm):
    norm.act = nn.Tanh()


def replaces_what_is_between(norm):
    norm.drop = nn.Hardtanh(-0.5, 0.5)


def changes_numbers(norm):
    norm.momentum, norm.eps = 0.3, 0.1


def changes_the_slope(norm):
    norm.act.negative_slope = 0.7


def hooks_the_activation(norm):
    norm.act.register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        (replaces_the_activation, 1), (replaces_what_is_between, 1), (changes_numbers, 2), (changes_the_slope, 2),
        (hooks_the_activation, 1),
    ],
)  # fmt: skip
def test_changes_after_conversion(change, blocks):
    model, exact, report = converted(lambda: sequence(BatchNormAct2d(8, nn.LeakyReLU)))
    assert len(report.blocks) == 2
    assert_same(model, exact, torch.randn(FEATURES), blocks=2)
    change(model[1]), change(exact[1])
    ReferenceBlock.runs = 0
    assert torch.equal(model(x := torch.randn(FEATURES)), exact(x)) and ReferenceBlock.runs == blocks


def test_the_way_back_and_copies():
    model = ConvNormAct()
    exact = copy.deepcopy(model)
    convert(model, eight_bits())
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        ReferenceBlock.runs = 0
        exact.load_state_dict(duplicate.state_dict())
        assert_same(duplicate, exact, torch.randn(FEATURES), blocks=1)
    restore(model)
    for mine, theirs in zip(model.modules(), ConvNormAct().modules(), strict=True):
        assert type(mine) is type(theirs) and set(vars(mine)) == set(vars(theirs))


@pytest.mark.library
def test_bits_and_bytes_of_such_a_block():
    report = convert(model := ConvNormAct(nn.ReLU), eight_bits())
    x = torch.randn(FEATURES)
    assert report.measure(model, lambda: model(x)).blocks == {"(root)#0": report.blocks[0].kept_bytes}
    assert [report[name].bits for name in ("conv_exp", "bn1", "bn1.act", "conv_pwl", "bn2")] == [8, 8, 8, 8, None]
