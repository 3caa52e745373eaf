"""convert and blocks: forwards that no graph stands for, and what they are called with."""

import copy
import inspect
import random
import re

import actnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torch.utils.checkpoint
from actnn import convert
from block_checks import assert_same, converted, forward_of, reference_blocks, steps  # noqa: F401
from block_models import FEATURES, IMAGE, BasicBlock, ConvNormActivation, DenseLayer
from configurations import eight_bits, one_thread  # noqa: F401
from reference_block import ReferenceBlock
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread", "reference_blocks")

# Forwards that stay as they are.


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


# Arguments.


# Arguments.


def test_a_layer_that_takes_a_list_or_a_tensor():
    model, exact, report = converted(DenseLayer, 8)
    assert steps(report) == ["norm1 relu1 conv1 norm2 relu2 conv2"]
    x = torch.randn(FEATURES)
    for argument in (x, [x], [x[:, :4], x[:, 4:]], (x[:, :3], x[:, 3:])):
        ReferenceBlock.runs = 0
        assert torch.equal(model(argument), exact(argument)) and ReferenceBlock.runs == 1


def joins(self, features):
    return self.block(torch.cat(features, 1))


def goes_through(self, features):
    y = self.block(features[0])
    for x in features[1:]:
        y = F.relu(self.norm2(self.conv2(y)) + x)
    return y


def sums_up(self, features):
    return self.block(sum(features) / len(features))


def joins_what_it_computes(self, features):
    return self.block(torch.stack([F.relu(x) for x in features]).sum(0))


def unpacks(self, features):
    x, y, z = features
    return F.relu(self.norm(self.conv(x)) + y) + z


def takes_more(self, features):
    first, *rest = [*features, features[0]]
    return self.block(first) + torch.stack(rest).sum(0)


def asks_for_a_list(self, features):
    if isinstance(features, (list, tuple)):
        return self.block(features[-1])
    return features


@pytest.mark.parametrize(
    ("forward", "length", "blocks"),
    [
        (joins, 2, 1), (goes_through, 3, 3), (sums_up, 3, 1), (joins_what_it_computes, 4, 1), (unpacks, 3, 1),
        (takes_more, 2, 1), (asks_for_a_list, 1, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [list, tuple])
def test_forwards_that_take_a_list(forward, length, blocks, kind):
    model, exact, report = converted(forward_of(forward))
    assert report.blocks and not report.without_blocks
    channels = 8 // length if forward is joins else 8
    features = [torch.randn(4, channels, 8, 8, requires_grad=True) for _ in range(length)]
    results = []
    for m in (model, exact):
        ReferenceBlock.runs = 0
        m(kind(features)).square().sum().backward()
        results.append([*(x.grad for x in features), *(p.grad for p in m.parameters()), *m.buffers()])
        assert ReferenceBlock.runs == (blocks if m is model else 0)
        for x in features:
            x.grad = None
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


def test_lists_of_other_lengths_and_things():
    model, exact, _ = converted(forward_of(goes_through))
    x = torch.randn(FEATURES)
    for argument, blocks in (([x] * 5, 5), ([x], 1), ((x, x), 2), ([x, 1.5], 0), (torch.stack([x, x]), 0)):
        ReferenceBlock.runs = 0
        assert torch.equal(model(argument), exact(argument)) and ReferenceBlock.runs == blocks
    with pytest.raises(IndexError, match="list index out of range"):
        model([])


def test_a_list_beside_a_tensor():
    def forward(self, x, skips):
        for skip in skips:
            x = F.relu(self.norm(self.conv(x)) + skip)
        return x

    model, exact, report = converted(forward_of(forward))
    assert steps(report) == ["conv norm add relu", "conv norm add relu"]
    x = torch.randn(FEATURES)
    assert torch.equal(model(x, [x, x, x]), exact(x, [x, x, x])) and ReferenceBlock.runs == 3


def overwrites_a_list(self, features):
    for i, x in enumerate(features):
        features[i] = self.block(x)
    return features[0]


def appends(self, features):
    features.append(self.block(sum(features)))
    return features[-1]


def returns_the_list(self, features):
    y = self.block(sum(features))
    return y, features


def gives_a_list_away(self, features):
    mine = [self.block(features)]
    self.child(mine)
    return mine[-1]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (overwrites_a_list, "changes a list that is its argument"),
        (appends, "changes a list that is its argument"),
        (returns_the_list, "returns a list that is its argument"),
        (gives_a_list_away, "gives 'child' a collection, which that may change"),
    ],
)
def test_lists_that_others_see(forward, reason):
    class Doubles(nn.Module):
        def forward(self, features):
            features.append(2 * features[0])

    model = forward_of(forward)()
    model.child = Doubles()
    exact = copy.deepcopy(model)
    report = convert(model, eight_bits())
    assert not report.blocks and reason in report.without_blocks[""]
    x = torch.randn(FEATURES)
    mine, theirs = ([x, x], [x, x]) if forward is not gives_a_list_away else (x, x)
    model.eval(), exact.eval()
    a, b = model(mine), exact(theirs)
    assert len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))
    assert torch.equal(a[0], b[0])


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
