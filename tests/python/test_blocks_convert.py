"""convert and blocks: what is found in models, what stays, and when the layers run one by one."""

import copy
import gc
import inspect
import io
import pickle
import random
import re
import sys
import weakref

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torch.nn.utils.prune
import torch.utils.checkpoint
from actnn import BlockOptions, Config, convert, restore
from actnn.blocks.running import BlockForward, is_available
from block_models import FEATURES, IMAGE, PATTERNS, BasicBlock, Bottleneck, ConvNormActivation, DenseLayer, ResNet, conv
from configurations import eight_bits, one_thread, relative_error, small_net  # noqa: F401
from reference_block import ReferenceBlock
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
needs_library = pytest.mark.skipif(not is_available(), reason="this libactnn.so has no blocks")


@pytest.fixture(autouse=True)
def reference(request, monkeypatch):
    """Blocks run as torch's functions, which keep everything exact, unless a test wants the library's."""
    ReferenceBlock.runs = 0
    if "library" not in request.keywords:
        monkeypatch.setattr("actnn.blocks.running.executor", ReferenceBlock)
        monkeypatch.setattr(sys.modules["actnn.convert"], "is_available", lambda: True)


def convert_blocks(model, config=None, **arguments):
    """Converts what is in blocks, and nothing else, so that everything stays exact."""
    config = config or eight_bits()
    found = convert(copy.deepcopy(model), config, **arguments)
    outside = [entry.path for entry in found.converted if not entry.block and entry.type != "Dropout"]
    return convert(model, config, skip=outside, **arguments)


def converted(make, *args, **arguments):
    """A model with blocks, its exact twin, and the report."""
    model = make(*args).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    exact = copy.deepcopy(model)
    return model, exact, convert_blocks(model, **arguments)


def steps(report):
    return [" ".join(block.steps) for block in report.blocks]


def outcome(model, *inputs):
    """The result, the gradients of inputs and parameters, and the buffers."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    model.zero_grad()
    result = model(*inputs)
    (result * torch.linspace(-1, 1, result.numel()).reshape(result.shape)).sum().backward()
    parameters = [p.grad for p in model.parameters()]
    return [result.detach(), *(x.grad for x in inputs), *parameters, *(b.clone() for b in model.buffers())]


def assert_same(model, exact, *inputs, blocks=None):
    ReferenceBlock.runs = 0
    found = outcome(model, *inputs)
    assert blocks is None or ReferenceBlock.runs == blocks
    for a, b in zip(found, outcome(exact, *inputs), strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


# What is found.


@pytest.mark.parametrize("name", PATTERNS)
def test_blocks_of_known_models(name):
    make, shape, wanted = PATTERNS[name]
    model, exact, report = converted(make)
    assert steps(report) == wanted
    for training in (True, False):
        model.train(training), exact.train(training)
        assert_same(model, exact, torch.randn(shape), blocks=len(wanted))


@pytest.mark.library
@needs_library
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
    model = nn.Sequential(conv(8, 8), nn.SyncBatchNorm(8), nn.ReLU())
    assert convert(model, eight_bits()).without_blocks["1"] == "blocks have no SyncBatchNorm"
    layer = torch.nn.utils.parametrizations.weight_norm(conv(8, 8))
    assert not convert(nn.Sequential(layer, nn.BatchNorm2d(8)), eight_bits()).blocks


# Forwards that no graph stands for.


class Norms(nn.Module):
    """Two convolutions and norms, for forwards of a test's own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.conv2, self.norm2 = conv(8, 8), nn.BatchNorm2d(8), conv(8, 8), nn.BatchNorm2d(8)
        self.p, self.seen, self.last = 0.0, [], None

    def block(self, x):
        return F.relu(self.norm(self.conv(x)))


def forward_of(function):
    return type("Own", (Norms,), {"forward": function})


def depends_on_data(self, x):
    return self.block(x) if x.sum() > 0 else x


def depends_on_training(self, x):
    return F.dropout(self.block(x), 0.5, training=self.training)


def takes_any(self, *x):
    return self.block(*x)


