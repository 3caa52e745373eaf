"""convert and blocks: what is found in models."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from actnn import BlockOptions, convert
from block_checks import assert_same, convert_blocks, converted, forward_of, outcome, reference_blocks, steps  # noqa: F401
from block_models import FEATURES, IMAGE, PATTERNS, BasicBlock, ResNet, conv
from configurations import eight_bits, one_thread, relative_error  # noqa: F401
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "reference_blocks")


@pytest.mark.parametrize("name", PATTERNS)
def test_blocks_of_known_models(name):
    make, shape, wanted = PATTERNS[name]
    model, exact, report = converted(make)
    assert steps(report) == wanted
    for training in (True, False):
        model.train(training), exact.train(training)
        assert_same(model, exact, torch.randn(shape), blocks=len(wanted))


@pytest.mark.library
@pytest.mark.parametrize("name", PATTERNS)
def test_the_library_runs_the_blocks_of_known_models(name):
    make, shape, wanted = PATTERNS[name]
    model, exact, report = converted(make, blocks=BlockOptions(output_bits=8, norm_bits=7))
    assert steps(report) == wanted and all(block.plan for block in report.blocks)
    layers = copy.deepcopy(exact)
    convert(layers, eight_bits(), skip=[entry.path for entry in report.left_alone], blocks=False)
    x = torch.randn(shape)
    for a, b, wanted in zip(outcome(model, x), outcome(layers, x), outcome(exact, x), strict=True):
        if wanted.is_floating_point() and wanted.norm() > 1e-3:  # a bias before a batch norm has no gradient
            assert relative_error(a, wanted) < 0.02 + 3 * relative_error(b, wanted)
    torch.testing.assert_close(model(x), exact(x))


def test_the_program():
    model = nn.Sequential(
        nn.Conv2d(3, 8, (3, 1), 2, (1, 0), groups=1, bias=True),
        nn.BatchNorm2d(8, eps=1e-3, momentum=None),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(3, padding=1, ceil_mode=True),
    )
    convert(model, eight_bits())
    (block,) = model.forward.plan().blocks
    assert block.program == {
        "inputs": 1,
        "steps": [
            {"op": "convolution", "inputs": [0], "parameters": [0, 1], "stride": [2, 2], "padding": [1, 0],
             "dilation": [1, 1], "groups": 1},
            {"op": "batch_norm", "inputs": [1], "parameters": [2, 3], "buffers": [0, 1, 2], "momentum": None,
             "eps": 1e-3},
            {"op": "activation", "inputs": [2], "kind": "leaky_relu", "slope": 0.2},
            {"op": "max_pool", "inputs": [3], "kernel_size": [3, 3], "stride": [3, 3], "padding": [1, 1],
             "dilation": [1, 1], "ceil_mode": True},
        ],
        "output": 4,
    }  # fmt: skip


def test_absent_parameters_and_buffers_are_null():
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, affine=False, track_running_stats=False), nn.ReLU())
    exact = copy.deepcopy(model)
    convert_blocks(model)
    program = model.forward.plan().blocks[0].program
    assert program["steps"][0]["parameters"] == [0, None]
    assert program["steps"][1]["parameters"] == [None, None] and program["steps"][1]["buffers"] == [None] * 3
    for training in (True, False):
        model.train(training), exact.train(training)
        assert_same(model, exact, torch.randn(IMAGE), blocks=1)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics(momentum):
    model, exact, _ = converted(lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, momentum=momentum), nn.ReLU()))
    for training in (True, True, False):
        model.train(training), exact.train(training)
        assert_same(model, exact, torch.randn(IMAGE), blocks=1)
    assert model[1].num_batches_tracked == 2


def test_a_frozen_norm_in_a_training_model():
    model, exact, _ = converted(BasicBlock)
    for m in (model, exact):
        m.bn1.eval().requires_grad_(False)
        m.conv1.requires_grad_(False)
    assert_same(model, exact, torch.randn(FEATURES), blocks=1)


def test_a_synchronized_norm_without_a_process_group():
    model, exact, report = converted(lambda: nn.Sequential(conv(3, 8), nn.SyncBatchNorm(8), nn.ReLU()))
    assert steps(report) == ["0 1 2"]
    for training in (True, False):
        model.train(training), exact.train(training)
        assert_same(model, exact, torch.randn(IMAGE), blocks=1)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [conv(8, 8), nn.ReLU()],
        lambda: [nn.ReLU(), nn.BatchNorm2d(8)][1:],
        lambda: [conv(8, 8), nn.GELU(), nn.BatchNorm2d(8)],
        lambda: [nn.ConvTranspose2d(8, 8, 3), nn.BatchNorm2d(8)],
        lambda: [nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(8)],
        lambda: [nn.Conv2d(8, 8, 2, padding="same"), nn.BatchNorm2d(8)],
        lambda: [nn.Dropout(0.5), nn.BatchNorm2d(8)],
        lambda: [nn.MaxPool2d(2, return_indices=True)],
    ],
)
def test_what_is_no_block(layers):
    model = nn.Sequential(*layers())
    assert not convert(model, eight_bits()).blocks and "forward" not in vars(model)


def test_identities_and_dropout_of_nothing_disappear():
    model, exact, report = converted(
        lambda: nn.Sequential(nn.Identity(), conv(8, 8), nn.Dropout(0.0), nn.BatchNorm2d(8), nn.Identity(), nn.ReLU())
    )
    assert steps(report) == ["1 3 5"]
    assert_same(model, exact, torch.randn(FEATURES), blocks=1)
    for m in (model, exact):
        m[2].p = 1.0
    assert_same(model, exact, torch.randn(FEATURES), blocks=1)  # 3 5


def test_skipped_and_unknown_layers_are_in_no_block():
    model = ResNet()
    report = convert(model, eight_bits(), skip=["layer1.0.relu", "layer1.1"])
    assert steps(report) == [
        "conv1 bn1 relu maxpool", "layer1.0.conv1 layer1.0.bn1", "layer1.0.conv2 layer1.0.bn2 add",
    ]  # fmt: skip

    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(conv(8, 8), Own(8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8))
    assert steps(convert(model, eight_bits())) == ["2 3 4"]
    layer = torch.nn.utils.parametrizations.weight_norm(conv(8, 8))
    assert not convert(nn.Sequential(layer, nn.BatchNorm2d(8)), eight_bits()).blocks


@pytest.mark.parametrize(("name", "blocks", "norms"), [("resnet18", 9, 20), ("mobilenet_v2", 32, 52)])
def test_torchvision_models(name, blocks, norms):
    models = pytest.importorskip("torchvision.models")
    report = convert(getattr(models, name)(weights=None), eight_bits())
    assert len(report.blocks) == blocks and sum("Norm" in e.type and bool(e.block) for e in report.entries) == norms


# Values that something else uses, and what is overwritten.


def used_outside(self, x):
    y = self.norm(self.conv(x))
    return F.relu(self.norm2(self.conv2(F.relu(y)))) * y.mean()


def returned_with(self, x):
    y = F.relu(self.norm(self.conv(x)))
    z = F.relu(self.norm2(self.conv2(y)))
    return torch.stack([y, z])


def overwrites_its_input(self, x):
    x += 1
    return self.block(x)


def overwrites_its_input_in_a_norm(self, x):
    x = x.relu_()
    return F.relu(self.norm2(self.conv2(self.block(x)))) + x


def overwrites_a_view_of_its_input(self, x):
    y = F.relu_(x[:, :])
    return self.block(x) + y


def reads_before_and_after(self, x):
    y = self.norm(self.conv(x))
    z = self.conv2(y)
    y.relu_()
    return self.norm2(z) + y


def reads_a_view_after(self, x):
    y = self.norm(self.conv(x))
    view = y[:, :4]
    F.relu(y, inplace=True)
    return F.relu(self.norm2(self.conv2(y))) + view.mean()


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


def overwrites_a_result(self, x):
    y = self.block(x)
    z = y.mul_(2)
    return self.norm2(self.conv2(z)) + y


def adds_itself(self, x):
    y = self.norm(self.conv(x))
    y += y
    return y.relu()


def adds_and_goes_on(self, x):
    y = F.relu(self.norm(self.conv(x)) + x)
    return F.relu(self.norm2(self.conv2(y)) + y)


def uses_a_sum_twice(self, x):
    y = self.norm(self.conv(x)) + x
    return self.norm2(self.conv2(F.relu(y))) + y


def adds_a_number(self, x):
    return F.relu(torch.add(self.norm(self.conv(x)), 1.5) + 1)


def adds_twice_of_it(self, x):
    return torch.add(self.norm(self.conv(x)), x, alpha=2)


@pytest.mark.parametrize(
    ("forward", "wanted"),
    [
        (used_outside, ["conv norm", "relu conv2 norm2 relu"]),
        (returned_with, ["conv norm relu", "conv2 norm2 relu"]),
        (overwrites_its_input, ["conv norm relu"]),
        (overwrites_its_input_in_a_norm, ["conv norm relu conv2 norm2 relu add"]),
        (overwrites_a_view_of_its_input, ["conv norm relu add"]),
        (reads_before_and_after, ["conv norm conv2 relu norm2 add"]),
        (reads_a_view_after, ["conv norm", "conv2 norm2 relu add"]),
        (overwrites_between, ["norm relu add"]),
        (overwrites_the_input_between, ["norm relu add"]),
        (overwrites_a_result, ["conv norm relu", "conv2 norm2 add"]),
        (adds_itself, ["conv norm add relu"]),
        (adds_and_goes_on, ["conv norm add relu", "conv2 norm2 add relu"]),
        (uses_a_sum_twice, ["conv norm add", "relu conv2 norm2 add"]),
        (adds_a_number, ["conv norm"]),
        (adds_twice_of_it, ["conv norm"]),
    ],
)
def test_values_used_elsewhere_and_overwritten(forward, wanted):
    model, exact, report = converted(forward_of(forward))
    x, y = torch.randn(FEATURES), torch.randn(FEATURES)
    assert steps(report) == wanted
    with torch.no_grad():
        results = [m(value) for m, value in ((model, x), (exact, x.clone()), (model, y))]
    assert torch.equal(results[0], results[1]) or forward is overwrites_its_input
    x = torch.randn(FEATURES)
    mine, theirs = x.clone(), x.clone()
    with torch.no_grad():
        model.load_state_dict(exact.state_dict())
        assert torch.equal(model(mine), exact(theirs)) and torch.equal(mine, theirs)


def test_a_norm_that_two_steps_share():
    def forward(self, x):
        return F.relu(self.norm(self.conv2(F.relu(self.norm(self.conv(x))))))

    model, exact, report = converted(forward_of(forward))
    assert steps(report) == ["conv norm relu", "conv2 norm relu"]
    assert_same(model, exact, torch.randn(FEATURES), blocks=2)
    assert model.norm.num_batches_tracked == 2
    del model.norm2, exact.norm2


def test_a_module_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = BasicBlock()
            self.again = self.body

        def forward(self, x):
            return self.again(self.body(x))

    model, exact, report = converted(Twice)
    assert len(report.blocks) == 1 and report["body.conv1"].block == "body#0"
    assert_same(model, exact, torch.randn(FEATURES), blocks=2)