def draws(self, x):
    return self.block(x) if torch.rand(()) < 0.5 else x


def throws_a_coin(self, x):
    return self.block(x) if random.random() < 2 else x


def makes_noise(self, x):
    return self.block(x + torch.randn(8, 1, 1))


def counts(self, x):
    self.p += 1
    return self.block(x)


def collects(self, x):
    self.seen.append(x)
    return self.block(x)


def keeps_the_last(self, x):
    self.last = self.block(x)
    return self.last


def switches_gradients_off(self, x):
    with torch.no_grad():
        y = self.block(x)
    return x + y


def switches_autocast_on(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return self.block(x)


def checkpoints(self, x):
    return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)


def asks_for_a_type(self, x):
    y = self.block(x)
    return y if isinstance(y, torch.Tensor) else y[0]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (depends_on_data, "cannot be traced: symbolically traced variables cannot be used as inputs to control flow"),
        (depends_on_training, "differs between training and evaluation"),
        (takes_any, r"takes \*args"),
        (throws_a_coin, "draws random numbers"),
        (draws, "calls torch.rand without one of its arguments"),
        (makes_noise, "calls torch.randn without one of its arguments"),
        (counts, "changes its attribute 'p'"),
        (collects, "changes its attribute 'seen'"),
        (keeps_the_last, "changes its attribute 'last'"),
        (switches_gradients_off, "set_grad_enabled|mode of autograd"),
        (switches_autocast_on, "changes the mode of autograd, autocast"),
        (checkpoints, "changes the mode of|calls "),
        (asks_for_a_type, "asks for the type of a value"),
    ],
)
def test_forwards_that_stay_as_they_are(forward, reason):
    model = forward_of(forward)()
    attributes = {name: copy.copy(value) for name, value in vars(model).items() if not name.startswith("_")}
    report = convert(model, eight_bits())
    assert not report.blocks and list(report.without_blocks) == [""]
    assert re.search(reason, report.without_blocks[""])
    assert {name: value for name, value in vars(model).items() if not name.startswith("_")} == attributes
    assert "forward" not in vars(model) and type(model.conv) is actnn.QConv2d
    model(torch.randn(FEATURES, requires_grad=True)).sum().backward()


def test_children_of_such_a_forward_have_blocks():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = ConvNormActivation(3, 8), BasicBlock()

        def forward(self, x):
            x = self.stem(x)
            return self.body(x) if x.mean() > -1 else x

    model, exact, report = converted(Outer)
    assert steps(report) == [
        "stem.0 stem.1 stem.2",
        "body.conv1 body.bn1 body.relu body.conv2 body.bn2 add body.relu",
    ]
    assert "cannot be traced" in report.without_blocks[""]
    assert_same(model, exact, torch.randn(IMAGE), blocks=2)


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


# Arguments.


def test_a_layer_that_takes_a_list_or_a_tensor():
    model, exact, report = converted(DenseLayer, 8)
    assert steps(report) == ["norm1 relu1 conv1 norm2 relu2 conv2"]
    x = torch.randn(FEATURES)
    for argument in (x, [x], [x[:, :4], x[:, 4:]], (x[:, :3], x[:, 3:])):
        ReferenceBlock.runs = 0
        assert torch.equal(model(argument), exact(argument)) and ReferenceBlock.runs == 1


def test_optional_arguments():
    def forward(self, x, shortcut=None):
        y = self.norm(self.conv(x))
        return y if shortcut is None else y + shortcut

    model, exact, _ = converted(forward_of(forward))
    x = torch.randn(FEATURES)
    for args, kwargs, blocks in (
        ((x,), {}, 1), ((), {"x": x}, 1), ((x, x), {}, 1), ((x,), {"shortcut": x}, 1), ((x, None), {}, 0),
        ((), {"shortcut": x, "x": x}, 1), ((x, 1.5), {}, 0),
    ):  # fmt: skip
        ReferenceBlock.runs = 0
        assert torch.equal(model(*args, **kwargs), exact(*args, **kwargs)) and ReferenceBlock.runs == blocks
    assert str(inspect.signature(model.forward)) == "(x, shortcut=None)"
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        model()
    with pytest.raises(TypeError, match="multiple values for argument 'x'"):
        model(x, x=x)


def test_sums_that_broadcast_go_through_the_layers():
    def forward(self, x, shortcut):
        return F.relu(self.norm(self.conv(x)) + shortcut)

    model, exact, _ = converted(forward_of(forward))
    for shape, blocks in ((FEATURES, 1), ((4, 8, 1, 1), 0), ((1, 8, 8, 8), 0), ((8, 1, 1), 0)):
        ReferenceBlock.runs = 0
        x, shortcut = torch.randn(FEATURES), torch.randn(shape)
        assert torch.equal(model(x, shortcut), exact(x, shortcut)) and ReferenceBlock.runs == blocks


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [7, 8, 9, 10])
def test_shapes_of_sums(size, ceil_mode):
    def forward(self, x, shortcut):
        return self.pool(F.relu(self.norm(self.conv(x)))) + shortcut

    model = forward_of(forward)()
    model.conv = nn.Conv2d(8, 8, (3, 2), (1, 2), (0, 1), (2, 1))
    model.pool = nn.MaxPool2d((3, 2), (2, 3), 1, ceil_mode=ceil_mode)
    model, exact, report = converted(lambda: model)
    assert steps(report) == ["conv norm relu pool add"]
    model.eval(), exact.eval()
    x = torch.randn(4, 8, size, size)
    assert_same(model, exact, x, torch.randn_like(exact(x, torch.zeros(()))), blocks=1)


def test_inputs_that_blocks_do_not_take():
    model, exact, _ = converted(BasicBlock)
    with pytest.raises(ValueError, match="expected 4D input"):
        model(torch.randn(8, 8, 8))
    model.double(), exact.double()
    assert_same(model, exact, torch.randn(FEATURES, dtype=torch.float64), blocks=0)
    with pytest.raises(TypeError, match="input must be a tensor, got str"):
        model("nothing")


class Subclass(torch.Tensor):
    pass


def test_subclasses_of_tensors_go_through_the_layers():
    model, _, _ = converted(BasicBlock)
    ReferenceBlock.runs = 0
    model(torch.randn(FEATURES).as_subclass(Subclass))
    assert ReferenceBlock.runs == 0


# What stays.


def test_everything_else_about_a_module_stays():
    model = ResNet()
    exact = copy.deepcopy(model)
    children, keys = list(model.modules()), list(model.state_dict())
    parameters = list(model.parameters())
    convert(model, eight_bits())
    assert all(a is b for a, b in zip(model.modules(), children, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys and type(model) is ResNet
    changed = {"__class__", "forward", "config", "group", "name", "scheme"}
    for mine, theirs in zip(model.modules(), exact.modules(), strict=True):
        assert set(vars(mine)) - set(vars(theirs)) <= changed and set(vars(theirs)) <= set(vars(mine))
    assert [n for n, m in model.named_modules() if "forward" in vars(m)] == ["", "layer1.0", "layer1.1"]


def test_restore_is_exact():
    model = ResNet()
    exact = copy.deepcopy(model)
    convert(model, eight_bits())
    model(torch.randn(IMAGE)).sum().backward()
    model.zero_grad()
    restore(model)
    for mine, theirs in zip(model.modules(), exact.modules(), strict=True):
        assert type(mine) is type(theirs) and set(vars(mine)) == set(vars(theirs))
    exact.load_state_dict(model.state_dict())
    assert_same(model, exact, torch.randn(IMAGE), blocks=0)
    assert len(convert(model, eight_bits()).blocks) == 3
    restore(model.layer1)
    assert_same(model.layer1[0], exact.layer1[0], torch.randn(FEATURES), blocks=0)


def test_a_conversion_that_fails_leaves_no_blocks(monkeypatch):
    def fail(program, options):
        raise ValueError("no such block")

    model = ResNet()
    monkeypatch.setattr("actnn.blocks.running.executor", fail)
    with pytest.raises(ValueError, match="no such block"):
        convert(model, eight_bits())
    assert not any("forward" in vars(m) or type(m).__name__.startswith("Q") for m in model.modules())


def test_parameters_are_read_at_each_call():
    model, exact, _ = converted(BasicBlock)
    state = {name: torch.randn_like(value) if value.is_floating_point() else value
             for name, value in BasicBlock().state_dict().items()}  # fmt: skip
    state = {name: value.abs() if "var" in name else value for name, value in state.items()}
    model.eval(), exact.eval()
    for m in (model, exact):
        m.load_state_dict(state, assign=True)
    assert_same(model, exact, torch.randn(FEATURES), blocks=1)
    model.requires_grad_(False)
    assert not model(torch.randn(FEATURES)).requires_grad
    model.requires_grad_(True).bfloat16(), exact.bfloat16()
    assert_same(model, exact, torch.randn(FEATURES, dtype=torch.bfloat16), blocks=1)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
        lambda m: nn.Sequential(copy.deepcopy(nn.Sequential(m))[0])[0],
    ],
)
def test_copies_are_independent(duplicate):
    model, exact, _ = converted(ResNet)
    model(torch.randn(IMAGE))
    other = duplicate(model)
    exact.load_state_dict(other.state_dict())
    assert isinstance(other.forward, BlockForward) and other.forward.module is other
    assert other.forward.config is other.conv1.config and other.forward.options == model.forward.options
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    del model
    assert_same(other, exact, torch.randn(IMAGE), blocks=3)


def _saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_a_forward_keeps_no_module_alive():
    model = BasicBlock()
    convert(model, eight_bits())
    model(torch.randn(FEATURES)).sum().backward()
    forward, gone = model.forward, weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError, match="the module of this forward is gone"):
        forward(torch.randn(FEATURES))


def test_without_gradients():
    model, exact, _ = converted(BasicBlock)
    with torch.no_grad():
        assert torch.equal(model(x := torch.randn(FEATURES)), exact(x)) and ReferenceBlock.runs == 1


# When the layers run one by one.


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_on_layers_fire(kind):
    model, _, _ = converted(BasicBlock, 8, 16, 2)
    model.relu.inplace = False  # torch's hooks on gradients refuse the other, and `+=` of what they have had
    for module in (model.conv1, model.relu, model.downsample[0]):
        fired = []
        handle = getattr(module, f"register_{kind}_hook")(lambda *_, fired=fired: fired.append(1) and None)
        model(torch.randn(FEATURES, requires_grad=True)).sum().backward()
        assert fired
        handle.remove()
        ReferenceBlock.runs = 0
        model(torch.randn(FEATURES))
        assert ReferenceBlock.runs == 1


def test_hooks_that_were_there_before():
    model = BasicBlock()
    fired = []
    model.bn1.register_forward_hook(lambda *_: fired.append(1))
    report = convert(model, eight_bits())
    assert report.without_blocks["bn1"] == "it has hooks" and steps(report) == ["conv2 bn2 add relu"]
    model(torch.randn(FEATURES))
    assert fired == [1]


def test_hooks_on_the_module_itself_and_on_every_module():
    model, _, _ = converted(BasicBlock)
    fired = []
    with model.register_forward_hook(lambda *_: fired.append("own")):
        model(torch.randn(FEATURES))
    assert fired == ["own"] and ReferenceBlock.runs == 1
    with nn.modules.module.register_module_forward_hook(lambda *_: fired.append("any")):
        model(torch.randn(FEATURES))
    assert fired.count("any") == 7 and ReferenceBlock.runs == 1


@pytest.mark.parametrize(
    "flags",
    [
        {"compress_activation": False}, {"training": False}, {"simulate": True}, {"pergroup": False},
        {"debug_remove_relu": True}, {"debug_memory_op_forward": True}, {"activation_compression_bits": [1]},
        {"pipeline_threshold": 1},
    ],
)  # fmt: skip
def test_flags_that_blocks_do_not_have(flags, capsys):
    config = eight_bits()
    model = BasicBlock()
    convert(model, config)
    for name, value in flags.items():
        setattr(config, name, value)
    model(torch.randn(FEATURES)).sum().backward()
    assert ReferenceBlock.runs == 0
    (name,) = flags
    if flags not in ({"compress_activation": False},):
        report = convert(BasicBlock(), Config("L2", **flags))
        assert not report.blocks and name in report.without_blocks[""]
        assert f"no block: (root): {report.without_blocks['']}" in str(report)


def test_configurations_that_allocate_bits_have_no_blocks():
    for flags in ({}, {"adaptive_conv_scheme": False}, {"adaptive_bn_scheme": False}):
        report = convert(BasicBlock(), Config("L3", **flags))
        assert report.without_blocks == {"": "the configuration allocates bits among layers"}
    assert not convert(BasicBlock(), Config("L1")).blocks
    assert not convert(nn.Sequential(nn.Linear(3, 3)), Config()).without_blocks


def test_layers_with_another_configuration():
    model = BasicBlock()
    convert(model.bn2, eight_bits())
    report = convert(model, eight_bits())
    assert report.without_blocks["bn2"] == "it has a configuration or a group of its own"
    assert steps(report) == ["conv1 bn1 relu conv2"]


def test_bits_are_those_of_the_configuration_at_each_call():
    config = eight_bits()
    model = BasicBlock()
    convert(model, config)
    plan = model.forward.plan()

    def used():
        model(torch.randn(FEATURES))
        return list(plan.executors.values())[-1][0].options

    assert used() == {"bits": 8, "output_bits": 8, "recompute": True, "norm_bits": 2, "stochastic": True}
    config.activation_compression_bits, config.stochastic = [5], False
    assert used() == {"bits": 5, "output_bits": 5, "recompute": True, "norm_bits": 2, "stochastic": False}
    other = BasicBlock()
    convert(other, config, blocks=BlockOptions(bits=2, output_bits=4, recompute=False))
    (executors,) = other.forward.plan().executors.values()
    assert executors[0].options == {
        "bits": 2,
        "output_bits": 4,
        "recompute": False,
        "norm_bits": 2,
        "stochastic": False,
    }


# Changes after conversion.


def replaces_a_layer(model):
    model.conv2 = conv(8, 8)


def adds_a_shortcut(model):
    model.downsample = nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8))


def changes_a_norm(model):
    model.bn1.momentum, model.bn2.eps = 0.5, 0.1


def changes_a_convolution(model):
    model.conv1.padding, model.conv1.dilation = (2, 2), (2, 2)


def adds_a_bias(model):
    model.conv1.bias = nn.Parameter(torch.ones(8))


def replaces_an_activation(model):
    model.relu = nn.GELU()


def replaces_a_forward(model):
    model.bn1.forward = lambda x: 2 * x


def prunes(model):
    torch.nn.utils.prune.l1_unstructured(model.conv1, "weight", 0.5)


@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        (replaces_a_layer, 2), (adds_a_shortcut, 2), (changes_a_norm, 1), (changes_a_convolution, 1), (adds_a_bias, 1),
        (replaces_an_activation, 2), (replaces_a_forward, 1), (prunes, 1),
    ],
)  # fmt: skip
def test_changes_after_conversion(change, blocks):
    model, exact, _ = converted(BasicBlock)
    for m in (model, exact):
        torch.manual_seed(1)
        change(m)
    ReferenceBlock.runs = 0
    x = torch.randn(FEATURES)
    torch.testing.assert_close(model(x), exact(x), rtol=1e-6, atol=1e-6)
    assert 0 <= ReferenceBlock.runs <= blocks


def test_attributes_that_a_forward_reads():
    def forward(self, x):
        y = self.block(x)
        return y + x if self.p else y

    model, exact, _ = converted(forward_of(forward))
    for value in (0.5, 0.0):
        model.p = exact.p = value
        assert_same(model, exact, torch.randn(FEATURES), blocks=1)


def test_containers_that_change():
    model, exact, _ = converted(lambda: nn.Sequential(conv(8, 8), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())))
    for change in (lambda m: m[1].append(nn.Hardtanh()), lambda m: m.append(nn.Tanh()), lambda m: m[1].pop(1)):
        change(model), change(exact)
        assert_same(model, exact, torch.randn(FEATURES), blocks=1)


# Other systems.


def test_compiled_models_run_the_layers():
    model, exact, _ = converted(BasicBlock)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    ReferenceBlock.runs = 0
    x = torch.randn(FEATURES)
    torch.testing.assert_close(compiled(x), exact(x))
    assert ReferenceBlock.runs == 0


def test_transforms_run_the_layers():
    model, exact, _ = converted(BasicBlock)
    model.eval(), exact.eval()
    x = torch.randn(FEATURES)
    parameters = dict(model.named_parameters())
    assert torch.equal(torch.func.functional_call(model, parameters, (x,)), exact(x)) and ReferenceBlock.runs == 1
    gradient = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(parameters)
    assert ReferenceBlock.runs == 1 and gradient["conv1.weight"].shape == model.conv1.weight.shape
    traced = torch.jit.trace(model, x, check_trace=False)
    assert ReferenceBlock.runs == 1 and torch.equal(traced(x), exact(x))


def test_a_wrapper_has_blocks():
    model = Bottleneck()
    exact = copy.deepcopy(model)
    wrapped = actnn.QModule(model, eight_bits())
    assert len(wrapped.report.blocks) == 1
    other = copy.deepcopy(wrapped)
    for wrapper in (wrapped, other):
        ReferenceBlock.runs = 0
        assert torch.equal(wrapper(x := torch.randn(FEATURES)), exact(x)) and ReferenceBlock.runs == 1
        exact = copy.deepcopy(exact)


# The report and arguments.


def test_the_report_lists_blocks(capsys):
    model = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    report = convert(model, eight_bits(), verbose=True)
    assert [entry.block for entry in report.entries] == ["", "(root)#0", "(root)#0", "(root)#0", ""]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["block (root)#0: 0, 1, 2; {}", "3 converted, 1 left alone, 1 blocks"]
    report = convert(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(8)), eight_bits())
    assert report.without_blocks == {"": "nothing in its forward that blocks are made of"}
    model, config = small_net(), eight_bits()
    assert not convert(model, config, blocks=False).blocks and "forward" not in vars(model)
    assert not convert(model, config).converted and isinstance(model.forward, BlockForward)
    assert not convert(model, config).blocks


def test_wrong_arguments():
    for value, got in (("yes", "str"), (None, "NoneType"), (3, "int"), ({"bits": 4}, "dict")):
        with pytest.raises(TypeError, match=rf"convert: blocks must be a bool or an actnn.BlockOptions, got {got}"):
            convert(small_net(), blocks=value)
    for arguments, sentence in (
        ({"bits": 1}, r"BlockOptions: bits must be an integer in 2\.\.8, got 1"),
        ({"output_bits": 9}, r"BlockOptions: output_bits must be an integer in 2\.\.8, got 9"),
    ):
        with pytest.raises(ValueError, match=sentence):
            BlockOptions(**arguments)
    for arguments, sentence in (
        ({"bits": 4.0}, r"bits must be an integer in 2\.\.8, got float 4.0"),
        ({"output_bits": "3"}, r"output_bits must be an integer in 2\.\.8, got str '3'"),
        ({"recompute": "no"}, "recompute must be a bool, got str 'no'"),
    ):
        with pytest.raises(TypeError, match=sentence):
            BlockOptions(**arguments)


@pytest.mark.parametrize(("name", "blocks", "norms"), [("resnet18", 9, 20), ("mobilenet_v2", 32, 52)])
def test_torchvision_models(name, blocks, norms):
    models = pytest.importorskip("torchvision.models")
    report = convert(getattr(models, name)(weights=None), eight_bits())
    assert len(report.blocks) == blocks and sum("Norm" in e.type and bool(e.block) for e in report.entries) == norms
